"""Connects the condition of a camera or a microphone with its stream, and keeps what was learned in a file."""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import msgspec
from msgspec.structs import replace

from agent.comms.entities import Component, button, display_name, entity, stream_id
from agent.config import StreamConfig
from agent.config.condition import Problem
from agent.daemon.parts import Asked, EntityPlace, Parts, Reply, StreamContext
from agent.errors import NO_JSON, CommandError, StorageError
from agent.features.condition.problems import StreamCondition, Watcher
from agent.storage.files import make_folder
from agent.storage.state_file import StateFile
from agent.structs import from_json
from agent.types import AudioChunk, Event, Frame, StreamResult

if TYPE_CHECKING:
    from agent.compute.hearing import AudioPerception
    from agent.compute.listening import UtterancePerception
    from agent.compute.vision import VideoPerception
    from agent.features.condition.looks import CameraMemory


log = logging.getLogger(__name__)
FOLDER = "condition"
"""Name of their folder in the state folder."""
_STORE_NS = 3600 * 10**9
"""Least time between two writes of what was learned, unless the camera has moved: SD cards wear out."""


def open_part(context: StreamContext, _: Parts) -> StreamCondition | None:
    """Watch the inputs of a stream, if there is a folder for what is learned of them."""
    if context.state is None:
        return None
    watcher: Watcher
    if context.has_sound:
        watcher = MicrophoneWatcher(
            context.config, cast("AudioPerception | UtterancePerception", context.perception)
        )
    else:
        vision = cast("VideoPerception", context.perception)
        watcher = CameraWatcher(context.name, context.config, vision, context.state / FOLDER)
    return StreamCondition(context.name, watcher, context.reporter)


_GRID = 160, 120
"""Columns and rows of a picture in which masks are measured."""
_CLOSE_S = 2.0
"""Longest wait for the disk when a stream ends, s."""


class MicrophoneWatcher:
    """Problems of a microphone, and of a model that hears."""

    def __init__(self, config: StreamConfig, hearing: AudioPerception | UtterancePerception) -> None:
        from agent.features.condition.microphone import MicrophoneCondition

        self._hearing, self._ignores = hearing, "constant" in config.condition.ignore
        self._microphone = MicrophoneCondition(config.condition, hearing.rate_hz)

    def watch(self, item: AudioChunk, result: StreamResult) -> None:
        self._microphone.update(item.samples, item.captured_ns)

    def configure(self, config: StreamConfig) -> None:
        """Sound has no zones."""

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
        from agent.compute.track.places import describe_zones
        from agent.features.condition.answers import AnswerDrift, ConstantAnswer
        from agent.features.condition.camera import CameraCondition

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
        from agent.features.condition.looks import CameraMemory, unpack_looks

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


def accept(asked: Asked) -> Reply:
    """Take what a camera sees now for its right view. Raises CommandError if nobody watches it."""
    stream, (state, detail) = asked.stream, asked.stream.status
    part = stream.parts.get("condition")
    if part is None or not stream.is_at_work:
        why = "its camera is not watched" if stream.is_at_work else f"it is {state}"
        raise CommandError(
            f"stream {stream.name}: {why}, so there is no view to accept{detail and f': {detail}'}"
        )
    part.accept()
    return "", {}


_PROBLEM = "{{ ('ON' if value_json.problems else 'OFF') if value_json is defined else 'None' }}"
_PROBLEMS = "{{ (value_json if value_json is defined else {}) | to_json }}"
"""The topic of a condition is empty where it is not known."""


def entities(place: EntityPlace) -> Iterator[tuple[str, Component]]:
    """Yield the entities of a stream, by id."""
    topic, name = place.topics.condition(place.name), place.name
    if place.commands and place.has_pictures:
        press = button(place.topics, name, "accept", "accept view", entity_category="config")
        yield stream_id(name, "accept"), press
    yield (
        stream_id(name, "problem"),
        entity(
            "binary_sensor",
            display_name(name, "problem"),
            state_topic=topic,
            value_template=_PROBLEM,
            device_class="problem",
            entity_category="diagnostic",
            json_attributes_topic=topic,
            json_attributes_template=_PROBLEMS,
        ),
    )
