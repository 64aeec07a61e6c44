"""Budgets: limits of size, loss and latency that a result must meet."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator
from typing import Any, Literal

from msgspec import Struct

from agent.errors import ConfigError

LimitName = Literal["size", "loss", "latency"]


class Budget(Struct, frozen=True):
    """Limits of a model; None: there is no such limit.

    Attributes:
        size: of the file, bytes.
        loss: of the score, 0..1: 0.5 pp is 0.005.
        latency_ms: of an inference on one thread of the machine that measures, ms.
        size_unit, latency_unit: in which limits are told.
        reachable: names of the limits that a result may be equal to, as `<=` says.
    """

    size: float | None = None
    loss: float | None = None
    latency_ms: float | None = None
    size_unit: str = "MB"
    latency_unit: str = "ms"
    reachable: tuple[LimitName, ...] = ()

    def __str__(self) -> str:
        """Return a text that `parse_budget` reads."""
        return ", ".join(
            f"{name}{self._sign(name)}{limit / factor:.15g}{unit}"
            for name, limit, factor, unit in self._limits()
            if limit is not None
        )

    def _sign(self, name: LimitName) -> str:
        return "<=" if name in self.reachable else "<"

    def _limits(self) -> Iterator[tuple[LimitName, float | None, float, str]]:
        """Yield name, limit, and the unit in which it is told with its factor."""
        limits: tuple[tuple[LimitName, float | None, str], ...] = (
            ("size", self.size, self.size_unit),
            ("loss", self.loss, "pp"),
            ("latency", self.latency_ms, self.latency_unit),
        )
        for name, limit, unit in limits:
            yield name, limit, _UNITS[name][unit], unit

    def _limit(self, name: LimitName) -> tuple[float | None, float, str]:
        return next((limit, factor, unit) for one, limit, factor, unit in self._limits() if one == name)

    def meets(self, name: LimitName, value: float) -> bool:
        """Return True if a value is within a limit, or there is no such limit."""
        if (limit := self._limit(name)[0]) is None:
            return True
        over = _over(name, value, limit)
        return over < 0 or (over == 0 and name in self.reachable)

    def amount(self, name: LimitName, value: float) -> str:
        """Return a value in the unit of a limit, such as `28.6 kB`, with as many figures as tell it from that."""
        limit, factor, unit = self._limit(name)
        return f"{short_amount(value / factor, _figures(value, limit))} {unit}"

    def told(self, name: LimitName) -> str:
        """Return a limit that there is, such as `size < 28.6 kB`."""
        return f"{name} {self._sign(name)} {self._told_limit(name)}"

    def _told_limit(self, name: LimitName) -> str:
        limit, factor, unit = self._limit(name)
        assert limit is not None
        return f"{limit / factor:.15g} {unit}"

    def missed(
        self, *, size: float | None = None, loss: float | None = None, latency_ms: float | None = None
    ) -> list[str]:
        """Say which limits these figures miss, and by how much. A figure that is None is not compared."""
        values = {"size": size, "loss": loss, "latency": latency_ms}
        found = []
        for name, limit, _, _ in self._limits():
            value = values[name]
            if value is not None and limit is not None and not self.meets(name, value):
                told = self._told_excess(name, _over(name, value, limit))
                found.append(f"{name} {self.amount(name, value)}, {told} {self._told_limit(name)}")
        return found

    def _told_excess(self, name: LimitName, over: float) -> str:
        _, factor, unit = self._limit(name)
        return f"{short_amount(over / factor)} {unit} over" if over > 0 else "not below"


def _over(name: LimitName, value: float, limit: float) -> float:
    """Return by how much a value is over a limit; of a loss without the error of floats: 0.52 - 0.5 > 0.02."""
    over = value - limit
    same = min(_SAME_LOSS, limit / 2) if limit else _SAME_LOSS  # no loss at all is below the least limit
    return 0.0 if name == "loss" and abs(over) <= same else over


def _figures(value: float, limit: float | None) -> int:
    """Return the number of figures that tell a value from a limit."""
    if limit is None or not value:
        return _FIGURES
    apart = abs(value - limit) / abs(value)
    return min(_MOST_FIGURES, max(_FIGURES, 2 + math.ceil(-math.log10(apart)))) if apart else _MOST_FIGURES


def short_amount(value: float, figures: int = 4) -> str:
    """Return an amount with so many figures, or as a whole number."""
    return f"{value:.0f}" if abs(value) >= 10**figures else f"{value:.{figures}g}"


_UNITS = {
    "size": {"B": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 1024.0, "MiB": 1024.0**2},
    "loss": {"pp": 0.01},
    "latency": {"us": 1e-3, "ms": 1.0, "s": 1e3},
}
"""Factor to a `Budget`'s unit by limit and unit."""
_SAME_LOSS = 1e-9
"""Losses that differ by no more are the same."""
_FIGURES, _MOST_FIGURES = 4, 10
"""Figures in which an amount is told."""
_FIELDS = {"latency": "latency_ms"}
_LIMIT = re.compile(
    r"(?P<name>[a-z]+)\s*(?P<sign><=?)\s*"
    r"(?P<value>\d{1,15}(?:\.\d{0,20})?(?:e[+-]?\d{1,2})?)\s*(?P<unit>[A-Za-z%]*)"
)
_FORM = "expected limits such as size<2.8MB, loss<0.5pp, latency<20ms"
_DECIMAL_COMMA = re.compile(r"[^,]*\d\s*,\s*\d[^,]*")


def parse_budget(text: str) -> Budget:
    """Parse limits that are separated by commas: `size<2.8MB, loss<0.5pp, latency<=20ms`.

    Raises:
        ConfigError: there is no limit, one is unknown, not positive (`loss<=0pp` may be) or there twice, or a
            unit is missing.
    """
    found: dict[str, Any] = {}
    for part in _parts(text):
        match = _LIMIT.fullmatch(part)
        if match is None:
            raise ConfigError(f"{part!r} is no limit, which is a name, < or <=, a number and a unit: {_FORM}")
        name, units = match["name"], _UNITS.get(match["name"])
        if units is None:
            raise ConfigError(f"{part!r}: there is no limit {name!r}: {_FORM}")
        if match["unit"] not in units:
            raise ConfigError(f"{part!r}: expected {_expected_unit(name, units)} after the number")
        field = _FIELDS.get(name, name)
        if field in found:
            raise ConfigError(f"{part!r}: there is a limit of {name} before it")
        # Rounded: 2.3 * 1e6 is less than 2,300,000.
        found[field] = float(f"{float(match['value']) * units[match['unit']]:.15g}")
        if not (found[field] > 0 or (name == "loss" and match["sign"] == "<=" and float(match["value"]) == 0)):
            raise ConfigError(f"{part!r}: expected more than 0")
        if name != "loss":
            found[f"{name}_unit"] = match["unit"]
        if match["sign"] == "<=":
            found["reachable"] = (*found.get("reachable", ()), name)
    return Budget(**found)


def _parts(text: str) -> list[str]:
    """Return the limits of a budget as texts."""
    if match := _DECIMAL_COMMA.search(text):
        told = match[0].strip()
        raise ConfigError(f"{told!r}: commas separate limits: expected a point in the number, such as 3.5")
    parts = [part.strip() for part in text.split(",")]
    if "" in parts:
        where = (
            f"{text.strip()!r}: nothing stands before or after a comma" if len(parts) > 1 else "no limit is given"
        )
        raise ConfigError(f"{where}: {_FORM}")
    return parts


def _expected_unit(name: str, units: Collection[str]) -> str:
    if name == "loss":
        return "the unit pp, percentage points of the score,"
    return f"one of the units {', '.join(units)}"
