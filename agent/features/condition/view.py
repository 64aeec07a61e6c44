"""View of a camera: directions of its edges, learned over time, and whether a picture still shows them.

A picture is described by the direction of the edge at each pixel, as in orientation correlation (Fitch, Kadyrov,
Christmas, Kittler, Orientation correlation, BMVC 2002): its angle is doubled, so that dark on bright and bright
on dark are the same, and its length says how clear the edge is, not how strong. Light and exposure change little
of it. Pictures are compared in tiles, so that what covers one part of the view says nothing of the others.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

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
_ANCHOR = 0.06
"""Least mean length of the learned directions of a tile that counts."""
_MATCH = 0.35
"""Cosine of now and learned directions from which a tile is the same."""
_NOISE = 1.0
"""Difference of a pixel from those around it that may be noise, grey levels."""
_EDGE = 8.0
"""Least gradient of a tile that has texture, grey levels."""
_LIGHT = 10.0
"""Added to a brightness that divides a gradient, grey levels: deep shadow has little of either."""

Floats = NDArray[np.float32]


class Edges(Struct, frozen=True):
    """One picture.

    Attributes:
        field: directions, float32 [rows, WIDTH, 2]: cosine and sine of the doubled angle, times clearness 0..1.
        strength: mean contrast of neighbouring pixels of each tile against its brightness, float32 [9, 12].
        textured: True for tiles with texture.
        brightness: mean of each tile, grey levels, float32 [9, 12].
        sharpness: see `sharpness`; NaN: there is too little to measure it.
    """

    field: Floats
    strength: Floats
    textured: NDArray[np.bool_]
    brightness: Floats
    sharpness: float


def small(picture: Image) -> Image:
    """Return a grey picture at the size at which pictures are compared."""
    height = min(2 * WIDTH, max(TILES[1], round(WIDTH * picture.shape[0] / picture.shape[1])))
    return np.asarray(cv2.resize(picture, (WIDTH, height), interpolation=cv2.INTER_LINEAR), np.uint8)


def describe(picture: Image, detail: Image) -> Edges:
    """Describe a picture: `picture` grey and small, `detail` the same with more pixels, see `sharpness`."""
    grey = small(picture)
    across, down = cv2.Sobel(grey, cv2.CV_32F, 1, 0), cv2.Sobel(grey, cv2.CV_32F, 0, 1)
    squares = across * across
    squares_down = down * down
    power = squares + squares_down
    clear = 1.0 / (power + _CLEAR)
    field = cv2.merge(((squares - squares_down) * clear, 2.0 * across * down * clear))
    contour = cv2.absdiff(grey, cv2.blur(grey, (3, 3))).astype(np.float32) - _NOISE
    contrast, brightness = tiles(np.maximum(contour, 0.0)), tiles(grey).astype(np.float32)
    return Edges(
        np.asarray(field, np.float32),
        contrast / (brightness + _LIGHT),
        tiles(power) >= _EDGE**2,
        brightness,
        sharpness(detail),
    )


def tiles(values: Array) -> Array:
    """Return the mean of each tile."""
    return np.asarray(cv2.resize(values, TILES, interpolation=cv2.INTER_AREA))


_ROWS, _JOINED = 40, 3
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
    if picture.ndim == 3:
        picture = picture[:, :, 1]
    places = min(_ROWS, picture.shape[0] // _JOINED)
    if not places or picture.shape[1] < 3 * _COARSE:
        return float("nan")
    step = picture.shape[0] // places
    joined = [np.ascontiguousarray(picture[row::step][:places], np.int16) for row in range(_JOINED)]
    rows = joined[0] + joined[1] + joined[2]
    coarse = _mean_length(rows[:, _COARSE:] - rows[:, :-_COARSE])
    if coarse < _CONTRAST * _JOINED:
        return float("nan")
    fine = rows[:, 2 * _FINE :] + rows[:, : -2 * _FINE] - 2 * rows[:, _FINE:-_FINE]
    return _mean_length(fine) / coarse


def _mean_length(differences: NDArray[np.int16]) -> float:
    return float(cv2.norm(differences, cv2.NORM_L1)) / differences.size


class LearnedView(Struct):
    """A view that was learned in one kind of light.

    Attributes:
        field, strength, brightness: running means of those of `Edges`.
        sharpness: running mean; NaN: not known.
        pictures: number that it was learned from.
    """

    field: Floats
    strength: Floats
    brightness: Floats
    sharpness: float
    pictures: int = 1

    @classmethod
    def of(cls, edges: Edges) -> LearnedView:
        """Return a look that was learned from one picture."""
        return cls(edges.field.copy(), edges.strength.copy(), edges.brightness.copy(), edges.sharpness)

    def learn(self, edges: Edges, weight: float, sharpness_weight: float) -> None:
        """Learn from a picture; the first ones count equally, later ones with these weights."""
        self.pictures += 1
        young = 1.0 / self.pictures
        weight, sharpness_weight = max(weight, young), max(sharpness_weight, young)
        cv2.accumulateWeighted(edges.field, self.field, weight)
        cv2.accumulateWeighted(edges.strength, self.strength, weight)
        cv2.accumulateWeighted(edges.brightness, self.brightness, weight)
        if edges.sharpness == edges.sharpness:
            known = self.sharpness if self.sharpness == self.sharpness else edges.sharpness
            self.sharpness = known + sharpness_weight * (edges.sharpness - known)

    def match(self, edges: Edges) -> float:
        """Return the share of the tiles with learned edges that show them, 0..1; NaN: there are too few."""
        return match(edges.field, self.field)

    def lost(self, edges: Edges) -> float:
        """Return the share of the tiles that should have texture and have lost it, 0..1; NaN: too few should."""
        had = self.strength * (edges.brightness + _LIGHT) > _DETAIL
        count = int(np.count_nonzero(had))
        if count < _TILES_MIN:
            return float("nan")
        return float(np.count_nonzero(edges.strength[had] < _FADED * self.strength[had])) / count

    def likeness(self, edges: Edges) -> float:
        """Return the correlation of the tiles' brightness with that learned, -1..1."""
        one, other = edges.brightness - edges.brightness.mean(), self.brightness - self.brightness.mean()
        norm = float(np.sqrt((one * one).sum() * (other * other).sum()))
        return float((one * other).sum()) / norm if norm > 0.0 else 0.0


_DETAIL, _FADED = 0.6, 0.35
"""Least contrast that the texture of a tile must have in the present light, grey levels, and the share of that
from which on it is lost."""
_TILES_MIN = 12
"""Tiles with edges that a comparison needs."""


def match(now: Floats, learned: Floats) -> float:
    """Return the share of the tiles with learned edges whose directions are the same, 0..1; NaN: too few tiles.

    Both are fields of one size, see `Edges`.
    """
    both = cv2.multiply(now, learned)
    together = tiles(both[:, :, 0] + both[:, :, 1])
    own, other = tiles(_squares(now)), tiles(_squares(learned))
    anchors = other > _ANCHOR**2
    count = int(np.count_nonzero(anchors))
    if count < _TILES_MIN:
        return float("nan")
    same = together[anchors] > _MATCH * np.sqrt(own[anchors] * other[anchors]) + 1e-9
    return float(np.count_nonzero(same)) / count


def _squares(field: Floats) -> Floats:
    squares = cv2.multiply(field, field)
    return np.asarray(squares[:, :, 0] + squares[:, :, 1], np.float32)


# Find by how much a view has shifted and turned: correlation of edge directions by Fourier transform.

ANGLES = (0.0, *(sign * angle for angle in (3.0, 6.0, 9.0, 12.0, 16.0, 20.0) for sign in (1.0, -1.0)))
"""Angles that are tried, degrees."""
_OVERLAP = 0.3
"""Least share of the picture that both views must have."""
_PEAKS = 3


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


def search(learned: Floats, now: Floats) -> Iterator[Displacement]:
    """Yield the best shift for each angle. Each takes a few Fourier transforms: do one, then let inputs pass."""
    rows, columns = learned.shape[:2]
    size = cv2.getOptimalDFTSize(2 * columns), cv2.getOptimalDFTSize(2 * rows)
    reference = _spectrum(learned, size)
    for degrees in ANGLES:
        turned = turn(now, -degrees)
        product = cv2.mulSpectrums(_spectrum(turned, size), reference, 0, conjB=True)
        surface = cv2.dft(product, flags=cv2.DFT_INVERSE)[:, :, 0]
        yield _best(learned, turned, np.ascontiguousarray(surface), degrees)


def turn(field: Floats, degrees: float) -> Floats:
    """Return a field turned clockwise around its middle; what comes from outside is empty."""
    if degrees == 0.0:
        return field
    rows, columns = field.shape[:2]
    around = cv2.getRotationMatrix2D(((columns - 1) / 2, (rows - 1) / 2), -degrees, 1.0)
    moved = cv2.warpAffine(field, around, (columns, rows))
    angle = math.radians(2.0 * degrees)  # directions have the doubled angle
    turning = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]], np.float32)
    return np.asarray(cv2.transform(moved, turning), np.float32)


def _spectrum(field: Floats, size: tuple[int, int]) -> Floats:
    padded = np.zeros((size[1], size[0], 2), np.float32)
    padded[: field.shape[0], : field.shape[1]] = field
    return np.asarray(cv2.dft(padded, flags=cv2.DFT_COMPLEX_INPUT), np.float32)


def _best(learned: Floats, now: Floats, surface: Floats, degrees: float) -> Displacement:
    rows, columns = learned.shape[:2]
    best = Displacement(0.0, 0.0, degrees, 0.0)
    for _ in range(_PEAKS):
        _, _, _, (x, y) = cv2.minMaxLoc(surface)
        right = x if x <= surface.shape[1] // 2 else x - surface.shape[1]
        down = y if y <= surface.shape[0] // 2 else y - surface.shape[0]
        agrees = shifted_match(learned, now, right, down)
        if agrees > best.match:
            best = Displacement(right / columns, down / rows, degrees, agrees)
        cv2.circle(surface, (x, y), 4, -1e9, -1)
    return best


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


# Follow the view of one camera: learn it, and find that it has moved, blurred or is covered.

CHECK_S = 3.0
"""Time between two checks, s."""
SETTLED = 10
"""Pictures from which a look is known."""
_LEARN_S, _SHARPNESS_S = 1800.0, 7200.0
"""Time constants with which a known look, and its sharpness, follow the light, s."""
_SURE, _SAME, _ALIKE, _OTHER = 0.8, 0.6, 0.35, 0.2
"""Match from which the view is surely in place, is the same, or may be so in another light; up to which it is
another."""
_AGAIN_S, _WORSE = 30.0, 0.1
"""Time after a search in vain until the next, s, and decrease of the match that asks for one at once."""
_FOUND, _CLEARER = 0.6, 0.25
"""Least match after a displacement, and least increase that it brings;"""
_FITS, _BETTER, _LEFT = 0.8, 0.15, 0.5
"""or, where it fits well, least increase, and greatest share of the mismatch that is left."""
_SHIFT, _TURN = 0.025, 2.0
"""Least displacement: share of the picture, degrees."""
_AGREE_SHIFT, _AGREE_TURN = 0.06, 4.0
"""Greatest difference of displacements that are the same."""
_TEXTURED = 0.4
"""Least share of tiles with texture of another view."""
_LOST, _LIKE, _BLURRED = 0.75, 0.72, 0.45
"""Share of tiles without their texture; likeness of a blurred picture; its sharpness against that learned."""
_NIGHT, _DIM = 16.0, 0.35
"""Mean brightness, grey levels, and against that learned, below which missing texture says nothing."""
_HIDDEN = 0.3
"""Match below which the view may be covered: at night it has little texture, but that is in its place."""
_NEW_LOOK = 40
"""Checks with neither a match nor a displacement after which the present light is learned as another look."""
LOOKS = 4
"""Most looks of one camera, such as day, lamp and infrared."""
_ANGLE_S = 0.15
"""Time of the stream for which one angle of a search is tried, s."""


class ViewSigns(Struct, frozen=True):
    """Result of one check of a view; None: it cannot tell.

    Attributes:
        blurred, covered: as the words say.
        displaced: the newest searches found the view shifted or turned.
        replaced: there is another view, of which nothing was learned.
        back: the learned view is there.
    """

    blurred: bool | None = None
    covered: bool | None = None
    displaced: bool | None = None
    replaced: bool | None = None
    back: bool | None = None


UNKNOWN = ViewSigns()


class ViewFollower:
    """Learned looks of one camera, and where its view is now. For one thread.

    Attributes:
        looks: the one in use first.
        moved: the view is known to have moved: nothing is learned, and no search is made.
        displacement: newest that was found; None: none.
    """

    def __init__(self, looks: list[LearnedView] | None = None) -> None:
        self.looks: list[LearnedView] = looks or []
        self.moved = False
        self.displacement: Displacement | None = None
        self._search: Iterator[Displacement] | None = None
        self._best: Displacement | None = None
        self._match = 1.0
        self._found = False
        self._strangers = 0
        self._tried, self._waits_s = 1.0, 0.0
        self._dim = False

    def forget(self) -> None:
        """Learn the view anew."""
        self.__init__()  # type: ignore[misc]

    def check(self, edges: Edges) -> ViewSigns:
        """Compare a picture with what was learned, and learn from it."""
        if not self.looks:
            self.looks = [LearnedView.of(edges)]
            return UNKNOWN
        look = self.looks[0]
        if look.field.shape != edges.field.shape:  # another format: nothing can be compared
            self.forget()
            return self.check(edges)
        if look.pictures < SETTLED:
            look.learn(edges, 0.0, 0.0)
            return UNKNOWN
        self._match = self._matching(edges)
        blurred, covered = self._spoiled(edges)
        if blurred or covered:
            self._stop_search()
            return ViewSigns(blurred, covered)
        if math.isnan(self._match):
            return ViewSigns(blurred, covered)
        if self.moved:
            return ViewSigns(blurred, covered, back=self._match >= _SAME)
        return self._placed(edges, blurred, covered)

    def step(self, passed_s: float) -> None:
        """Go on with a search, if one is made, by as many angles as fit into the time since the last picture."""
        self._waits_s -= passed_s
        if self._search is None:
            return
        for _ in range(max(1, math.ceil(passed_s / _ANGLE_S))):
            found = next(self._search, None)
            if found is None:
                self._end_search()
                return
            if self._best is None or found.match > self._best.match:
                self._best = found

    def _matching(self, edges: Edges) -> float:
        """Return the match with the look in use; where that fails, use the look that matches best."""
        found = self.looks[0].match(edges)
        if found >= _SAME or len(self.looks) == 1:
            return found
        scores = [one.match(edges) for one in self.looks]
        best = max(range(len(scores)), key=lambda at: -1.0 if math.isnan(scores[at]) else scores[at])
        self.looks.insert(0, self.looks.pop(best))
        return scores[best]

    def _spoiled(self, edges: Edges) -> tuple[bool | None, bool | None]:
        """Return whether the picture is blurred, and whether the camera is covered."""
        look = self.looks[0]
        light = float(edges.brightness.mean())
        self._dim = light < max(_NIGHT, _DIM * float(look.brightness.mean()))
        if self._dim:
            return None, None
        lost = look.lost(edges)
        fine = edges.sharpness / look.sharpness
        gone = lost >= _LOST  # False for NaN
        like = look.likeness(edges) if gone else 1.0
        out_of_focus = fine < _BLURRED and self._match >= _SAME
        smooth = gone and like >= _LIKE
        blurred = out_of_focus or smooth
        covered = gone and like < _LIKE and self._match < _HIDDEN
        return blurred, (None if math.isnan(lost) else covered)

    def _placed(self, edges: Edges, blurred: bool | None, covered: bool | None) -> ViewSigns:
        if self._match >= _SURE:
            self._stop_search()
        elif float(edges.textured.mean()) < _TEXTURED:
            self._stop_search()
            return ViewSigns(blurred, covered)
        else:
            self._begin_search(edges)
        if self._match >= _ALIKE:
            self._learn(edges)
        else:
            self._strangers += 1
            if self._strangers >= _NEW_LOOK and self.displacement is None:
                self._add_look(edges)
        is_other = None if self._dim else self._match <= _OTHER
        return ViewSigns(blurred, covered, self._found, is_other)

    def _begin_search(self, edges: Edges) -> None:
        is_worse = self._match < self._tried - _WORSE
        if self._search is None and (self._waits_s <= 0.0 or is_worse or self.displacement is not None):
            self._search, self._best = search(self.looks[0].field, edges.field), None
            self._tried, self._waits_s = self._match, _AGAIN_S

    def _learn(self, edges: Edges) -> None:
        self._strangers = 0
        if self.displacement is not None:  # it may have moved
            return
        self.looks[0].learn(edges, CHECK_S / _LEARN_S, CHECK_S / _SHARPNESS_S)

    def _add_look(self, edges: Edges) -> None:
        self.looks = [LearnedView.of(edges), *self.looks][:LOOKS]
        self._strangers = 0
        self._stop_search()

    def _end_search(self) -> None:
        """Compare the displacement that was found with the one before: two that agree count."""
        best, before = self._best, self.displacement
        self._search = self._best = None
        if best is None or not self._is_clear(best):
            self._found, self.displacement = False, None
            return
        self._found = before is not None and _agree(best, before)
        self.displacement = best

    def _is_clear(self, found: Displacement) -> bool:
        gain = found.match - self._match
        fits = found.match >= _FITS and gain >= _BETTER and 1.0 - found.match <= _LEFT * (1.0 - self._match)
        if not fits and (found.match < _FOUND or gain < _CLEARER):
            return False
        return max(abs(found.right), abs(found.down)) >= _SHIFT or abs(found.degrees) >= _TURN

    def _stop_search(self) -> None:
        self._search = self._best = self.displacement = None
        self._tried, self._waits_s = 1.0, 0.0
        self._found = False


def _agree(one: Displacement, other: Displacement) -> bool:
    shift = max(abs(one.right - other.right), abs(one.down - other.down))
    return shift <= _AGREE_SHIFT and abs(one.degrees - other.degrees) <= _AGREE_TURN
