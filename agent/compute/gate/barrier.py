"""A light barrier in the picture: tells when a part reaches a region of it, and if the part is wholly in view.

The free picture is learned when nothing covers the region, and follows changes of the light. A part that stays,
as when a line stands still, covers it until the free picture is seen again. Beside it, the usual picture is
learned: what is there most of the time. Where the region seems covered for long, while parts pass in front of the
usual picture and it is seen again between them, the usual one is the free one: a lamp was switched on, a shadow
fell, or something was put there. At the start the region should be free; if it is not, one part is announced that
is none.
"""

from __future__ import annotations

import cv2
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from agent.types import WHOLE, Box, Image

_WIDTH = 128
"""Width of the small picture that is compared, px."""
_LEAST = 22
"""Grey levels from which a pixel differs."""
_HYSTERESIS = 0.6
"""A region is free again when it is covered by less than this share of what makes it covered."""
_FOLLOWS = 0.02
"""Weight of the newest picture in the free one."""
_RELEARN_S = 30.0
"""Time after which what stays in the region from the start counts as free, s."""
_DOUBT_S, _RETURNS = 10.0, 2
"""Time for which the region is covered, s, and parts that pass meanwhile, until the usual picture is free."""
_MEDIAN_PER_S, _MEDIAN_LEAST, _MEDIAN_MOST = 20.0, 0.5, 4.0
"""Grey levels by which the usual picture follows in a second, and in one picture at least and at most."""
_STILL = 0.02
"""Share of the picture that may change while it stays."""
_GAIN_STEP = 0.15
"""Greatest change of the light from one picture to the next."""
_GAIN_LEFT, _GAIN_MAX = 0.2, 4.0
"""A lamp that is switched leaves no more of the picture unexplained, and changes the light no more."""
_GRID = 4

Grey = NDArray[np.float32]
"""Height×width."""
Differs = NDArray[np.uint8]


class BarrierReading(Struct, frozen=True, gc=False):
    """State of the barrier in one picture.

    Attributes:
        crossed: a part has just reached the region.
        covered: one is there.
        is_cut: the part that is there touches an edge of what the model is shown.
    """

    crossed: bool
    covered: bool
    is_cut: bool


class LightBarrier:
    """Watches a region of one stream's pictures. For one thread."""

    def __init__(self, region: Box, cover: float, within: Box = WHOLE) -> None:
        """Set the region, the share of it that a part covers at least, and the part of the picture that counts.

        Args:
            region: left, top, right, bottom, 0..1 of the picture.
            cover: 0..1.
            within: that the model is shown; a part that reaches its edge is cut.
        """
        self._region, self._cover, self._within = region, cover, within
        self._free: Grey | None = None
        self._covered, self._gain = False, 1.0

    def read(self, image: Image, captured_ns: int) -> BarrierReading:
        """Compare one picture with the free one, and learn from it.

        Args:
            image: H×W×3 uint8; one of another size begins anew.
            captured_ns: time of capture, ns.
        """
        grey = _small(image)
        if self._free is None or self._free.shape != grey.shape:
            self._begin(grey, captured_ns)
            return BarrierReading(crossed=False, covered=False, is_cut=False)
        self._gain = _gain(grey, self._free, self._gain)
        differs = _differs(grey, self._free, self._gain)
        was, self._covered = self._covered, self._is_covered(differs, self._covered)
        self._learn(grey, captured_ns, was=was)
        is_cut = self._covered and self._is_cut(differs)
        return BarrierReading(crossed=self._covered and not was, covered=self._covered, is_cut=is_cut)

    def _begin(self, grey: Grey, captured_ns: int) -> None:
        self._free, self._usual, self._newest = grey.copy(), grey.copy(), grey
        self._is_confirmed = self._covered = self._has_left = False
        self._since_ns = self._moved_ns = self._before_ns = captured_ns
        self._returns, self._gain = 0, 1.0

    def _is_covered(self, differs: Differs, was: bool) -> bool:
        share = float(self._of(differs, self._region).mean())
        return share >= self._cover * (_HYSTERESIS if was else 1.0)

    def _learn(self, grey: Grey, captured_ns: int, *, was: bool) -> None:
        assert self._free is not None
        elapsed_s, self._before_ns = (captured_ns - self._before_ns) / 1e9, captured_ns
        # The median of each pixel, which a part that passes moves by a few levels only.
        step = np.float32(min(_MEDIAN_MOST, max(_MEDIAN_LEAST, _MEDIAN_PER_S * elapsed_s)))
        self._usual += np.clip(grey - self._usual, -step, step)
        if float((cv2.absdiff(grey, self._newest) > _LEAST).mean()) > _STILL:
            self._moved_ns = captured_ns
        self._newest = grey
        if not self._covered:
            self._is_confirmed |= was
            cv2.accumulateWeighted(grey, self._free, _FOLLOWS)
            self._since_ns = self._moved_ns = captured_ns
            self._returns, self._has_left = 0, False
        else:
            self._doubt(grey, captured_ns)

    def _doubt(self, grey: Grey, captured_ns: int) -> None:
        """Take another picture as the free one if the region only seems covered."""
        if not self._is_confirmed and captured_ns - self._moved_ns > _RELEARN_S * 1e9:
            self._begin(grey, captured_ns)  # nothing ever returned to it: a part was there at the start
            return
        is_other = self._is_covered(_differs(grey, self._usual, 1.0), self._has_left)
        self._returns += self._has_left and not is_other
        self._has_left = is_other
        if self._returns >= _RETURNS and captured_ns - self._since_ns > _DOUBT_S * 1e9 and not is_other:
            confirmed = self._usual.copy()
            self._begin(grey, captured_ns)
            self._free, self._usual, self._is_confirmed = confirmed, confirmed.copy(), True

    def _is_cut(self, differs: Differs) -> bool:
        """Return True if what covers the region reaches an edge of what the model is shown."""
        shown = np.ascontiguousarray(self._of(differs, self._within))
        joined = cv2.morphologyEx(shown, cv2.MORPH_CLOSE, np.ones((3, 3), np.uint8))
        _, marks = cv2.connectedComponents(joined, connectivity=8)
        place = np.zeros(differs.shape, np.int32)
        self._of(place, self._within)[:] = marks
        there = np.unique(self._of(place, self._region))
        edges = np.concatenate([marks[0], marks[-1], marks[:, 0], marks[:, -1]])
        return bool(np.isin(there[there > 0], edges).any())

    def _of(self, picture: NDArray, box: Box) -> NDArray:  # type: ignore[type-arg]
        """Return the part of a small picture in a box, at least one pixel."""
        height, width = picture.shape
        left, top = int(box[0] * width), int(box[1] * height)
        right, bottom = max(left + 1, round(box[2] * width)), max(top + 1, round(box[3] * height))
        return picture[min(top, height - 1) : bottom, min(left, width - 1) : right]


def _small(image: Image) -> Grey:
    """Return a small grey picture, blurred: sampled, since averaging a large one costs milliseconds."""
    height, width = image.shape[:2]
    size = min(width, _WIDTH), max(1, round(height * min(1.0, _WIDTH / width)))
    small = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)
    # The order of the channels does not matter for differences.
    return cv2.blur(cv2.cvtColor(small, cv2.COLOR_BGR2GRAY), (3, 3)).astype(np.float32)


def _gain(grey: Grey, free: Grey, before: float) -> float:
    """Return the factor of the light: the median of a grid.

    One that jumps, as when a part fills the picture, counts only if it explains nearly all of the picture.
    """
    ratio = np.maximum(grey[::_GRID, ::_GRID], 8.0) / np.maximum(free[::_GRID, ::_GRID], 8.0)
    now = float(np.median(ratio))
    if abs(now - before) <= _GAIN_STEP * before:
        return now
    is_lamp = 1.0 / _GAIN_MAX <= now <= _GAIN_MAX and float(_differs(grey, free, now).mean()) < _GAIN_LEFT
    return now if is_lamp else before


def _differs(grey: Grey, free: Grey, gain: float) -> Differs:
    """Return 1 where a picture differs from a free one in its light, uint8 of the same shape."""
    return (np.abs(grey - gain * free) > _LEAST * max(1.0, gain)).astype(np.uint8)
