"""Budgets: limits of size, loss and latency that a result must meet."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from msgspec import Struct

from agent.errors import ConfigError


class Budget(Struct, frozen=True):
    """Limits of a model; None: there is no such limit.

    Attributes:
        size: of the file, bytes.
        loss: of the score, 0..1: 0.5 pp is 0.005.
        latency_ms: of an inference on one thread of the machine that measures, ms.
        size_unit, latency_unit: in which limits are told.
    """

    size: float | None = None
    loss: float | None = None
    latency_ms: float | None = None
    size_unit: str = "MB"
    latency_unit: str = "ms"

    def __str__(self) -> str:
        """Return a text that `parse_budget` reads."""
        return ", ".join(
            f"{name}<{limit / factor:.15g}{unit}"
            for name, limit, factor, unit in self._limits()
            if limit is not None
        )

    def _limits(self) -> Iterator[tuple[str, float | None, float, str]]:
        """Yield name, limit, and the unit in which it is told with its factor."""
        for name, limit, unit in (
            ("size", self.size, self.size_unit),
            ("loss", self.loss, "pp"),
            ("latency", self.latency_ms, self.latency_unit),
        ):
            yield name, limit, _UNITS[name][unit], unit

    def size_text(self, size: float) -> str:
        """Return a size in the unit of the limit."""
        return f"{short_amount(size / _UNITS['size'][self.size_unit])} {self.size_unit}"

    def missed(
        self, *, size: float | None = None, loss: float | None = None, latency_ms: float | None = None
    ) -> list[str]:
        """Say which limits these figures miss, and by how much. A figure that is None is not compared."""
        found, values = [], {"size": size, "loss": loss, "latency": latency_ms}
        for name, limit, factor, unit in self._limits():
            value = values[name]
            if value is not None and limit is not None and value >= limit:
                told = (f"{short_amount(one / factor)} {unit}" for one in (value, value - limit, limit))
                found.append("{} {}, {} over {}".format(name, *told))
        return found


def short_amount(value: float) -> str:
    """Return an amount with four figures, or as a whole number."""
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"


_UNITS = {
    "size": {"B": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 1024.0, "MiB": 1024.0**2},
    "loss": {"pp": 0.01},
    "latency": {"us": 1e-3, "ms": 1.0, "s": 1e3},
}
"""Factor to a `Budget`'s unit by limit and unit."""
_FIELDS = {"latency": "latency_ms"}
_LIMIT = re.compile(
    r"(?P<name>[a-z]+)\s*<=?\s*(?P<value>\d{1,15}(?:\.\d{0,20})?(?:e[+-]?\d{1,2})?)\s*(?P<unit>[A-Za-z%]*)"
)
_FORM = "expected limits such as size<2.8MB, loss<0.5pp, latency<20ms"


def parse_budget(text: str) -> Budget:
    """Parse limits that are separated by commas: `size<2.8MB, loss<0.5pp, latency<20ms`.

    Raises:
        ConfigError: there is no limit, one is unknown, not positive or there twice, or a unit is missing.
    """
    found: dict[str, Any] = {}
    for part in text.split(","):
        match = _LIMIT.fullmatch(part.strip())
        if match is None:
            raise ConfigError(f"{part.strip()!r} is no limit: {_FORM}")
        name, units = match["name"], _UNITS.get(match["name"])
        if units is None:
            raise ConfigError(f"there is no limit {name!r}: {_FORM}")
        if match["unit"] not in units:
            raise ConfigError(f"{part.strip()!r}: expected one of the units {', '.join(units)} after the number")
        field = _FIELDS.get(name, name)
        if field in found:
            raise ConfigError(f"{name!r} is there twice")
        found[field] = float(match["value"]) * units[match["unit"]]
        if not found[field] > 0:
            raise ConfigError(f"{part.strip()!r}: expected more than 0")
        if name != "loss":
            found[f"{name}_unit"] = match["unit"]
    return Budget(**found)
