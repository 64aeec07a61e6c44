"""The motion gate: is there anything to look at? Frames in, a `GateDecision` out: whether to infer, and why."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from msgspec import Struct

from agent.compute.gate.background import Background
from agent.compute.track.association import overlap
from agent.config.stream import GateConfig
from agent.types import Box, Image

# Moving regions: how hard they make the picture, and which part of it holds them all. Pure.

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


Reason = Literal["first", "motion", "track", "check", "hold", "keep-alive", "off", "still"]


class GateDecision(Struct, frozen=True):
    """What the gate made of one picture.

    Attributes:
        open: infer.
        reason: `first` picture of this size, `motion`, a `track` moves, `check` of a stationary track, `hold`
            after motion, `keep-alive`, gate `off`; or `still`: closed.
        complexity: 0..1, see `regions.complexity`; 1 where nothing is known (`first`, `keep-alive`, `off`).
        regions: what moves, largest first.
        crop: infer on this part only; None: on the whole frame.
    """

    open: bool
    reason: Reason
    complexity: float = 1.0
    regions: tuple[Box, ...] = ()
    crop: Box | None = None


_OFF = GateDecision(True, "off")
_FIRST = GateDecision(True, "first")
_KEEP_ALIVE = GateDecision(True, "keep-alive")
_STILL = GateDecision(False, "still", 0.0)
_LONG_AGO = -(1 << 62)


class MotionGate:
    """Decides for one stream which pictures are worth an inference. For one thread."""

    def __init__(self, config: GateConfig) -> None:
        self._config = config
        self._background = Background(config.sensitivity, config.min_area)
        self._hold_ns = round(config.hold_s * 1e9)
        self._idle_ns = round(config.max_idle_s * 1e9)
        self._before_ns = self._moved_ns = self._opened_ns = self._whole_ns = _LONG_AGO

    def evaluate(
        self,
        image: Image,
        now_ns: int,
        *,
        watching: bool,
        check: bool = False,
        keep: Sequence[Box] = (),
        resting: Sequence[Box] = (),
    ) -> GateDecision:
        """Look at one picture.

        Args:
            image: H×W×3 uint8, any size; another size than before is learned anew.
            now_ns: when it was captured, ns on any clock that does not jump back.
            watching: something is followed that needs each picture: do not close.
            check: something stationary is to be looked at again: open for this picture.
            keep: boxes that a crop must hold besides what moves.
            resting: boxes that a crop must hold only where something moves in them.
        """
        if not self._config.motion:
            return _OFF
        regions = self._moving(image, now_ns, watching)
        if regions is None:
            sight = _FIRST
        elif (reason := self._reason(regions, now_ns, watching=watching, check=check)) is None:
            sight = _KEEP_ALIVE if now_ns - self._opened_ns >= self._idle_ns else _STILL
        else:
            near = [box for box in resting if any(overlap(box, region) > 0.0 for region in regions)]
            crop = self._crop((*regions, *keep, *near), now_ns)
            sight = GateDecision(True, reason, complexity((*regions, *keep, *resting)), regions, crop)
        if sight.open:
            self._opened_ns = now_ns
            if sight.crop is None:
                self._whole_ns = now_ns
        return sight

    def _moving(self, image: Image, now_ns: int, watching: bool) -> tuple[Box, ...] | None:
        """None for the first picture of its size."""
        dt_s, self._before_ns = (now_ns - self._before_ns) / 1e9, now_ns
        if not self._background.fits(image):
            self._background.learn(image)
            return None
        regions = self._background.moving(image, dt_s, tracked=watching)
        if regions:
            self._moved_ns = now_ns
        return regions

    def _reason(self, regions: tuple[Box, ...], now_ns: int, *, watching: bool, check: bool) -> Reason | None:
        """Return why the picture is worth a look; None: nothing moves, and nothing is followed."""
        if regions:
            return "motion"
        if watching:
            return "track"
        if check:
            return "check"
        return "hold" if now_ns - self._moved_ns < self._hold_ns else None

    def _crop(self, boxes: Sequence[Box], now_ns: int) -> Box | None:
        """None too when the whole frame has not been looked at for long: a still thing may be elsewhere."""
        if not self._config.crop or now_ns - self._whole_ns >= self._idle_ns:
            return None
        return crop_around(boxes)
