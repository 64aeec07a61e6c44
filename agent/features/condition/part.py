"""Tells the problems of a stream's camera, microphone or model, and suspends the zones of a moved camera."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, cast

from agent.comms.entities import Component, button, display_name, entity, stream_id
from agent.comms.messages import ConditionMessage, StreamProblem
from agent.comms.reporter import Reporter
from agent.config import StreamConfig
from agent.config.features import Problem
from agent.daemon.parts import Asked, EntityPlace, Parts, Reply, StreamContext, StreamPart
from agent.errors import CommandError
from agent.features.condition.rules import PROBLEMS, Watcher
from agent.types import AudioChunk, Event, Frame, StreamResult

if TYPE_CHECKING:
    from agent.compute.hearing import AudioPerception
    from agent.compute.listening import UtterancePerception
    from agent.compute.vision import VideoPerception

log = logging.getLogger(__name__)
FOLDER = "condition"
"""Name of the folder of what was learned, in the state folder."""
_POLL_NS = 1_000_000_000


def open_part(context: StreamContext, _: Parts) -> StreamCondition | None:
    """Watch the inputs of a stream, if there is a folder for what is learned of them."""
    config, watcher = context.config, Watcher()
    if context.state is None:
        return None
    if context.has_sound:
        from agent.features.condition.microphone import MicrophoneWatcher

        hearing = cast("AudioPerception | UtterancePerception", context.perception)
        watcher = MicrophoneWatcher(hearing.rate_hz, lambda: hearing.alarm)
    else:
        from agent.features.condition.camera import CameraWatcher

        vision = cast("VideoPerception", context.perception)
        watcher = CameraWatcher(context.name, config, vision, context.state / FOLDER)
    return StreamCondition(context.name, watcher, context.reporter, config.condition.ignore)


class StreamCondition(StreamPart):
    """Problems of one stream. For the stream's thread; any thread may read `told` and call `accept`."""

    def __init__(
        self, stream: str, watcher: Watcher, reporter: Reporter, ignored: Collection[Problem] = ()
    ) -> None:
        self._stream, self._watcher, self._reporter, self._ignored = stream, watcher, reporter, ignored
        self._told: dict[Problem, tuple[StreamProblem, int]] = {}
        self._suspended, self._published = False, False
        self._next_ns = -(1 << 62)
        self._suspend(self._found())  # it may have moved in an earlier run

    @property
    def problems(self) -> tuple[Problem, ...]:
        return tuple(self._told)

    @property
    def trouble(self) -> str:
        return "; ".join(self._describe(problem, one.detail) for problem, (one, _) in self._told.copy().items())

    def process(self, item: Frame | AudioChunk, result: StreamResult) -> None:
        self._watcher.watch(item, result)
        self.observe(result.events)
        self.poll(item.captured_ns, item.captured_at)

    def idle(self, events: Sequence[Event], *, lost: bool) -> None:
        self.observe(events)
        if lost:
            self._watcher.pause()

    def end(self, events: Sequence[Event], reason: str) -> None:
        self.observe(events)

    def configure(self, config: StreamConfig) -> None:
        self._watcher.configure(config)

    def observe(self, events: Sequence[Event]) -> None:
        """Learn from events, as far as nothing is wrong with the inputs."""
        if not self._told.keys() - {"drift"}:
            self._watcher.observe(events)

    def poll(self, now_ns: int, at: datetime) -> None:
        """Tell what has begun or ended, with the time of capture of the newest input."""
        if 0 < self._next_ns - now_ns <= _POLL_NS:
            return
        self._next_ns = now_ns + _POLL_NS
        self._watcher.poll(now_ns)
        found = self._found()
        if found.keys() != self._told.keys():
            self._suspend(found)
            self._end(found, now_ns)
            self._begin(found, now_ns, at)
        elif self._published:
            return
        self._publish()

    def accept(self) -> None:
        """Take what the camera sees now for its right view. Raises CommandError for a microphone."""
        try:
            self._watcher.accept()
        except CommandError as error:
            raise CommandError(f"stream {self._stream}: {error}") from None
        log.info("stream %s: the present view was accepted", self._stream)

    def close(self) -> None:
        """Write what was learned, and tell nothing any more: the stream ends."""
        self._watcher.close()
        self._reporter.clear(ConditionMessage)

    def _found(self) -> dict[Problem, str]:
        problems = self._watcher.problems
        return {problem: detail for problem, detail in problems.items() if problem not in self._ignored}

    def _suspend(self, found: Mapping[Problem, str]) -> None:
        suspended = any(PROBLEMS[problem].suspends for problem in found)
        if suspended is not self._suspended:
            self._suspended = self._watcher.suspend_zones(suspended) and suspended

    def _end(self, found: Mapping[Problem, str], now_ns: int) -> None:
        for problem in [one for one in self._told if one not in found]:
            _, began_ns = self._told.pop(problem)
            lasted = _length((now_ns - began_ns) / 1e9)
            log.info("stream %s: %s no longer, after %s", self._stream, PROBLEMS[problem].text, lasted)

    def _begin(self, found: Mapping[Problem, str], now_ns: int, at: datetime) -> None:
        for problem, detail in found.items():
            if problem not in self._told:
                self._told[problem] = StreamProblem(problem, at, detail), now_ns
                log.warning("stream %s: %s", self._stream, self._describe(problem, detail))

    def _describe(self, problem: Problem, detail: str) -> str:
        text = PROBLEMS[problem].text + (f" ({detail})" if detail else "")
        is_suspended = self._suspended and PROBLEMS[problem].suspends
        return f"{text}: its zones are suspended" if is_suspended else text

    def _publish(self) -> None:
        self._published = True
        device, stream = self._reporter.place
        problems = tuple(one for one, _ in self._told.values())
        self._reporter.retain(ConditionMessage(device, stream, problems, self._suspended))


def _length(seconds: float) -> str:
    if seconds < 120.0:
        return f"{seconds:.0f} s"
    return f"{seconds / 60.0:.0f} min" if seconds < 7200.0 else f"{seconds / 3600.0:.1f} h"


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
