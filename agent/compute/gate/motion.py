"""The motion gate: decides for each frame whether to infer, on which part, and how complex it is.

It learns the camera's background. Each picture is halved until it is small, converted to grey and blurred; of a
decoder's picture only the brightness is read. A pixel moves if it differs from a running average by more than its
usual noise. Three kinds of change are not movement: noise and flicker (learned per pixel), slow drift (averaged
away), and light (one factor for the whole picture, or learned anew at once).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Literal

import cv2
import numpy as np
from msgspec import Struct

from agent.compute.track.state import overlap
from agent.config import GateConfig
from agent.config.places import Polygon
from agent.types import WHOLE, Box, Image, Luma

_WIDTH = 240
"""Greatest width of the small picture, px; it has at least half of that."""
_TALL = 1000
"""From so many rows on every second row is read: half the memory traffic, with enough detail."""
_SETTLE_S, _SETTLE_TRACKED_S = 5.0, 10.0
"""Time constants at which a still object becomes background: shorter while the model finds nothing, s."""
_NOISE_S = 20.0
"""Time constant at which a pixel's usual noise is learned, s."""
_NOISE_MAX = 8
"""Greatest noise of a pixel, grey levels, so that busy places do not become blind."""
_NOISE_FACTOR = 4.0
"""Mean absolute deviations above which a difference is movement: 3.2 sigma of a Gaussian."""
_RELEARN_SHARE, _RELEARN_GAIN, _RELEARN_STILL = 0.2, 1.2, 0.1
"""The light has changed if so much of the picture differs, or by such a factor, and so little of that from the
picture before."""
_GAIN_MAX = 3.0
_GAIN_STRIDE = 5
_REGIONS_MAX = 32
_FAR = 100_000.0
"""Coordinates of masks that reach beyond the picture are clipped to this, px."""
_SAME = np.arange(256, dtype=np.uint8)
_EXPANDED = np.clip(np.rint((np.arange(256.0) - 16.0) * 255.0 / 219.0), 0, 255).astype(np.uint8)
"""Brightness of 16 to 235 as 0 to 255, as a picture in colours has it."""
_CLOSE = np.ones((5, 5), np.uint8)
"""Joins the parts of one person."""


class Background:
    """Learns one camera's background. Its memory is allocated for the first picture of a size."""

    def __init__(self, sensitivity: float, min_area: float, masks: Sequence[Polygon] = ()) -> None:
        """Start without a background.

        Args:
            sensitivity: 0 for differences of 32 grey levels to 1 for 3.
            min_area: least share of the picture of a region.
            masks: polygons, fractions of the picture, in which nothing moves.
        """
        self._floor = 32.0 * 0.1**sensitivity
        self._min_area, self._masks = min_area, tuple(masks)
        self._counts: Image | None = None
        self._size = 0
        self._shape: tuple[int, ...] = ()

    def fits(self, picture: Image | Luma) -> bool:
        """Return True if the background has this picture's size and kind."""
        return _pixels(picture).shape == self._shape

    def learn(self, picture: Image | Luma) -> None:
        """Forget everything and take this picture as the background."""
        self._shape = _pixels(picture).shape
        self._rows = 2 if self._shape[0] >= _TALL else 1
        self._halves = self._memory(self._shape[2:])
        size = self._halves[-1].shape[:2] if self._halves else self._shape[:2]
        height, width = size
        self._raw, self._grey, self._before = (np.empty(size, np.uint8) for _ in range(3))
        self._expected, self._limit, self._diff, self._mask = (np.empty(size, np.uint8) for _ in range(4))
        self._mean = np.empty(size, np.float32)
        self._noise = np.full(size, 1.0, np.float32)
        self._min_pixels = max(4.0, self._min_area * height * width)
        self._apply_masks()
        self._shrink(picture)
        self._restart()

    def _memory(self, channels: tuple[int, ...]) -> list[Image]:
        """Return memory for the halved pictures; the last one is small."""
        halves: list[Image] = []
        height, width = -(-self._shape[0] // self._rows), self._shape[1]
        while width > _WIDTH and height > 1:
            height, width = height // 2, width // 2
            halves.append(np.empty((height, width, *channels), np.uint8))
        return halves

    def set_masks(self, masks: Sequence[Polygon]) -> None:
        """Use other masks from the next picture on."""
        self._masks = tuple(masks)
        if self._shape:
            self._apply_masks()

    def _apply_masks(self) -> None:
        """Set which pixels count, 255 each, and how many; None: all."""
        height, width = self._mask.shape
        self._counts, self._size = None, self._mask.size
        if self._masks:
            self._counts = np.full((height, width), 255, np.uint8)
            scale = np.array((width, height), np.float64)
            for mask in self._masks:  # one by one: where two filled together overlap, pixels would count again
                corners = np.clip(np.rint(np.array(mask) * scale), -_FAR, _FAR).astype(np.int32)
                cv2.fillPoly(self._counts, [corners], (0,))
            self._size = max(1, cv2.countNonZero(self._counts))

    def moving(self, picture: Image | Luma, dt_s: float, *, tracked: bool) -> tuple[Box, ...]:
        """Return the moving regions, largest first, and learn from this picture, which has the size learned.

        With `tracked`, the movement of what the model has found is not learned as noise.
        """
        self._shrink(picture)
        gain = self._gain()
        self._compare(gain)
        changed = cv2.countNonZero(self._mask)
        regions = tuple(self._regions()) if changed >= self._min_pixels else ()
        if self._light_changed(changed, gain):
            self._restart()
        else:
            self._update(dt_s, tracked)
        self._grey, self._before = self._before, self._grey
        return regions

    def show(self, picture: Image | Luma) -> None:
        """Only make the small picture; learn the background if this picture has another size or kind."""
        if not self.fits(picture):
            self.learn(picture)
            return
        self._shrink(picture)
        np.copyto(self._before, self._grey)

    def view(self, picture: Image | Luma) -> tuple[Image, Image]:
        """Return the newest picture small and grey, and with twice as many columns or more; `picture` is itself.

        The second one has the channels of the picture, or its brightness alone. Both are valid until the next
        picture.
        """
        detail = self._halves[-2] if len(self._halves) > 1 else _pixels(picture)
        if isinstance(picture, Luma) and not picture.full_range:
            detail = np.asarray(cv2.LUT(detail, _EXPANDED), np.uint8)
        return self._before, detail

    def _shrink(self, picture: Image | Luma) -> None:
        small = self._halve(_pixels(picture), self._halves)
        if isinstance(picture, Luma):
            cv2.LUT(small, _SAME if picture.full_range else _EXPANDED, dst=self._raw)
        else:  # the order of the channels does not matter for differences
            cv2.cvtColor(small, cv2.COLOR_BGR2GRAY, dst=self._raw)
        cv2.blur(self._raw, (3, 3), dst=self._grey)

    def _halve(self, picture: Image, halves: Sequence[Image]) -> Image:
        """Halve a picture exactly: OpenCV averages only 2×2 pixels with vector instructions."""
        picture = picture[:: self._rows] if self._rows > 1 else picture
        for half in halves:
            height, width = half.shape[:2]
            whole = picture[: 2 * height, : 2 * width]
            cv2.resize(whole, (width, height), dst=half, interpolation=cv2.INTER_AREA)
            picture = half
        return picture

    def _gain(self) -> float:
        """Return the factor of the light: the median over a grid, which a moving object does not change."""
        now = self._grey[::_GAIN_STRIDE, ::_GAIN_STRIDE].ravel()
        # Deep shadow has no light to compare.
        usual = np.maximum(self._mean[::_GAIN_STRIDE, ::_GAIN_STRIDE].ravel(), 8.0)
        ratio = np.maximum(now, 8.0) / usual
        middle = ratio.size // 2
        gain = float(np.partition(ratio, middle)[middle])
        return min(_GAIN_MAX, max(1.0 / _GAIN_MAX, gain))

    def _compare(self, gain: float) -> None:
        cv2.convertScaleAbs(self._mean, dst=self._expected, alpha=gain)
        cv2.absdiff(self._grey, self._expected, dst=self._diff)
        # A brighter picture is a noisier one.
        factor = _NOISE_FACTOR * max(1.0, gain)
        cv2.convertScaleAbs(self._noise, dst=self._limit, alpha=factor, beta=self._floor)
        cv2.compare(self._diff, self._limit, cv2.CMP_GT, dst=self._mask)
        if self._counts is not None:
            cv2.bitwise_and(self._mask, self._counts, dst=self._mask)

    def _regions(self) -> Iterator[Box]:
        height, width = self._mask.shape
        joined = cv2.morphologyEx(self._mask, cv2.MORPH_CLOSE, _CLOSE)
        found = []
        for contour in cv2.findContours(joined, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)[0]:
            x, y, w, h = cv2.boundingRect(contour)
            pixels = cv2.countNonZero(joined[y : y + h, x : x + w])
            if pixels >= self._min_pixels:
                found.append((pixels, (x / width, y / height, (x + w) / width, (y + h) / height)))
        found.sort(reverse=True)
        return (box for _, box in found[:_REGIONS_MAX])

    def _light_changed(self, changed: int, gain: float) -> bool:
        """Return True if much differs but nothing moves: a lamp, a cloud, the exposure, or a turned camera."""
        if changed < _RELEARN_SHARE * self._size and 1 / _RELEARN_GAIN < gain < _RELEARN_GAIN:
            return False
        # Both are free until the next picture; the difference and its mask are still needed for learning.
        step, stepped = self._expected, self._raw
        cv2.absdiff(self._grey, self._before, dst=step)
        cv2.compare(step, self._limit, cv2.CMP_GT, dst=stepped)
        if self._counts is not None:
            cv2.bitwise_and(stepped, self._counts, dst=stepped)
        return cv2.countNonZero(stepped) <= _RELEARN_STILL * changed

    def _restart(self) -> None:
        np.copyto(self._mean, self._grey)
        np.copyto(self._before, self._grey)
        self._pictures = 1

    def _update(self, dt_s: float, tracked: bool) -> None:
        """Update the running averages; the first pictures count equally, against the noise of one."""
        self._pictures += 1
        young = 1.0 / self._pictures
        settle_s = _SETTLE_TRACKED_S if tracked else _SETTLE_S
        cv2.accumulateWeighted(self._grey, self._mean, max(young, _weight(dt_s, settle_s)))
        cv2.threshold(self._diff, _NOISE_MAX, 0, cv2.THRESH_TRUNC, dst=self._diff)
        still = cv2.bitwise_not(self._mask, dst=self._mask) if tracked else None
        cv2.accumulateWeighted(self._diff, self._noise, max(young, _weight(dt_s, _NOISE_S)), mask=still)


def _pixels(picture: Image | Luma) -> Image:
    return picture.pixels if isinstance(picture, Luma) else picture


def _weight(dt_s: float, constant_s: float) -> float:
    """Return the weight of the newest value in an average with this time constant, at any frame rate."""
    return 1.0 - math.exp(-max(0.0, dt_s) / constant_s)


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

    It lies inside the frame. None: there are no boxes, or the part would not be clearly smaller.
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


OFF = GateDecision(True, "off")
"""Decision of a gate that is off, for each picture."""
_FIRST = GateDecision(True, "first")
_KEEP_ALIVE = GateDecision(True, "keep-alive")
_STILL = GateDecision(False, "still", 0.0)
_LONG_AGO = -(1 << 62)


class MotionGate:
    """Decides for one stream which pictures are worth an inference. For one thread."""

    def __init__(self, config: GateConfig, shown: Box = WHOLE) -> None:
        """Start closed. `shown` is the part of the frame that the pictures show; masks are of the frame."""
        self._config, self._shown = config, shown
        self._background = Background(config.sensitivity, config.min_area, _within(config.masks_in_use, shown))
        self._hold_ns = round(config.hold_s * 1e9)
        self._idle_ns = round(config.max_idle_s * 1e9)
        self._before_ns = self._moved_ns = self._opened_ns = self._whole_ns = _LONG_AGO

    def set_masks(self, masks: Sequence[Polygon]) -> None:
        """Use other masks, polygons in the frame, from the next picture on."""
        self._background.set_masks(_within(masks, self._shown))

    def evaluate(
        self,
        picture: Image | Luma,
        now_ns: int,
        *,
        watching: bool,
        check: bool = False,
        keep: Sequence[Box] = (),
        resting: Sequence[Box] = (),
    ) -> GateDecision:
        """Decide whether to infer on one picture, and on which part of it.

        Args:
            picture: H×W×3 uint8, or its brightness; one of another size or kind replaces the background.
            now_ns: capture time, ns of a monotonic clock.
            watching: infer on every picture, because a moving track needs it.
            check: infer on this picture, because a stationary track has to be confirmed.
            keep: boxes that a crop must hold besides moving regions.
            resting: boxes that a crop must hold only if something moves in them.
        """
        if not self._config.motion:
            return OFF
        regions = self._moving(picture, now_ns, watching)
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

    def view(self, picture: Image | Luma) -> tuple[Image, Image]:
        """Return the picture that was evaluated last in two sizes, see `Background.view`."""
        if not self._config.motion:
            self._background.show(picture)
        return self._background.view(picture)

    def _moving(self, picture: Image | Luma, now_ns: int, watching: bool) -> tuple[Box, ...] | None:
        """Return the moving regions; None for the first picture of its size."""
        dt_s, self._before_ns = (now_ns - self._before_ns) / 1e9, now_ns
        if not self._background.fits(picture):
            self._background.learn(picture)
            return None
        regions = self._background.moving(picture, dt_s, tracked=watching)
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


def _within(masks: Sequence[Polygon], part: Box) -> tuple[Polygon, ...]:
    """Return polygons as fractions of a part of the frame; they may reach beyond it."""
    x0, y0, x1, y1 = part
    return tuple(tuple(((x - x0) / (x1 - x0), (y - y0) / (y1 - y0)) for x, y in mask) for mask in masks)
