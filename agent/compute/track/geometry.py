"""Plane geometry of the picture: distances to lines and polygons, sides and crossings. x to the right, y down."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence

from agent.types import Box, Point

_EDGE = 1e-6


def foot_of(box: Box) -> Point:
    """Return where a box stands: the middle of its lower edge, clipped to the inside of the frame.

    So it is never on the end of a line, or on the side of a polygon, that is drawn along the frame's edge.
    """
    return _inside((box[0] + box[2]) / 2), _inside(box[3])


def _inside(value: float) -> float:
    return min(1.0 - _EDGE, max(_EDGE, value))


def turn(a: Point, b: Point, c: Point) -> float:
    """Return a positive number if c lies to the right of who goes from a to b, 0 on the line through both."""
    return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])


def sides_of(points: Sequence[Point], *, closed: bool = False) -> Iterator[tuple[Point, Point]]:
    """Yield the sides of a polyline; of a polygon with the one from its last corner to its first."""
    yield from itertools.pairwise(points)
    if closed:
        yield points[-1], points[0]


def holds(polygon: Sequence[Point], point: Point) -> bool:
    """Return True if a point lies inside a polygon, by the even-odd rule; some of the border counts as inside."""
    x, y = point
    inside = False
    for a, b in sides_of(polygon, closed=True):
        if (a[1] > y) != (b[1] > y) and x < a[0] + (y - a[1]) / (b[1] - a[1]) * (b[0] - a[0]):
            inside = not inside
    return inside


def distance(sides: Iterable[tuple[Point, Point]], point: Point, unit: Point) -> float:
    """Return the distance from a point to the nearest side, in units that may differ in x and y."""
    px, py = point
    ux, uy = unit
    best = math.inf
    for (ax, ay), (bx, by) in sides:
        dx, dy = (bx - ax) / ux, (by - ay) / uy
        ex, ey = (px - ax) / ux, (py - ay) / uy
        length = dx * dx + dy * dy
        along = min(1.0, max(0.0, (dx * ex + dy * ey) / length)) if length > 0.0 else 0.0
        best = min(best, math.hypot(ex - along * dx, ey - along * dy))
    return best


def net_crossings(points: Sequence[Point], start: Point, end: Point) -> int:
    """Return how often a straight step crosses a polyline to its right-hand side, less the crossings to its left.

    A point on the line counts as left of it, and a corner belongs to one of its two sides: over the steps of a
    path no crossing is counted twice or missed.
    """
    if start == end:
        return 0
    count, (low, high) = 0, sorted((start, end))  # the way back crosses the same corners
    for a, b in sides_of(points):
        left, right = turn(a, b, start) > 0.0, turn(a, b, end) > 0.0
        if left != right and (turn(low, high, a) > 0.0) != (turn(low, high, b) > 0.0):
            count += 1 if right else -1
    return count
