"""Checks of polygons that a user has drawn: zones and privacy masks."""

from __future__ import annotations

import math
from collections.abc import Sequence

from agent.types import Point

_LEAST_AREA = 1e-6
"""Least area of a polygon: one pixel of a 1000×1000 picture."""


def polygon_problem(polygon: Sequence[Point]) -> str:
    """Return what is wrong with a polygon, whose corners are fractions 0..1 of the frame; empty: nothing is."""
    if len(polygon) < 3:
        return f"the polygon has {len(polygon)} corners: give at least three, such as [[0, 0], [1, 0], [1, 1]]"
    for x, y in polygon:
        if not (0.0 <= x <= 1.0 and 0.0 <= y <= 1.0):
            size = "; divide pixels by the picture's width and height" if max(x, y) > 1.0 else ""
            return f"corner [{x:g}, {y:g}] lies outside the frame: corners are fractions 0 to 1{size}"
    if crossing := _crossing(polygon):
        return (
            f"the sides from corner {crossing[0]} and from corner {crossing[1]} cross: list the corners in order"
        )
    if abs(_area(polygon)) < _LEAST_AREA:
        return "the polygon has no area: its corners lie on one line; move one of them"
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
