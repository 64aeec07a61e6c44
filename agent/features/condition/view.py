"""View of a camera: directions of its edges, learned over time, and whether a picture still shows them.

A picture is described by the direction of the edge at each pixel, as in orientation correlation (Fitch, Kadyrov,
Christmas, Kittler, Orientation correlation, BMVC 2002): its angle is doubled, so that dark on bright and bright
on dark are the same, and its length says how clear the edge is, not how strong. Light and exposure change little
of it. Pictures are compared in tiles, so that what covers one part of the view says nothing of the others.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from agent.types import Array, Image

WIDTH = 96
"""Width of the pictures that are compared, px."""
TILES = (12, 9)
"""Columns and rows of the tiles."""
_CLEAR = 12.0**2
"""Squared gradient (Sobel, grey levels) of an edge that is half clear."""
_NOISE = 1
"""Difference of a pixel from those around it that may be noise, grey levels."""
_LIGHT = 10.0
"""Added to a brightness that divides a contrast, grey levels: deep shadow has little of either."""
_ANCHOR, _MATCH = 0.06, 0.35
"""Least mean length of the learned directions of a tile that counts, and cosine of now and learned directions
from which it is the same."""
_TILES_MIN = 12
"""Tiles with edges that a comparison needs."""
_DETAIL, _FADED = 0.6, 0.35
"""Least contrast of a tile with texture, grey levels, and the share of it from which on it is lost."""
_LEARN_S, _SHARPNESS_S = 1800.0, 7200.0
"""Time constants with which a known view, and its sharpness, follow the light, s."""

Floats = NDArray[np.float32]


class Edges(Struct, frozen=True):
    """One picture.

    Attributes:
        field: directions, float32 [rows, WIDTH, 2]: cosine and sine of the doubled angle, times clearness 0..1.
        strength: mean contrast of neighbouring pixels of each tile against its brightness, float32 [9, 12].
        brightness: mean of each tile, grey levels, float32 [9, 12].
        sharpness: see `sharpness`; NaN: there is too little to measure it.
    """

    field: Floats
    strength: Floats
    brightness: Floats
    sharpness: float

    @property
    def textured(self) -> NDArray[np.bool_]:
        """True for tiles with texture."""
        return np.asarray(self.strength * (self.brightness + _LIGHT) > _DETAIL)


def describe(picture: Image, detail: Image) -> Edges:
    """Describe a picture: `picture` grey and small, `detail` the same with more pixels, see `sharpness`."""
    height = min(2 * WIDTH, max(TILES[1], round(WIDTH * picture.shape[0] / picture.shape[1])))
    grey = cv2.resize(picture, (WIDTH, height), interpolation=cv2.INTER_LINEAR)
    across, down = cv2.Sobel(grey, cv2.CV_32F, 1, 0), cv2.Sobel(grey, cv2.CV_32F, 0, 1)
    squares, squares_down = across * across, down * down
    clear = 1.0 / (squares + squares_down + _CLEAR)
    field = cv2.merge(((squares - squares_down) * clear, 2.0 * across * down * clear))
    contour = np.maximum(cv2.absdiff(grey, cv2.blur(grey, (3, 3))), _NOISE) - _NOISE
    contrast, brightness = tiles(contour.astype(np.float32)), tiles(grey).astype(np.float32)
    return Edges(np.asarray(field), contrast / (brightness + _LIGHT), brightness, sharpness(detail))


def tiles(values: Array) -> Array:
    """Return the mean of each tile."""
    return np.asarray(cv2.resize(values, TILES, interpolation=cv2.INTER_AREA))


_ROWS, _JOINED = 24, 3
"""Places at which the sharpness is measured, and rows that are added at each against noise."""
_FINE, _COARSE = 2, 24
"""Distances of pixels that fine and coarse detail is measured over."""
_CONTRAST = 2.0
"""Least mean difference over the coarse distance to measure the sharpness, grey levels."""


def sharpness(picture: Image) -> float:
    """Return how much fine detail a picture has against coarse: some 0.2 to 0.6, less than half if out of focus.

    It is the ratio of the mean second difference over 2 pixels and the mean difference over 24. NaN: the picture
    has no contrast, or is too small. The picture is its brightness, [rows, columns], or has three channels, of
    which the second, green, is measured.
    """
    picture = picture[:, :, 1] if picture.ndim == 3 else picture
    places = min(_ROWS, picture.shape[0] // _JOINED)
    if not places or picture.shape[1] < 3 * _COARSE:
        return math.nan
    step = picture.shape[0] // places
    joined = [np.ascontiguousarray(picture[row::step][:places], np.int16) for row in range(_JOINED)]
    rows = joined[0] + joined[1] + joined[2]
    coarse = cv2.norm(rows[:, _COARSE:], rows[:, :-_COARSE], cv2.NORM_L1) / rows[:, _COARSE:].size
    if coarse < _CONTRAST * _JOINED:
        return math.nan
    fine = rows[:, 2 * _FINE :] + rows[:, : -2 * _FINE] - 2 * rows[:, _FINE:-_FINE]
    return float(cv2.norm(fine, cv2.NORM_L1) / fine.size / coarse)


class PackedView(Struct, frozen=True):
    """A `LearnedView` as it is written to a file.

    Attributes:
        field: int8 [rows, WIDTH, 2], 127 for 1.
        tiles: float16, little-endian: strength, brightness and sharpness.
        pictures: as in `LearnedView`.
    """

    field: bytes
    tiles: bytes
    pictures: int


class LearnedView(Struct):
    """A view that was learned.

    Attributes:
        field, strength, brightness: running means of those of `Edges`.
        sharpness: running mean; NaN: not known.
        pictures: number that it was learned from.
    """

    field: Floats
    strength: Floats
    brightness: Floats
    sharpness: float
    pictures: int = 0

    @classmethod
    def of(cls, edges: Edges) -> LearnedView:
        """Return a view that was learned from one picture."""
        return cls(edges.field.copy(), edges.strength.copy(), edges.brightness.copy(), edges.sharpness, 1)

    @classmethod
    def unpack(cls, packed: PackedView) -> LearnedView:
        """Return a view from the disk. Raises ValueError if a size is none that `pack` writes."""
        field = np.frombuffer(packed.field, np.int8).reshape(-1, WIDTH, 2)
        numbers = np.frombuffer(packed.tiles, "<f2").astype(np.float32)
        strength, brightness = numbers[:-1].reshape(2, *TILES[::-1])
        return cls(field.astype(np.float32) / 127.0, strength, brightness, float(numbers[-1]), packed.pictures)

    def pack(self) -> PackedView:
        numbers = np.concatenate((self.strength, self.brightness), None)
        field = np.rint(self.field * 127.0).astype(np.int8).tobytes()
        return PackedView(field, np.append(numbers, self.sharpness).astype("<f2").tobytes(), self.pictures)

    def learn(self, edges: Edges, passed_s: float) -> None:
        """Learn from a picture; the first ones count equally, later ones by the time since the one before, s."""
        self.pictures += 1
        young = 1.0 / self.pictures
        weight = max(young, passed_s / _LEARN_S)
        cv2.accumulateWeighted(edges.field, self.field, weight)
        cv2.accumulateWeighted(edges.strength, self.strength, weight)
        cv2.accumulateWeighted(edges.brightness, self.brightness, weight)
        if math.isnan(self.sharpness):
            self.sharpness = edges.sharpness
        elif not math.isnan(edges.sharpness):
            self.sharpness += max(young, passed_s / _SHARPNESS_S) * (edges.sharpness - self.sharpness)

    def lost(self, edges: Edges) -> float:
        """Return the share of the tiles that should have texture and have lost it, 0..1; NaN: too few should."""
        had = self.strength * (edges.brightness + _LIGHT) > _DETAIL
        count = int(np.count_nonzero(had))
        if count < _TILES_MIN:
            return math.nan
        return float(np.count_nonzero(edges.strength[had] < _FADED * self.strength[had])) / count

    def likeness(self, edges: Edges) -> float:
        """Return the correlation of the tiles' brightness with that learned, -1..1."""
        one, other = edges.brightness - edges.brightness.mean(), self.brightness - self.brightness.mean()
        norm = float(np.sqrt((one * one).sum() * (other * other).sum()))
        return float((one * other).sum()) / norm if norm > 0.0 else 0.0


def match(now: Floats, learned: Floats) -> float:
    """Return the share of the tiles with learned edges whose directions are the same, 0..1; NaN: too few tiles.

    Both are fields of one size, see `Edges`.
    """
    together, own, other = (
        tiles(cv2.multiply(a, b)).sum(2) for a, b in ((now, learned), (now, now), (learned, learned))
    )
    anchors = other > _ANCHOR**2
    count = int(np.count_nonzero(anchors))
    if count < _TILES_MIN:
        return math.nan
    same = together[anchors] > _MATCH * np.sqrt(own[anchors] * other[anchors]) + 1e-9
    return float(np.count_nonzero(same)) / count


# Find by how much a view has shifted and turned: correlation of edge directions by Fourier transform.

ANGLES = (0.0, *(sign * angle for angle in (3.0, 6.0, 9.0, 12.0, 16.0, 20.0) for sign in (1.0, -1.0)))
"""Angles that are tried, degrees."""
_OVERLAP = 0.3
"""Least share of the picture that both views must have."""


class Displacement(Struct, frozen=True):
    """A shift and a turn of the view.

    Attributes:
        right, down: shift of what is seen, as shares of the picture's width and height.
        degrees: turn, clockwise in the picture.
        match: share of the tiles that agree after it, see `match`.
    """

    right: float
    down: float
    degrees: float
    match: float


def search(learned: Floats, now: Floats) -> Displacement:
    """Return the shift and turn that fit best: the angle at half of the resolution, the shift at the whole."""
    half = learned.shape[1] // 2, learned.shape[0] // 2
    small, small_now = (
        np.asarray(cv2.resize(field, half, interpolation=cv2.INTER_AREA), np.float32) for field in (learned, now)
    )
    degrees = max(ANGLES, key=lambda angle: _peak(small, _turned(small_now, angle))[0])
    turned = _turned(now, degrees)
    _, right, down = _peak(learned, turned)
    rows, columns = learned.shape[:2]
    return Displacement(right / columns, down / rows, degrees, shifted_match(learned, turned, right, down))


def _turned(field: Floats, degrees: float) -> Floats:
    """Return a field turned back, anticlockwise around its middle; what comes from outside is empty."""
    if degrees == 0.0:
        return field
    rows, columns = field.shape[:2]
    around = cv2.getRotationMatrix2D(((columns - 1) / 2, (rows - 1) / 2), degrees, 1.0)
    moved = cv2.warpAffine(field, around, (columns, rows))
    cos, sin = math.cos(math.radians(2.0 * degrees)), math.sin(math.radians(2.0 * degrees))  # doubled angles
    return np.asarray(cv2.transform(moved, np.array([[cos, sin], [-sin, cos]], np.float32)), np.float32)


def _peak(learned: Floats, now: Floats) -> tuple[float, int, int]:
    """Return the greatest correlation of two fields, and the shift of `now` at which it is, px."""
    rows, columns = learned.shape[:2]
    size = cv2.getOptimalDFTSize(2 * columns), cv2.getOptimalDFTSize(2 * rows)
    one, other = (
        cv2.dft(cv2.copyMakeBorder(field, 0, size[1] - rows, 0, size[0] - columns, cv2.BORDER_CONSTANT))
        for field in (now, learned)
    )
    surface = cv2.dft(cv2.mulSpectrums(one, other, 0, conjB=True), flags=cv2.DFT_INVERSE)[:, :, 0]
    _, value, _, (x, y) = cv2.minMaxLoc(surface)
    return value, x if x <= size[0] // 2 else x - size[0], y if y <= size[1] // 2 else y - size[1]


def shifted_match(learned: Floats, now: Floats, right: int, down: int) -> float:
    """Return `match` where both views overlap after a shift of `now`, px; 0: they overlap too little."""
    rows, columns = learned.shape[:2]
    height, width = rows - abs(down), columns - abs(right)
    if height <= 0 or width <= 0 or height * width < _OVERLAP * rows * columns:
        return 0.0
    one = learned[max(0, -down) : max(0, -down) + height, max(0, -right) : max(0, -right) + width]
    other = now[max(0, down) : max(0, down) + height, max(0, right) : max(0, right) + width]
    found = match(np.ascontiguousarray(other), np.ascontiguousarray(one))
    return 0.0 if math.isnan(found) else found
