"""Zones: named polygons in the picture, and which of them a box stands in."""

from __future__ import annotations

import math
from collections.abc import Container, Sequence

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from agent.config import ZoneConfig
from agent.errors import ConfigError
from agent.types import Box, Point

_MARGIN = 0.01
"""Distance outside a zone at which a box leaves it, as a share of the frame; without it borders would flicker."""
_LEAST_AREA = 1e-6
"""Least area of a polygon: one pixel of a 1000×1000 picture."""


class _Zone(Struct, frozen=True):
    """A zone prepared for tests: corners as N×1×2 float32, their bounds, and the labels that count."""

    name: str
    corners: NDArray[np.float32]
    left: float
    top: float
    right: float
    bottom: float
    labels: frozenset[str]


class Zones:
    """The enabled zones of one stream."""

    def __init__(self, zones: Sequence[ZoneConfig]) -> None:
        """Check and prepare the zones. Raises ConfigError as `check_zones`."""
        check_zones(zones)
        self._zones = tuple(_prepare(zone) for zone in zones if zone.enabled)

    def names_at(self, label: str, box: Box | None, held: Container[str] = ()) -> tuple[str, ...]:
        """Return the names of the zones that a box stands in, in config order. The border belongs to the zone.

        Args:
            label: its class; a zone with labels counts only those.
            box: stands where the middle of its lower edge is; None stands nowhere.
            held: zones that it stood in before, which it leaves only at some distance.
        """
        if not self._zones or box is None:
            return ()
        # Imported here: checking a configuration of sound must not load it.
        import cv2

        x, y = _inside((box[0] + box[2]) / 2), _inside(box[3])
        return tuple(
            zone.name
            for zone in self._zones
            if zone.left <= x <= zone.right
            and zone.top <= y <= zone.bottom
            and (not zone.labels or label in zone.labels)
            and cv2.pointPolygonTest(zone.corners, (x, y), True) >= (-_MARGIN if zone.name in held else 0.0)
        )


def describe_zones(zones: Sequence[ZoneConfig]) -> str:
    """Return names and corners of zones as text that differs if they were drawn anew; empty: there are none."""
    return "; ".join(f"{zone.name} {list(map(list, zone.polygon))}" for zone in zones)


def check_zones(zones: Sequence[ZoneConfig]) -> None:
    """Check zones.

    Raises:
        ConfigError: two zones have one name, or a polygon has fewer than three corners, corners outside the
            frame, no area, or crosses itself. The error names the zone.
    """
    names: set[str] = set()
    for zone in zones:
        if zone.name in names:
            raise ConfigError(f"two zones are named {zone.name!r}: give each zone of a stream its own name")
        names.add(zone.name)
        if problem := _problem(zone.polygon):
            raise ConfigError(f"zone {zone.name!r}: {problem}")


def _inside(value: float) -> float:
    """Clip a coordinate: a box that reaches below the frame stands on its lower edge."""
    return min(1.0, max(0.0, value))


def _prepare(zone: ZoneConfig) -> _Zone:
    corners = np.array(zone.polygon, np.float32).reshape(-1, 1, 2)
    left, top = (float(v) - _MARGIN for v in corners.min(axis=(0, 1)))
    right, bottom = (float(v) + _MARGIN for v in corners.max(axis=(0, 1)))
    return _Zone(zone.name, corners, left, top, right, bottom, frozenset(zone.labels))


def _problem(polygon: Sequence[Point]) -> str:
    if len(polygon) < 3:
        return f"`polygon` has {len(polygon)} corners: give at least three, such as [[0, 0], [1, 0], [1, 1]]"
    for x, y in polygon:
        if not (0.0 <= x <= 1.0 and 0.0 <= y <= 1.0):
            size = "; divide pixels by the picture's width and height" if max(x, y) > 1.0 else ""
            return f"corner [{x:g}, {y:g}] lies outside the frame: corners are fractions 0 to 1{size}"
    if crossing := _crossing(polygon):
        return (
            f"the sides from corner {crossing[0]} and from corner {crossing[1]} cross: list the corners in order"
        )
    if abs(_area(polygon)) < _LEAST_AREA:
        return "`polygon` has no area: its corners lie on one line; move one of them"
    return ""


def _area(polygon: Sequence[Point]) -> float:
    following = (*polygon[1:], polygon[0])
    return math.fsum(a[0] * b[1] - b[0] * a[1] for a, b in zip(polygon, following, strict=True)) / 2


def _crossing(polygon: Sequence[Point]) -> tuple[int, int] | None:
    """Return the numbers (from 1) of the first corners of two sides that cross. Touching is allowed."""
    count = len(polygon)
    sides = [(polygon[i], polygon[(i + 1) % count]) for i in range(count)]
    for i in range(count):
        for j in range(i + 2, count):
            if (j + 1) % count != i and _cross(*sides[i], *sides[j]):
                return i + 1, j + 1
    return None


def _cross(a: Point, b: Point, c: Point, d: Point) -> bool:
    return _turn(a, b, c) * _turn(a, b, d) < 0.0 and _turn(c, d, a) * _turn(c, d, b) < 0.0


def _turn(a: Point, b: Point, c: Point) -> float:
    """Return a positive number if c lies left of the line from a to b, 0 on it."""
    return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])
