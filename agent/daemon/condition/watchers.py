"""Connects the condition of a camera or a microphone with its stream, and keeps what was learned in a file."""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import msgspec
from msgspec.structs import replace

from agent.comms.reporter import Reporter
from agent.config import StreamConfig
from agent.config.condition import Problem
from agent.config.source_uri import parse
from agent.daemon.condition.told import StreamCondition, Watcher
from agent.errors import NO_JSON, CommandError, StorageError
from agent.storage.files import make_folder
from agent.storage.state_file import StateFile
from agent.structs import from_json
from agent.types import Event

if TYPE_CHECKING:
    from agent.compute.condition.memory import CameraMemory
    from agent.compute.hearing import AudioPerception
    from agent.compute.listening import UtterancePerception
    from agent.compute.vision import VideoPerception
    from agent.daemon.streams.perception import Perception


log = logging.getLogger(__name__)
FOLDER = "condition"
"""Name of their folder in the state folder."""
_STORE_NS = 3600 * 10**9
"""Least time between two writes of what was learned, unless the camera has moved: SD cards wear out."""


def is_watched(config: StreamConfig) -> bool:
    """Return True if a stream's camera, microphone and model are watched."""
    if config.inspection is not None:
        return False
    enabled = config.condition.enabled
    return parse(config.source).live if enabled is None else enabled


def open_condition(
    name: str, config: StreamConfig, opened: Perception, reporter: Reporter, state: Path
) -> StreamCondition | None:
    """Watch the inputs of an open perception; None: the stream is not watched.

    Args:
        name: of the stream.
        config: of the stream.
        opened: its perception.
        reporter: publishes its problems.
        state: folder of the daemon's state.
    """
    if not is_watched(config):
        return None
    watcher: Watcher
    if opened.model.manifest.audio is None:
        watcher = CameraWatcher(name, config, cast("VideoPerception", opened), state / FOLDER)
    else:
        watcher = MicrophoneWatcher(config, cast("AudioPerception | UtterancePerception", opened))
    return StreamCondition(name, watcher, reporter)


_GRID = 160, 120
"""Columns and rows of a picture in which masks are measured."""
_CLOSE_S = 2.0
"""Longest wait for the disk when a stream ends, s."""


class MicrophoneWatcher:
    """Problems of a microphone, and of a model that hears."""

    def __init__(self, config: StreamConfig, hearing: AudioPerception | UtterancePerception) -> None:
        from agent.compute.condition.microphone import MicrophoneCondition

        self._hearing, self._ignores = hearing, "constant" in config.condition.ignore
        self._microphone = MicrophoneCondition(config.condition, hearing.rate_hz)
        hearing.microphone = self._microphone

    @property
    def problems(self) -> Mapping[Problem, str]:
        found = self._microphone.problems
        if self._hearing.alarm and not self._ignores:
            found["constant"] = self._hearing.alarm
        return found

    def suspend_zones(self, suspended: bool) -> bool:
        return False

    def accept(self) -> None:
        raise CommandError("a microphone has no view")

    def pause(self) -> None:
        self._microphone.pause()

    def observe(self, events: Sequence[Event]) -> None:
        """Nothing is learned of sounds: they come and go with the seasons."""

    def pass_time(self, now_ns: int) -> None:
        """Nothing takes days."""

    def store(self, now_ns: int, *, at_once: bool) -> None:
        """Nothing is kept: a microphone is known in three minutes."""

    def close(self) -> None:
        """Nothing is kept."""


def _seen_share(config: StreamConfig) -> float:
    """Return the share of the pictures that models see and no mask makes black."""
    if not config.privacy or not config.mask_model:
        return 1.0
    import numpy as np

    from agent.capture.privacy import covered_pixels

    covered = np.zeros(_GRID[::-1], np.bool_)
    for mask in config.privacy:
        covered |= covered_pixels(mask.polygon, *_GRID)
    return 1.0 - float(covered.mean())


class CameraWatcher:
    """Problems of a camera, and of a model that sees."""

    def __init__(self, name: str, config: StreamConfig, vision: VideoPerception, folder: Path) -> None:
        from agent.compute.condition.camera import CameraCondition
        from agent.compute.condition.drift import AnswerDrift
        from agent.compute.condition.model import ConstantAnswer
        from agent.compute.track.zones import describe_zones

        self._name, self._vision, self._origin = name, vision, _origin(config)
        self._file = StateFile(folder / f"{name}.json")
        memory = self._read()
        zones = describe_zones(config.zones, config.lines)
        self._camera = CameraCondition(config.condition, zones, memory, _seen_share(config))
        self._answers = None if "constant" in config.condition.ignore else ConstantAnswer()
        vision.camera, vision.answers = self._camera, self._answers
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
        from agent.compute.condition.memory import CameraMemory, unpack_looks

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
