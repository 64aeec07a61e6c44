"""Tells a stream's problems, each when it begins and when it ends, and suspends the zones of a moved camera."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Protocol

from agent.comms.messages import ConditionMessage, StreamProblem
from agent.comms.reporter import Reporter
from agent.config import StreamConfig
from agent.config.condition import Problem
from agent.daemon.parts import StreamPart
from agent.errors import CommandError
from agent.types import AudioChunk, Event, Frame, StreamResult

log = logging.getLogger(__name__)
_POLL_NS = 1_000_000_000
TEXTS: Mapping[Problem, str] = {
    "dark": "the picture is dark",
    "frozen": "the camera repeats one picture",
    "blurred": "the picture is blurred",
    "covered": "the camera is covered",
    "moved": "the camera has moved",
    "tilted": "the camera is tilted",
    "silent": "the sound is silent",
    "clipped": "the sound is clipped",
    "humming": "the sound hums",
    "constant": "the model gives one answer to everything",
    "drift": "the model's answers have changed",
}


class Watcher(Protocol):
    """Finds the problems of one stream: `CameraWatcher` or `MicrophoneWatcher`."""

    @property
    def problems(self) -> Mapping[Problem, str]: ...

    def watch(self, item: Any, result: StreamResult) -> None:
        """Watch an input, and what the model has answered."""
        ...

    def configure(self, config: StreamConfig) -> None:
        """Use other zones."""
        ...

    def suspend_zones(self, suspended: bool) -> bool:
        """Leave the zones out, or use them again; return False if there are none."""
        ...

    def accept(self) -> None:
        """Take what the camera sees now for its right view; raise CommandError for a microphone."""
        ...

    def pause(self) -> None:
        """Record that no inputs come."""
        ...

    def observe(self, events: Sequence[Event]) -> None:
        """Learn from what the model has found."""
        ...

    def pass_time(self, now_ns: int) -> None:
        """Let time pass, up to the capture of the newest input, ns."""
        ...

    def store(self, now_ns: int, *, at_once: bool) -> None:
        """Write what was learned, if that is due."""
        ...

    def close(self) -> None:
        """Write what was learned: the stream ends."""
        ...


class StreamCondition(StreamPart):
    """Problems of one stream. For the stream's thread; any thread may read `told` and call `accept`."""

    def __init__(self, stream: str, watcher: Watcher, reporter: Reporter) -> None:
        self._stream, self._watcher, self._reporter = stream, watcher, reporter
        self._told: dict[Problem, tuple[StreamProblem, int]] = {}
        self._suspended, self._published = False, False
        self._next_ns = self._now_ns = -(1 << 62)
        self._suspend(watcher.problems)  # it may have moved in an earlier run

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
        self._now_ns = now_ns
        if 0 < self._next_ns - now_ns <= _POLL_NS:
            return
        self._next_ns = now_ns + _POLL_NS
        self._watcher.pass_time(now_ns)
        found = self._watcher.problems
        changed = found.keys() != self._told.keys()
        if changed:
            self._suspend(found)
            self._end(found, now_ns)
            self._begin(found, now_ns, at)
        if changed or not self._published:
            self._publish()
        self._watcher.store(now_ns, at_once=changed)

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

    def _suspend(self, found: Mapping[Problem, str]) -> None:
        suspended = bool(found.keys() & {"moved", "tilted"})
        if suspended is not self._suspended:
            self._suspended = self._watcher.suspend_zones(suspended) and suspended

    def _end(self, found: Mapping[Problem, str], now_ns: int) -> None:
        for problem in [one for one in self._told if one not in found]:
            _, began_ns = self._told.pop(problem)
            lasted = _length((now_ns - began_ns) / 1e9)
            log.info("stream %s: %s no longer, after %s", self._stream, TEXTS[problem], lasted)

    def _begin(self, found: Mapping[Problem, str], now_ns: int, at: datetime) -> None:
        for problem, detail in found.items():
            if problem not in self._told:
                self._told[problem] = StreamProblem(problem, at, detail), now_ns
                log.warning("stream %s: %s", self._stream, self._describe(problem, detail))

    def _describe(self, problem: Problem, detail: str) -> str:
        text = TEXTS[problem] + (f" ({detail})" if detail else "")
        is_suspended = self._suspended and problem in ("moved", "tilted")
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
