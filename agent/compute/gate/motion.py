"""The motion gate: decides for each frame whether to infer, on which part, and how complex it is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from msgspec import Struct

from agent.compute.gate.background import Background
from agent.compute.track.association import overlap
from agent.config.stream import GateConfig
from agent.types import Box, Image

_EASY_SIDE = 0.25
"""Objects with a side of at least this share of the frame's are the least complex."""

_PADDING = 1.4
"""Ratio of the crop's side to the regions', for the context that detectors need."""

_CROP_MIN, _CROP_MAX = 0.25, 0.7
"""Smallest crop, and largest that saves enough, as shares of the frame's sides."""

_GRID = 16
"""Crops snap to this fraction of the frame, so that small movements do not shift them."""


def complexity(boxes: Sequence[Box]) -> float:
    """Estimate how complex a picture is, 0 (nothing, or one near object) to 1 (many small ones everywhere).

    `0.5 * smallness + 0.3 * number + 0.2 * spread`: smallness is 0 if the smallest object has a side of a
    quarter of the frame and 1 for a point; number is 1 - 1/n; spread is the share of the frame that their hull
    covers. It is a rule of thumb that orders pictures.
    """
    if not boxes:
        return 0.0
    smallest = min(math.sqrt(max(0.0, (x1 - x0) * (y1 - y0))) for x0, y0, x1, y1 in boxes)
    smallness = 1.0 - min(1.0, smallest / _EASY_SIDE)
    x0, y0, x1, y1 = hull(boxes)
    spread = min(1.0, max(0.0, (x1 - x0) * (y1 - y0)))
    return 0.5 * smallness + 0.3 * (1.0 - 1.0 / len(boxes)) + 0.2 * spread


def crop_around(boxes: Sequence[Box]) -> Box | None:
    """Return the part of the frame that holds the boxes with some context, in the frame's aspect.

    Returns:
        A box inside the frame; None if there are no boxes or the part would not be clearly smaller.
    """
    if not boxes:
        return None
    x0, y0, x1, y1 = hull(boxes)
    side = max(_CROP_MIN, _PADDING * max(x1 - x0, y1 - y0))
    # One step more than needed, because snapping may shift the corner by up to one.
    side = (math.ceil(side * _GRID) + 1) / _GRID
    if side > _CROP_MAX:
        return None
    left, top = _corner((x0 + x1) / 2, side), _corner((y0 + y1) / 2, side)
    return (left, top, left + side, top + side)


def hull(boxes: Sequence[Box]) -> Box:
    """Return the smallest box around all; at least one box is needed."""
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
    """Decision on one picture.

    Attributes:
        open: whether to infer.
        reason: `first` picture of this size, `motion`, a `track` moves, `check` of a stationary track, `hold`
            after motion, `keep-alive`, gate `off`; or `still`: closed.
        complexity: 0..1, see `complexity`; 1 if unknown (`first`, `keep-alive`, `off`).
        regions: that move, largest first.
        crop: part to infer; None: the whole frame.
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
        """Decide on one picture.

        Args:
            image: H×W×3 uint8, any size; a new size is learned anew.
            now_ns: capture time, ns of a monotonic clock.
            watching: a track needs each picture: do not close.
            check: a stationary track needs an inference: open for this picture.
            keep: boxes that a crop must hold besides moving regions.
            resting: boxes that a crop must hold only if something moves in them.
        """
        if not self._config.motion:
            return _OFF
        regions = self._moving(image, now_ns, watching)
        if regions is None:
            decision = _FIRST
        elif (reason := self._reason(regions, now_ns, watching=watching, check=check)) is None:
            decision = _KEEP_ALIVE if now_ns - self._opened_ns >= self._idle_ns else _STILL
        else:
            near = [box for box in resting if any(overlap(box, region) > 0.0 for region in regions)]
            crop = self._crop((*regions, *keep, *near), now_ns)
            decision = GateDecision(True, reason, complexity((*regions, *keep, *resting)), regions, crop)
        if decision.open:
            self._opened_ns = now_ns
            if decision.crop is None:
                self._whole_ns = now_ns
        return decision

    def _moving(self, image: Image, now_ns: int, watching: bool) -> tuple[Box, ...] | None:
        """Return the moving regions; None for the first picture of its size."""
        dt_s, self._before_ns = (now_ns - self._before_ns) / 1e9, now_ns
        if not self._background.fits(image):
            self._background.learn(image)
            return None
        regions = self._background.moving(image, dt_s, tracked=watching)
        if regions:
            self._moved_ns = now_ns
        return regions

    def _reason(self, regions: tuple[Box, ...], now_ns: int, *, watching: bool, check: bool) -> Reason | None:
        """Return the reason to infer; None: nothing moves, and no track needs it."""
        if regions:
            return "motion"
        if watching:
            return "track"
        if check:
            return "check"
        return "hold" if now_ns - self._moved_ns < self._hold_ns else None

    def _crop(self, boxes: Sequence[Box], now_ns: int) -> Box | None:
        """Return the crop; None too if the whole frame was not inferred for long."""
        if not self._config.crop or now_ns - self._whole_ns >= self._idle_ns:
            return None
        return crop_around(boxes)
