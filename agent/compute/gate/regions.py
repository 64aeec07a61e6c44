"""Moving regions: how hard they make the picture, and which part of it holds them all. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence

from agent.messages import Box

_EASY_SIDE = 0.25
"""A thing whose side is this share of the frame's is no harder than a larger one."""

_PADDING = 1.4
"""The crop's side against the regions': context, which detectors need."""

_CROP_MIN, _CROP_MAX = 0.25, 0.7
"""Smallest crop, as a share of the frame's sides, and the largest that is worth it."""

_GRID = 16
"""Crops snap to this fraction of the frame, so that they rest while their content moves a little."""


def complexity(boxes: Sequence[Box]) -> float:
    """How hard the picture looks, 0 (nothing, or one near thing) to 1 (many, small, everywhere).

    `0.5 * smallness + 0.3 * number + 0.2 * spread`: smallness is 0 for a smallest thing with a side of a quarter
    of the frame and 1 for a point; number is 1 - 1/n; spread is the share of the frame that their hull covers.
    A rule of thumb: it orders pictures and promises no scale.
    """
    if not boxes:
        return 0.0
    smallest = min(math.sqrt(max(0.0, (x1 - x0) * (y1 - y0))) for x0, y0, x1, y1 in boxes)
    smallness = 1.0 - min(1.0, smallest / _EASY_SIDE)
    x0, y0, x1, y1 = hull(boxes)
    spread = min(1.0, max(0.0, (x1 - x0) * (y1 - y0)))
    return 0.5 * smallness + 0.3 * (1.0 - 1.0 / len(boxes)) + 0.2 * spread


def crop_around(boxes: Sequence[Box]) -> Box | None:
    """The part of the frame that holds the boxes with some context, in the frame's aspect.

    Returns:
        A box inside the frame, or None when there are no boxes or the part would not be clearly smaller.
    """
    if not boxes:
        return None
    x0, y0, x1, y1 = hull(boxes)
    side = max(_CROP_MIN, _PADDING * max(x1 - x0, y1 - y0))
    # One step more than it needs: snapping the corner may shift it by up to one.
    side = (math.ceil(side * _GRID) + 1) / _GRID
    if side > _CROP_MAX:
        return None
    left, top = _corner((x0 + x1) / 2, side), _corner((y0 + y1) / 2, side)
    return (left, top, left + side, top + side)


def hull(boxes: Sequence[Box]) -> Box:
    """The smallest box around all; at least one box is needed."""
    return (
        min(box[0] for box in boxes),
        min(box[1] for box in boxes),
        max(box[2] for box in boxes),
        max(box[3] for box in boxes),
    )


def _corner(centre: float, side: float) -> float:
    return min(1.0 - side, max(0.0, math.floor((centre - side / 2) * _GRID + 0.5) / _GRID))
