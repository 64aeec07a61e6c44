"""The tables of a stream that say which objects count, and where they are counted when they pass."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from agent.config.values import NAME, Name, Unit
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
