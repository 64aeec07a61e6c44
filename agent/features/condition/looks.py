"""Follows the view of one camera: learns it, and finds that it has moved, blurred or is covered."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated

import numpy as np
from msgspec import Meta, Struct

from agent.features.condition.answers import DriftMemory
from agent.features.condition.view import TILES, WIDTH, Displacement, Edges, Floats, LearnedView, search

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


_ROWS_MAX = 2 * WIDTH


class PackedView(Struct, frozen=True):
    """A `LearnedView`.

    Attributes:
        field: int8 [rows, WIDTH, 2], 127 for 1.
        strength, brightness: float16 [9, 12], little-endian.
        sharpness: None: not known.
    """

    field: bytes
    strength: bytes
    brightness: bytes
    sharpness: float | None
    pictures: int


class CameraMemory(Struct, frozen=True):
    """Learned views and place of one camera, as they are written to a file.

    Attributes:
        looks: the one in use first.
        moved: `moved` or `tilted` while it is; else empty.
        where: describes that, at most 64 characters.
        zones: describes the zones that were drawn on the learned view.
        origin: of which pictures it was learned; that of others is of no use.
        answers: what the model usually answers; None: nothing is known.
    """

    looks: tuple[PackedView, ...]
    moved: str = ""
    where: Annotated[str, Meta(max_length=64, pattern=r"^[ -~°]*$")] = ""
    zones: str = ""
    origin: str = ""
    answers: DriftMemory | None = None


def pack_looks(looks: list[LearnedView]) -> tuple[PackedView, ...]:
    """Return looks for the disk, without those that are still being learned."""
    return tuple(
        PackedView(
            np.rint(one.field * 127.0).astype(np.int8).tobytes(),
            one.strength.astype("<f2").tobytes(),
            one.brightness.astype("<f2").tobytes(),
            None if math.isnan(one.sharpness) else round(one.sharpness, 4),
            one.pictures,
        )
        for one in looks
        if one.pictures >= SETTLED
    )


def unpack_looks(packed: tuple[PackedView, ...]) -> list[LearnedView]:
    """Return looks from the disk.

    Raises:
        ValueError: a size or a number is none that `pack_looks` writes.
    """
    looks = [_unpack(one) for one in packed[:LOOKS]]
    if len({len(one.field) for one in looks}) > 1:
        raise ValueError("looks are of different sizes")
    return looks


def _unpack(packed: PackedView) -> LearnedView:
    field = np.frombuffer(packed.field, np.int8).reshape(-1, WIDTH, 2).astype(np.float32) / 127.0
    strength, brightness = _tiles(packed.strength), _tiles(packed.brightness)
    sharpness = math.nan if packed.sharpness is None else packed.sharpness
    is_sound = TILES[1] <= len(field) <= _ROWS_MAX and packed.pictures >= SETTLED and not sharpness <= 0.0
    if not (is_sound and np.isfinite(strength).all() and np.isfinite(brightness).all()):
        raise ValueError("a look has other numbers than were written")
    return LearnedView(field, strength, brightness, sharpness, packed.pictures)


def _tiles(packed: bytes) -> Floats:
    return np.frombuffer(packed, "<f2").reshape(TILES[::-1]).astype(np.float32)
