"""Checks of what a user has drawn: polygons, which are zones and privacy masks, and lines."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from agent.types import Point

_LEAST_AREA = 1e-6
"""Least area of a polygon: one pixel of a 1000×1000 picture."""
MOST_CORNERS = 100
"""Most corners of a polygon, and points of a line: every pair of sides is compared, and pictures are drawn."""
_EXACT = 1e-12
"""Areas below this are zero: coordinates are rounded."""


def polygon_problem(polygon: Sequence[Point]) -> str:
    """Return what is wrong with a polygon, whose corners are fractions 0..1 of the frame; empty: nothing is.

    Its sides may meet at common corners only: elsewhere it would be unclear what lies inside.
    """
    if len(polygon) < 3:
        return f"the polygon has {len(polygon)} corners: give at least three, such as [[0, 0], [1, 0], [1, 1]]"
    if len(polygon) > MOST_CORNERS:
        return f"the polygon has {len(polygon)} corners: give at most {MOST_CORNERS}"
    for x, y in polygon:
        if not (0.0 <= x <= 1.0 and 0.0 <= y <= 1.0):
            size = "; divide pixels by the picture's width and height" if max(x, y) > 1.0 else ""
            return f"corner [{x:g}, {y:g}] lies outside the frame: corners are fractions 0 to 1{size}"
    return _repeated(polygon) or _misshapen(polygon)


def _repeated(polygon: Sequence[Point]) -> str:
    first = dict[Point, int]()
    for number, (x, y) in enumerate(polygon, 1):
        same = first.setdefault((x, y), number)
        if same == 1 and number == len(polygon):
            return "its last corner repeats the first: leave it out, the polygon closes by itself"
        if same != number:
            return f"its corners {same} and {number} are at one place: list each corner once"
    return ""


def _misshapen(polygon: Sequence[Point]) -> str:
    far = max(polygon, key=lambda one: math.dist(polygon[0], one))
    if all(_turn(polygon[0], far, one) == 0.0 for one in polygon):
        return "the polygon has no area: its corners lie on one line; move one of them"
    if meeting := _meeting(polygon):
        return (
            f"the sides from corner {meeting[0]} and from corner {meeting[1]} cross or touch: list the corners "
            "in order, each side apart from the others"
        )
    if area(polygon) < _LEAST_AREA:
        return "the polygon is too small: it is less than a pixel of a picture of 1000×1000; make it larger"
    return ""


def area(polygon: Sequence[Point]) -> float:
    """Return the area of a polygon whose sides do not cross: its share of the frame, 0..1."""
    following = (*polygon[1:], polygon[0])
    twice = math.fsum(a[0] * b[1] - b[0] * a[1] for a, b in zip(polygon, following, strict=True))
    return abs(twice) / 2


def self_crossing(points: Sequence[Point]) -> str:
    """Return where an open line crosses or touches itself; empty: it does not. Its ends may be at one place."""
    apart = [one for number, one in enumerate(points) if not number or one != points[number - 1]]
    sides = list(pairwise(apart))
    if not (meeting := _meeting_of(sides)):
        return ""
    first, second = (
        f"[{a[0]:g}, {a[1]:g}] to [{b[0]:g}, {b[1]:g}]" for a, b in (sides[number - 1] for number in meeting)
    )
    return (
        f"its pieces from {first} and from {second} cross or touch: on which side something is would be unclear"
    )


def _meeting(polygon: Sequence[Point]) -> tuple[int, int] | None:
    """Return the numbers (from 1) of the first corners of two sides that share more than a common corner."""
    sides = list(pairwise((*polygon, polygon[0])))
    return _meeting_of(sides)


def _meeting_of(sides: Sequence[tuple[Point, Point]]) -> tuple[int, int] | None:
    """Return the numbers (from 1) of two sides of a path that share more than the corner at which they join."""
    count = len(sides)
    for i, (begin, end) in enumerate(sides):
        following = (i + 1) % count
        if sides[following][0] == end and _folds_back(begin, end, sides[following][1]):
            return i + 1, following + 1
        for j in range(i + 2, count):
            closes = sides[j][1] == begin  # the path ends where it began
            if not closes and _meet(begin, end, *sides[j]):
                return i + 1, j + 1
    return None


def _folds_back(a: Point, b: Point, c: Point) -> bool:
    """Return True if the way from b to c goes back on the way from a to b."""
    return _turn(a, b, c) == 0.0 and (b[0] - a[0]) * (c[0] - b[0]) + (b[1] - a[1]) * (c[1] - b[1]) < 0.0


def _meet(a: Point, b: Point, c: Point, d: Point) -> bool:
    """Return True if the line from a to b and the one from c to d have a point in common."""
    of_c, of_d, of_a, of_b = _turn(a, b, c), _turn(a, b, d), _turn(c, d, a), _turn(c, d, b)
    if of_c * of_d < 0.0 and of_a * of_b < 0.0:
        return True
    on_first = (turn == 0.0 and _is_between(a, b, one) for turn, one in ((of_c, c), (of_d, d)))
    on_second = (turn == 0.0 and _is_between(c, d, one) for turn, one in ((of_a, a), (of_b, b)))
    return any(on_first) or any(on_second)


def _is_between(a: Point, b: Point, c: Point) -> bool:
    """Return True if c, which is on the line through a and b, lies in the rectangle that they span."""
    return all(min(a[k], b[k]) - _EXACT <= c[k] <= max(a[k], b[k]) + _EXACT for k in (0, 1))


def _turn(a: Point, b: Point, c: Point) -> float:
    """Return a positive number if c lies left of the line from a to b, 0 on it."""
    area = (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])
    return area if abs(area) > _EXACT else 0.0
