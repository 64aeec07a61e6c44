"""Tables of a stream that are drawn or that filter, and their checks: lines, filters, privacy masks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated

from msgspec import Meta, Struct

from agent.config.toml import NAME, Name, Unit
from agent.errors import ConfigError
from agent.types import Point

Polygon = tuple[Point, ...]
"""At least three corners, fractions 0..1 of the frame."""
_Ratio = Annotated[float, Meta(gt=0.0, le=1000.0)]


class LineConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """`[[streams.NAME.lines]]`: a line in the frame whose crossings are counted.

    Attributes:
        name: in events and topics.
        points: two or more, fractions 0..1 of the frame. Who crosses from the left hand to the right hand of
            somebody who walks along it, from the first point to the last, goes `in`; the other way is `out`.
        labels: only these are counted; empty: all.
        enabled: whether crossings are counted.
    """

    name: Name
    points: tuple[Point, ...]
    labels: tuple[str, ...] = ()
    enabled: bool = True


class FilterConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """`[[streams.NAME.filters]]`: which detections of some labels count. Where several fit, all must let it pass.

    Attributes:
        labels: that it is for; empty: all.
        min_score: least score of a detection, in place of the stream's threshold; may be lower.
        start_score: least best score of a track before it is announced; one that was goes on from `min_score` on.
        min_area, max_area: share of the frame that the box covers.
        min_ratio, max_ratio: width of the box by its height, in pixels.
        masks: polygons; a detection whose box stands in one is ignored.
        name: by which commands switch it on and off; empty: they do not.
        enabled: whether it is used.
    """

    labels: tuple[str, ...] = ()
    min_score: Unit | None = None
    start_score: Unit | None = None
    min_area: Unit = 0.0
    max_area: Unit = 1.0
    min_ratio: _Ratio | None = None
    max_ratio: _Ratio | None = None
    masks: tuple[Polygon, ...] = ()
    name: Annotated[str, Meta(pattern=r"^([A-Za-z0-9][A-Za-z0-9_-]{0,62})?$", extra=NAME)] = ""
    enabled: bool = True


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
            return (
                f"corner [{x:g}, {y:g}] lies outside the frame: corners are fractions 0 to 1; divide pixels by "
                "the picture's width and height"
            )
    if len(set(polygon)) < len(polygon):
        return "two of its corners are at one place: list each corner once, the polygon closes by itself"
    if meeting := _meeting(list(pairwise((*polygon, polygon[0])))):
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
    if not (meeting := _meeting(list(pairwise(apart)))):
        return ""
    return f"its pieces {meeting[0]} and {meeting[1]} cross or touch: on which side something is would be unclear"


def _meeting(sides: Sequence[tuple[Point, Point]]) -> tuple[int, int] | None:
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


FACE, PERSON, FACE_MODEL, OBJECT_MODEL = "face", "person", "face", "nanodet"
"""Labels of faces and people, and the bundled models that find near faces, and all else that can be blurred."""
BLUR_VARIANTS = {FACE_MODEL: "", OBJECT_MODEL: "320"}
"""Sizes of these models: each picture is inferred."""


class PrivacyMask(Struct, frozen=True, forbid_unknown_fields=True):
    """`[[streams.NAME.privacy]]`: a polygon in the picture that nobody is to see: it is black.

    Attributes:
        name: for messages about it.
        polygon: at least three corners, fractions 0..1 of the frame.
    """

    name: Name
    polygon: tuple[Point, ...]


def check_masks(masks: Sequence[PrivacyMask]) -> None:
    """Check the masks of a stream.

    Raises:
        ConfigError: two have one name, or a polygon has fewer than three corners, corners outside the frame, no
            area, or crosses itself. The error names the mask.
    """
    names = set[str]()
    for number, mask in enumerate(masks):
        if mask.name in names:
            text = f"two masks are named {mask.name!r}: give each mask of a stream its own name"
            raise ConfigError(f"privacy: {text}", keys=("privacy", number, "name"))
        names.add(mask.name)
        if problem := polygon_problem(mask.polygon):
            raise ConfigError(f"privacy mask {mask.name!r}: {problem}", keys=("privacy", number, "polygon"))


def blur_models(labels: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Return the bundled models that find what is to be blurred, with the labels of each.

    The model of faces finds only near ones: of every person that the other one finds, the head is blurred, too.
    """
    if FACE not in labels:
        return {OBJECT_MODEL: tuple(labels)} if labels else {}
    others = (label for label in labels if label not in (FACE, PERSON))
    return {FACE_MODEL: (FACE,), OBJECT_MODEL: (PERSON, *others)}
