"""Condition of one camera: dark, frozen, blurred, covered, moved or tilted, by the gate's small pictures.

A picture is examined every three seconds. Dark and frozen need no reference; the others compare with the view
that was learned in the first half minute, and since. What is dark, blurred or covered teaches nothing.
"""

from __future__ import annotations

import hashlib
import logging
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import cv2
import msgspec
import numpy as np
from msgspec import Meta, Struct
from msgspec.structs import replace

from agent.config import StreamConfig
from agent.config.features import ConditionConfig, Problem
from agent.errors import NO_JSON, StorageError
from agent.features.condition.answers import AnswerDrift, ConstantAnswer, DriftMemory
from agent.features.condition.rules import ProblemTimers, Watcher
from agent.features.condition.view import (
    CHECK_S,
    LOOKS,
    SETTLED,
    TILES,
    UNKNOWN,
    WIDTH,
    Displacement,
    Floats,
    LearnedView,
    ViewFollower,
    ViewSigns,
    describe,
    tiles,
)
from agent.storage.files import make_folder
from agent.storage.state import StateFile
from agent.structs import from_json
from agent.types import Array, Event, Frame, Image, StreamResult

if TYPE_CHECKING:
    from agent.compute.vision import VideoPerception

log = logging.getLogger(__name__)
_STORE_NS = 3600 * 10**9
"""Least time between two writes of what was learned, unless the camera has moved: SD cards wear out."""
_GRID = 160, 120
"""Columns and rows of a picture in which masks are measured."""
_CLOSE_S = 2.0
"""Longest wait for the disk when a stream ends, s."""
_ROWS_MAX = 2 * WIDTH
_DARK, _DARK_SHARE, _LIT_SHARE = 32, 0.01, 0.03
"""Grey level, share of brighter pixels of a picture that is dark, and of one that no longer is."""
_STILL_SHARE, _STILL_S, _STILL_CHECKS = 0.12, 40.0, 13
"""Most tiles that a frozen picture changes, such as a clock in it; for how long, s, and in how many checks: as
many as a usual camera has in that time. A slow one without noise may show few changes between two pictures."""
_TILTED = 2.5
"""Turn from which a camera is tilted, degrees."""
_ACCEPT_S = 3600.0
"""Time after which the view of a moved camera without zones is its new one, s."""
_REPLACED_S = 36.0
"""Time for which another view is there until the camera has moved, s."""

View = tuple[Image, Image]
"""A grey picture of some 120 to 240 columns, and one with more pixels, see `Background.view`."""


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


class CameraCondition:
    """Watches the pictures of one stream. For one thread, but for `accept`."""

    def __init__(
        self,
        config: ConditionConfig,
        zones: str = "",
        memory: CameraMemory | None = None,
        seen_share: float = 1.0,
    ) -> None:
        """Start with what an earlier run has learned, if anything.

        Args:
            config: of the stream.
            zones: describes its zones; empty: it has none. A moved camera is in place where these have changed.
            memory: see `remember`.
            seen_share: share of the pictures that no privacy mask makes black.
        """
        self._config, self._zones, self._seen_share = config, zones, seen_share
        self._timers = ProblemTimers(config.ignore)
        self._still = StillPicture()
        self._accepts = False
        self._next_ns = self._before_ns = -(1 << 62)
        self._replaced_ns: int | None = None
        self._moved_ns: int | None = None
        self._where = ""
        self._follower = ViewFollower()
        if memory is not None:
            self._recall(memory)

    def update(self, now_ns: int, view: Callable[[], View]) -> None:
        """Examine a picture, if one is due; `view` returns it in its two sizes."""
        passed_s = min(10.0, max(0.0, (now_ns - self._before_ns) / 1e9))
        self._before_ns = now_ns
        if self._accepts:
            self._accept()
        self._follower.step(passed_s)
        if 0 < self._next_ns - now_ns <= CHECK_S * 1e9:
            return
        self._next_ns = now_ns + round(CHECK_S * 1e9)
        self._timers.begin_check(now_ns)
        self._check(*view(), now_ns)

    def pause(self) -> None:
        """Record that no pictures come: what was compared last is of no use."""
        self._still.restart()
        self._replaced_ns = None

    def accept(self) -> None:
        """Take the present view for the right one, from the next picture on. Any thread may call this."""
        self._accepts = True

    def set_zones(self, zones: str) -> None:
        """Take the present view for the right one if it has moved and the zones were drawn anew."""
        if zones != self._zones and self.has_moved:
            self._accepts = True
        self._zones = zones

    @property
    def has_moved(self) -> bool:
        """True while the view is not the one that zones were drawn on."""
        return "moved" in self._timers or "tilted" in self._timers

    @property
    def problems(self) -> dict[Problem, str]:
        """Problems that last, each with what is known about it."""
        return {name: self._where if name in ("moved", "tilted") else "" for name in self._timers}

    def remember(self) -> CameraMemory | None:
        """Return what was learned, and nothing where a view was accepted just now; None: it has moved unseen."""
        looks = pack_looks(self._follower.looks)
        moved = next((name for name in self._timers if name in ("moved", "tilted")), "")
        return (
            None if moved and not looks else CameraMemory(looks, moved, self._where if moved else "", self._zones)
        )

    def _recall(self, memory: CameraMemory) -> None:
        self._follower.looks = unpack_looks(memory.looks)
        is_known = self._follower.looks and memory.moved in ("moved", "tilted") and memory.zones == self._zones
        if is_known and memory.moved not in self._config.ignore:
            self._set_moved("tilted" if memory.moved == "tilted" else "moved", memory.where)
        elif memory.moved:
            self._follower.forget()

    def _check(self, picture: Image, detail: Image, now_ns: int) -> None:
        is_dark = self._is_dark(picture)
        self._timers.update("dark", is_dark and self._seen_share > 0.0, now_ns)
        if is_dark:
            self._still.restart()
        self._timers.update("frozen", None if is_dark else self._still.update(picture, now_ns), now_ns)
        signs = UNKNOWN if is_dark else self._follower.check(describe(picture, detail))
        self._timers.update("blurred", signs.blurred, now_ns)
        self._timers.update("covered", signs.covered, now_ns)
        self._follow_place(signs, now_ns)

    def _is_dark(self, picture: Image) -> bool:
        bright = cv2.countNonZero(cv2.threshold(picture, _DARK, 255, cv2.THRESH_BINARY)[1]) / picture.size
        bright /= max(self._seen_share, 1e-9)  # masked pixels are black, whatever the light
        return bright < (_LIT_SHARE if "dark" in self._timers else _DARK_SHARE)

    def _follow_place(self, signs: ViewSigns, now_ns: int) -> None:
        if self.has_moved:
            self._end_move(signs, now_ns)
            return
        if "covered" in self._timers or "blurred" in self._timers:
            self._replaced_ns = None
            return
        if signs.displaced and (found := self._follower.displacement) is not None:
            self._begin_move("tilted" if abs(found.degrees) >= _TILTED else "moved", describe_move(found), now_ns)
            return
        if signs.replaced is not None:
            if not signs.replaced or self._replaced_ns is None:
                self._replaced_ns = now_ns if signs.replaced else None
            elif now_ns - self._replaced_ns >= _REPLACED_S * 1e9:
                self._begin_move("moved", "another view", now_ns)

    def _begin_move(self, problem: Problem, where: str, now_ns: int) -> None:
        self._replaced_ns = None
        if problem in self._config.ignore:
            self._follower.forget()
            return
        self._moved_ns = now_ns
        self._set_moved(problem, where)

    def _set_moved(self, problem: Problem, where: str) -> None:
        self._timers.set(problem, True)
        self._follower.moved, self._where = True, where

    def _end_move(self, signs: ViewSigns, now_ns: int) -> None:
        moves: tuple[Problem, ...] = ("moved", "tilted")
        for problem in moves:
            if problem in self._timers and signs.back is not None:
                self._timers.update(problem, not signs.back, now_ns)
        if not self.has_moved:
            self._follower.moved = False
            return
        self._moved_ns = now_ns if self._moved_ns is None else self._moved_ns
        if not self._zones and now_ns - self._moved_ns >= _ACCEPT_S * 1e9:
            self._accept()

    def _accept(self) -> None:
        self._accepts = False
        self._timers.set("moved", False)
        self._timers.set("tilted", False)
        self._replaced_ns = None
        self._follower.forget()


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
        self.restart()

    def restart(self) -> None:
        """Compare with nothing that was seen before."""
        self._before: Image | None = None
        self._changed = np.zeros(TILES[::-1], bool)
        self._since_ns, self._checks = 0, 0

    def update(self, picture: Image, now_ns: int) -> bool:
        """Compare a picture with the one before; return True if they have been the same for long."""
        if self._before is None or self._before.shape != picture.shape:
            self.restart()
            self._before, self._since_ns = picture.copy(), now_ns
            return False
        self._changed |= _changed_tiles(picture, self._before)
        np.copyto(self._before, picture)
        self._checks += 1
        if float(self._changed.mean()) > _STILL_SHARE:
            self._changed[:] = False
            self._since_ns, self._checks = now_ns, 0
            return False
        return now_ns - self._since_ns >= _STILL_S * 1e9 and self._checks >= _STILL_CHECKS


def _changed_tiles(one: Image, other: Image) -> Array:
    _, different = cv2.threshold(cv2.absdiff(one, other), 0, 255, cv2.THRESH_BINARY)
    return tiles(different) > 0


def _seen_share(config: StreamConfig) -> float:
    """Return the share of the pictures that models see and no mask makes black."""
    if not config.privacy or not config.mask_model:
        return 1.0
    from agent.capture.privacy import covered_pixels

    covered = np.zeros(_GRID[::-1], np.bool_)
    for mask in config.privacy:
        covered |= covered_pixels(mask.polygon, *_GRID)
    return 1.0 - float(covered.mean())


class CameraWatcher(Watcher):
    """Problems of a camera, and of a model that sees."""

    def __init__(self, name: str, config: StreamConfig, vision: VideoPerception, folder: Path) -> None:
        from agent.compute.track.places import describe_zones

        self._name, self._vision, self._origin = name, vision, _origin(config)
        self._file = StateFile(folder / f"{name}.json")
        memory = self._read()
        zones = describe_zones(config.zones, config.lines)
        self._camera = CameraCondition(config.condition, zones, memory, _seen_share(config))
        self._answers = None if "constant" in config.condition.ignore else ConstantAnswer()
        self._drift = None
        if "drift" not in config.condition.ignore:
            self._drift = AnswerDrift(_answers_of(config, vision), memory.answers if memory else None)
        self._stored_ns: int | None = None
        self._is_kept = memory is not None
        self._writing: threading.Thread | None = None
        self._failed = self._waits = False

    @property
    def problems(self) -> Mapping[Problem, str]:
        found = self._camera.problems
        if self._answers is not None and self._answers.active:
            found["constant"] = ""
        if self._drift is not None and self._drift.drifted:
            found["drift"] = self._drift.drifted
        return found

    def watch(self, item: Frame, result: StreamResult) -> None:
        vision = self._vision
        self._camera.update(item.captured_ns, lambda: vision.masked_view(item))
        if self._answers is not None and result.detections is not None:
            self._answers.update(item.captured_ns, vision.outputs, lambda: vision.view(item)[0])

    def configure(self, config: StreamConfig) -> None:
        from agent.compute.track.places import describe_zones

        self._camera.set_zones(describe_zones(config.zones, config.lines))

    def suspend_zones(self, suspended: bool) -> bool:
        return self._vision.suspend_zones(suspended)

    def accept(self) -> None:
        self._camera.accept()
        if self._drift is not None:
            self._drift.accept()

    def pass_time(self, now_ns: int) -> None:
        if self._drift is not None:
            self._drift.pass_time(now_ns)

    def observe(self, events: Sequence[Event]) -> None:
        if self._drift is not None:
            self._drift.add(events)

    def pause(self) -> None:
        self._camera.pause()

    def store(self, now_ns: int, *, at_once: bool) -> None:
        """Write what was learned once an hour, and when the camera has moved or is back."""
        self._stored_ns = now_ns if self._stored_ns is None else self._stored_ns
        is_due = not 0 <= now_ns - self._stored_ns < _STORE_NS
        moved = self._camera.has_moved
        if not is_due and not self._waits and not (at_once and (moved or not self._is_kept)):
            return
        self._waits = self._writing is not None and self._writing.is_alive()
        memory = self._camera.remember()
        if memory is None or self._waits:
            return
        self._stored_ns, self._is_kept = now_ns, not moved and bool(memory.looks)
        self._begin_writing(memory)

    def close(self) -> None:
        """Write what was learned, unless the disk is too slow for it."""
        if self._writing is not None:
            self._writing.join(_CLOSE_S)
        memory = self._camera.remember()
        if memory is not None and not (self._writing is not None and self._writing.is_alive()):
            self._begin_writing(memory).join(_CLOSE_S)

    def _begin_writing(self, memory: CameraMemory) -> threading.Thread:
        answers = self._drift.remember() if self._drift is not None else None
        content = msgspec.json.encode(replace(memory, origin=self._origin, answers=answers))
        # Another thread: a slow disk must not stop the pictures.
        self._writing = threading.Thread(
            target=self._write, args=(content,), name=f"condition-{self._name}", daemon=True
        )
        self._writing.start()
        return self._writing

    def _write(self, content: bytes) -> None:
        try:
            make_folder(self._file.path.parent)
            self._file.write(content)
        except StorageError as error:
            if not self._failed:
                log.warning("stream %s: its view is not kept over a restart: %s", self._name, error)
            self._failed = True
        else:
            self._failed = False

    def _read(self) -> CameraMemory | None:
        try:
            content = self._file.read()
            if content is None:
                return None
            memory = from_json(content, CameraMemory)
            unpack_looks(memory.looks)
        except (StorageError, ValueError, *NO_JSON) as error:
            log.warning("stream %s: its view is learned anew: %s: %s", self._name, self._file.path, error)
            return None
        return memory if memory.origin == self._origin else None


def _origin(config: StreamConfig) -> str:
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
