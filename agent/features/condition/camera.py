"""Condition of one camera: dark, frozen, blurred, covered, moved or tilted, by the gate's small pictures.

A picture is examined every four seconds. Dark and frozen need no reference; the others compare with the view
that was learned in the first half minute, and since. What is dark, blurred or covered teaches nothing.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import cv2
import msgspec
import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from agent.config import StreamConfig
from agent.config.features import Problem
from agent.errors import NO_JSON, StorageError
from agent.features.condition.answers import AnswerDrift, ConstantAnswer, DriftMemory
from agent.features.condition.rules import ProblemTimers, Watcher
from agent.features.condition.view import (
    TILES,
    Displacement,
    Edges,
    LearnedView,
    PackedView,
    describe,
    match,
    search,
    tiles,
)
from agent.storage.background import BackgroundFile
from agent.structs import from_json
from agent.types import Event, Frame, Image, StreamResult

if TYPE_CHECKING:
    from agent.compute.vision import VideoPerception

log = logging.getLogger(__name__)
CHECK_S = 4.0
"""Time between two checks, s."""
_CHECK_NS = round(CHECK_S * 1e9)
_STORE_NS = 3600 * 10**9
"""Least time between two writes of what was learned, unless the camera has moved: SD cards wear out."""
_CLOSE_S = 2.0
"""Longest wait for the disk when a stream ends, s."""
_DARK, _DARK_SHARE, _LIT_SHARE = 32, 0.01, 0.03
"""Grey level, share of brighter pixels of a picture that is dark, and of one that no longer is."""
_STILL_SHARE, _STILL_S, _STILL_CHECKS = 0.12, 40.0, 10
"""Most tiles that a frozen picture changes, such as a clock in it; for how long, s, and in how many checks: as
many as a usual camera has in that time. A slow one without noise may show few changes between two pictures."""
_SETTLED = 8
"""Pictures from which the view is known."""
_SURE, _SAME, _ALIKE, _OTHER = 0.8, 0.6, 0.35, 0.2
"""Match from which the view is surely in place, is the same, or may be so in another light; up to which it is
another."""
_FOUND, _CLEARER, _SHIFT, _TURN = 0.6, 0.25, 0.025, 2.0
"""Least match after a displacement, least increase that it brings, and its least size: share of the picture,
degrees."""
_TILTED = 2.5
"""Turn from which a camera is tilted, degrees."""
_ELSEWHERE_S = 36.0
"""Time for which another view is there until the camera has moved, s."""
_TEXTURED = 0.4
"""Least share of tiles with texture of a view that can be compared."""
_LOST, _LIKE, _BLURRED, _HIDDEN = 0.75, 0.72, 0.45, 0.3
"""Share of tiles without their texture; likeness of a blurred picture; its sharpness against that learned; match
below which the view may be covered: at night it has little texture, but that is in its place."""
_NIGHT, _DIM = 16.0, 0.35
"""Mean brightness, grey levels, and against that learned, below which missing texture says nothing."""
_ACCEPT_S = 3600.0
"""Time after which the view of a moved camera without zones is its new one, s."""

View = tuple[Image, Image]
"""A grey picture of some 120 to 240 columns, and one with more pixels, see `Background.view`."""
Move = Literal["moved", "tilted"]
_MOVES: tuple[Move, ...] = ("moved", "tilted")
_SIGNS: tuple[Problem, ...] = ("dark", "frozen", "blurred", "covered", *_MOVES)
_ELSEWHERE = "another view"


class CameraMemory(Struct, frozen=True):
    """The learned view of one camera, as it is written to a file.

    Attributes:
        view: None: it is not known yet.
        moved: `moved` or `tilted` while it is; else empty.
        where: describes that.
        zones: describes the zones that were drawn on the learned view.
        origin: of which pictures it was learned; that of others is of no use.
        answers: what the model usually answers; None: nothing is known.
    """

    view: PackedView | None
    moved: Literal["", "moved", "tilted"] = ""
    where: str = ""
    zones: str = ""
    origin: str = ""
    answers: DriftMemory | None = None


class CameraCondition:
    """Watches the pictures of one stream. For one thread, but for `accept`."""

    def __init__(self, zones: str = "", memory: CameraMemory | None = None) -> None:
        """Start with what an earlier run has learned, if anything.

        Args:
            zones: describes its zones; empty: it has none. A moved camera is in place where these have changed.
            memory: see `remember`.
        """
        self._zones, self._timers, self._still = zones, ProblemTimers(), StillPicture()
        self._accepts, self._where = False, ""
        self._next_ns = -(1 << 62)
        self._moved_ns: int | None = None
        self._view: LearnedView | None = None
        if memory is not None and memory.view is not None and (not memory.moved or memory.zones == zones):
            self._view = LearnedView.unpack(memory.view)
            if memory.moved:
                self._timers.active[memory.moved] = memory.where

    @property
    def problems(self) -> dict[Problem, str]:
        """Problems that last, each with what is known about it."""
        return self._timers.active.copy()

    @property
    def moved(self) -> Move | None:
        """How the view is not the one that zones were drawn on; None: it is that."""
        return next((move for move in _MOVES if move in self._timers.active), None)

    @property
    def is_known(self) -> bool:
        """True once the view is known."""
        return self._view is not None and self._view.pictures >= _SETTLED

    def update(self, now_ns: int, view: Callable[[], View]) -> None:
        """Examine a picture, if one is due; `view` returns it in its two sizes."""
        if 0 < self._next_ns - now_ns <= _CHECK_NS and not self._accepts:
            return
        self._next_ns = now_ns + _CHECK_NS
        if self._accepts:
            self._accepts, self._view, self._moved_ns = False, None, None
            for move in _MOVES:
                self._timers.active.pop(move, None)
        picture, detail = view()
        is_dark = self._is_dark(picture)
        signs: dict[Problem, bool | None] = {"dark": is_dark}
        if is_dark:
            self._still.restart()
        else:
            signs["frozen"] = self._still.update(picture, now_ns)
            signs |= self._examine(describe(picture, detail))
        for problem in _SIGNS:
            where = self._where if problem in _MOVES else ""
            begin_s = _ELSEWHERE_S if where == _ELSEWHERE else None
            self._timers.update(problem, signs.get(problem), now_ns, where, begin_s=begin_s)
        if self.moved is None:
            self._moved_ns = None
        elif self._moved_ns is None:
            self._moved_ns = now_ns
        elif not self._zones and now_ns - self._moved_ns >= _ACCEPT_S * 1e9:
            self._accepts = True

    def pause(self) -> None:
        """Record that no pictures come: what was compared last is of no use."""
        self._still.restart()
        self._timers.restart()

    def accept(self) -> None:
        """Take the present view for the right one, from the next picture on. Any thread may call this."""
        self._accepts = True

    def set_zones(self, zones: str) -> None:
        """Take the present view for the right one if it has moved and the zones were drawn anew."""
        self._accepts |= zones != self._zones and self.moved is not None
        self._zones = zones

    def remember(self) -> CameraMemory:
        """Return what was learned."""
        view, moved = self._view, self.moved
        packed = view.pack() if view is not None and self.is_known else None
        return CameraMemory(packed, moved or "", self._timers.active[moved] if moved else "", self._zones)

    def _is_dark(self, picture: Image) -> bool:
        bright = cv2.countNonZero(cv2.threshold(picture, _DARK, 255, cv2.THRESH_BINARY)[1]) / picture.size
        return bright < (_LIT_SHARE if "dark" in self._timers.active else _DARK_SHARE)

    def _examine(self, edges: Edges) -> dict[Problem, bool | None]:
        """Compare a picture with the learned view, and learn from it; return the signs that can be told."""
        view = self._view
        if view is None or view.field.shape != edges.field.shape:  # another format cannot be compared
            if self.moved is not None:  # only `accept` ends that
                return {}
            self._view = LearnedView.of(edges)
            return {}
        if view.pictures < _SETTLED:
            view.learn(edges, 0.0)
            return {}
        place, light = match(edges.field, view.field), float(edges.brightness.mean())
        is_dim = light < max(_NIGHT, _DIM * float(view.brightness.mean()))
        signs = {} if is_dim else self._spoiled(view, edges, place)
        if any(signs.values()) or math.isnan(place):
            return signs
        if (moved := self.moved) is not None:
            return signs | {moved: place < _SAME}
        is_textured = place >= _SURE or float(edges.textured.mean()) >= _TEXTURED
        found = search(view.field, edges.field) if is_textured and place < _SURE else None
        if found is not None and _is_clear(found, place):
            self._where = describe_move(found)
            is_tilted = abs(found.degrees) >= _TILTED
            return signs | {"tilted": is_tilted, "moved": not is_tilted}
        if place >= _ALIKE:
            view.learn(edges, CHECK_S)
        self._where = _ELSEWHERE
        return signs | {"tilted": False, "moved": is_textured and not is_dim and place <= _OTHER}

    def _spoiled(self, view: LearnedView, edges: Edges, place: float) -> dict[Problem, bool | None]:
        """Return whether a picture is blurred, and whether the camera is covered."""
        lost = view.lost(edges)
        gone = lost >= _LOST  # False for NaN
        is_like = gone and view.likeness(edges) >= _LIKE
        out_of_focus = edges.sharpness < _BLURRED * view.sharpness and place >= _SAME
        covered = gone and not is_like and place < _HIDDEN
        return {"blurred": out_of_focus or is_like, "covered": None if math.isnan(lost) else covered}


def _is_clear(found: Displacement, place: float) -> bool:
    """Return True if a picture fits clearly better after a displacement than in its place."""
    is_large = max(abs(found.right), abs(found.down)) >= _SHIFT or abs(found.degrees) >= _TURN
    return is_large and found.match >= _FOUND and found.match - place >= _CLEARER


def describe_move(found: Displacement) -> str:
    """Return a displacement in words: how far the camera has moved, as shares of the picture."""
    shift = [
        f"{abs(value):.0%} {words[value < 0]}"
        for value, words in ((-found.right, ("right", "left")), (-found.down, ("down", "up")))
        if abs(value) >= 0.01
    ]
    if abs(found.degrees) >= _TILTED:
        shift.append(f"{abs(found.degrees):.0f}° {'anticlockwise' if found.degrees > 0 else 'clockwise'}")
    return ", ".join(shift)


class StillPicture:
    """Finds that the same picture comes again and again, perhaps with another time written into it.

    A sensor's noise changes pixels all over the picture, at least here and there within half a minute.
    """

    def __init__(self) -> None:
        self._before: Image | None = None
        self._changed = np.zeros(TILES[::-1], bool)
        self._since_ns, self._checks = 0, 0

    def restart(self) -> None:
        """Compare with nothing that was seen before."""
        self._before = None

    def update(self, picture: Image, now_ns: int) -> bool:
        """Compare a picture with the one before; return True if they have been the same for long."""
        before, self._before = self._before, picture.copy()
        if before is not None and before.shape == picture.shape:
            _, different = cv2.threshold(cv2.absdiff(picture, before), 0, 255, cv2.THRESH_BINARY)
            self._changed |= tiles(different) > 0
            self._checks += 1
        else:
            self._changed[:] = True
        if self._changed.mean() > _STILL_SHARE:
            self._changed[:] = False
            self._since_ns, self._checks = now_ns, 0
        return now_ns - self._since_ns >= _STILL_S * 1e9 and self._checks >= _STILL_CHECKS


class CameraWatcher(Watcher):
    """Problems of a camera, and of a model that sees."""

    def __init__(self, name: str, config: StreamConfig, vision: VideoPerception, folder: Path) -> None:
        self._name, self._vision, self._origin = name, vision, origin_of(config)
        failure = f"stream {name}: its view is not kept over a restart"
        self._file = BackgroundFile(folder / f"{name}.json", f"condition-{name}", failure)
        memory = self._read()
        self._camera = CameraCondition(_zones(config), memory)
        self._constant = ConstantAnswer()
        self._drift = AnswerDrift(_answers_of(config, vision), memory.answers if memory else None)
        self._stored_ns: int | None = None
        self._stored = self._camera.is_known, self._camera.moved

    @property
    def problems(self) -> Mapping[Problem, str]:
        found = self._camera.problems
        if self._constant.active:
            found["constant"] = ""
        if self._drift.drifted:
            found["drift"] = self._drift.drifted
        return found

    def watch(self, item: Frame, result: StreamResult) -> None:
        vision = self._vision
        self._camera.update(item.captured_ns, lambda: vision.masked_view(item))
        if result.detections is not None:
            self._constant.update(item.captured_ns, vision.outputs, lambda: vision.view(item)[0])

    def pause(self) -> None:
        self._camera.pause()

    def observe(self, events: Sequence[Event]) -> None:
        self._drift.add(events)

    def configure(self, config: StreamConfig) -> None:
        self._camera.set_zones(_zones(config))

    def suspend_zones(self, suspended: bool) -> bool:
        return self._vision.suspend_zones(suspended)

    def accept(self) -> None:
        self._camera.accept()
        self._drift.accept()

    def poll(self, now_ns: int) -> None:
        """Follow the days; write what was learned once an hour, and when the camera has moved or is back."""
        self._drift.pass_time(now_ns)
        now = self._camera.is_known, self._camera.moved
        self._stored_ns = now_ns if self._stored_ns is None else self._stored_ns
        is_due = not 0 <= now_ns - self._stored_ns < _STORE_NS
        if (is_due or now != self._stored) and self._file.begin(self._content()):
            self._stored_ns, self._stored = now_ns, now

    def close(self) -> None:
        self._file.finish(self._content(), _CLOSE_S)

    def _content(self) -> Callable[[], bytes]:
        memory = replace(self._camera.remember(), origin=self._origin, answers=self._drift.remember())
        return lambda: msgspec.json.encode(memory)

    def _read(self) -> CameraMemory | None:
        try:
            content = self._file.read()
            if content is None:
                return None
            memory = from_json(content, CameraMemory)
            if memory.view is not None:
                LearnedView.unpack(memory.view)
        except (StorageError, ValueError, *NO_JSON) as error:
            log.warning("stream %s: its view is learned anew: %s: %s", self._name, self._file.path, error)
            return None
        return memory if memory.origin == self._origin else None


def _zones(config: StreamConfig) -> str:
    from agent.compute.track.places import describe_zones

    return describe_zones(config.zones, config.lines)


def origin_of(config: StreamConfig) -> str:
    """Return what tells the pictures of one camera, at one size, from others; it does not show a login.

    What was learned without masks is not used with them.
    """
    hidden = f" {config.privacy} {config.blur}" if config.hides else ""
    shown = f"{config.source} {config.crop} {config.gate.motion}{hidden}"
    return hashlib.sha256(shown.encode()).hexdigest()[:16]


def _answers_of(config: StreamConfig, vision: VideoPerception) -> str:
    """Return what tells the answers of one model, and what counts of them, from others."""
    settings = f"{vision.model.sha256} {config.variant} {config.decode} {config.track.min_hits}"
    return hashlib.sha256(settings.encode()).hexdigest()[:16]
