"""Budgets: limits of size, loss and latency that a result must meet. What is as large as its limit meets it."""

from __future__ import annotations

import re
from typing import Any, Literal

from msgspec import Struct

from agent.errors import ConfigError

LimitName = Literal["size", "loss", "latency"]
_UNITS = {
    "size": {"B": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9},
    "loss": {"pp": 0.01},
    "latency": {"us": 1e-3, "ms": 1.0, "s": 1e3},
}
"""Factor to a `Budget`'s unit by limit and unit."""
_SAME_LOSS = 1e-9
"""Losses that differ by no more are the same: 0.52 - 0.5 > 0.02 in floats."""
_LIMIT = re.compile(
    r"(?P<name>[a-z]+)\s*<=?\s*(?P<value>\d{1,15}(?:\.\d{0,20})?(?:e[+-]?\d{1,2})?)\s*(?P<unit>[A-Za-z%]*)"
)
_FORM = "expected limits such as size<2.8MB, loss<0.5pp, latency<20ms, with commas between them"


class Budget(Struct, frozen=True):
    """Limits of a model; None: there is no such limit.

    Attributes:
        size: of the file, bytes.
        loss: of the score, 0..1: 0.5 pp is 0.005.
        latency_ms: of an inference on one thread of the machine that measures, ms.
    """

    size: float | None = None
    loss: float | None = None
    latency_ms: float | None = None

    def _limit(self, name: LimitName) -> float | None:
        return {"size": self.size, "loss": self.loss, "latency": self.latency_ms}[name]

    def __str__(self) -> str:
        """Return a text that `parse_budget` reads."""
        names: tuple[LimitName, ...] = ("size", "loss", "latency")
        limits = ((name, self._limit(name)) for name in names)
        return ", ".join(
            f"{name}<{self.amount(name, limit, 7).replace(' ', '')}"
            for name, limit in limits
            if limit is not None
        )

    def meets(self, name: LimitName, value: float) -> bool:
        """Return True if a value is within a limit, or there is no such limit."""
        limit = self._limit(name)
        return limit is None or value - limit <= (_SAME_LOSS if name == "loss" else 0.0)

    def amount(self, name: LimitName, value: float, figures: int = 0) -> str:
        """Return a value in a unit that fits the limit, such as `28.6 kB`."""
        limit = self._limit(name) or 0.0
        size, latency = "MB" if limit >= _UNITS["size"]["MB"] else "kB", "ms" if limit >= 0.1 else "us"
        unit = {"size": size, "loss": "pp", "latency": latency}[name]
        return f"{value / _UNITS[name][unit]:.{figures or (4 if name == 'latency' else 7)}g} {unit}"

    def told(self, name: LimitName) -> str:
        """Return a limit that there is, such as `size < 28.6 kB`."""
        return f"{name} < {self.amount(name, self._limit(name) or 0.0, 7)}"

    def missed(
        self, *, size: float | None = None, loss: float | None = None, latency_ms: float | None = None
    ) -> list[str]:
        """Say which limits these figures miss, and by how much. A figure that is None is not compared."""
        values: dict[LimitName, float | None] = {"size": size, "loss": loss, "latency": latency_ms}
        found = []
        for name, value in values.items():
            limit = self._limit(name)
            if value is not None and limit is not None and not self.meets(name, value):
                over = f"{self.amount(name, value - limit)} over {self.amount(name, limit, 7)}"
                found.append(f"{name} {self.amount(name, value)}, {over}")
        return found


def parse_budget(text: str) -> Budget:
    """Parse limits that are separated by commas: `size<2.8MB, loss<0.5pp, latency<=20ms`.

    Raises:
        ConfigError: there is no limit, one is unknown, not positive (`loss<0pp` may be) or there twice, or a unit
            is missing.
    """
    found: dict[str, Any] = {}
    for part in map(str.strip, text.split(",")):
        match = _LIMIT.fullmatch(part)
        if match is None or match["name"] not in _UNITS:
            raise ConfigError(f"{part!r} is no limit: {_FORM}")
        name, units = match["name"], _UNITS[match["name"]]
        if match["unit"] not in units:
            raise ConfigError(f"{part!r}: expected one of the units {', '.join(units)} after the number")
        field = "latency_ms" if name == "latency" else name
        if field in found:
            raise ConfigError(f"{part!r}: there is a limit of {name} before it")
        # Rounded: 2.3 * 1e6 is less than 2,300,000.
        found[field] = float(f"{float(match['value']) * units[match['unit']]:.15g}")
        if not (found[field] > 0 or name == "loss"):
            raise ConfigError(f"{part!r}: expected more than 0")
    return Budget(**found)
