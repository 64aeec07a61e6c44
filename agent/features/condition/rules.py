"""Problems of a stream's camera, microphone or model: one row each, and when each begins and ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import Struct

from agent.config import StreamConfig
from agent.config.features import Problem
from agent.errors import CommandError
from agent.types import Event, StreamResult


class ProblemRule(Struct, frozen=True):
    """One problem.

    Attributes:
        text: for people.
        begin_s, end_s: time for which its sign must be there until it begins, and be away until it ends, s.
        suspends: zones are left out while it lasts.
    """

    text: str
    begin_s: float = 0.0
    end_s: float = 0.0
    suspends: bool = False


PROBLEMS: Mapping[Problem, ProblemRule] = {
    "dark": ProblemRule("the picture is dark", 20.0, 10.0),
    "frozen": ProblemRule("the camera repeats one picture", 0.0, 4.0),
    "blurred": ProblemRule("the picture is blurred", 20.0, 10.0),
    "covered": ProblemRule("the camera is covered", 12.0, 10.0),
    "moved": ProblemRule("the camera has moved", 6.0, 10.0, suspends=True),
    "tilted": ProblemRule("the camera is tilted", 6.0, 10.0, suspends=True),
    "silent": ProblemRule("the sound is silent", 24.0, 4.0),
    "clipped": ProblemRule("the sound is clipped", 4.0, 60.0),
    "humming": ProblemRule("the sound hums", 32.0, 20.0),
    "constant": ProblemRule("the model gives one answer to everything"),
    "drift": ProblemRule("the model's answers have changed"),
}


class ProblemTimers:
    """Follows which problems last, each with what is known about it. For one thread."""

    def __init__(self) -> None:
        self.active: dict[Problem, str] = {}
        self._since_ns: dict[Problem, int] = {}

    def update(
        self, problem: Problem, sign: bool | None, now_ns: int, detail: str = "", *, begin_s: float | None = None
    ) -> None:
        """Record whether the sign of a problem is there; None: it cannot be told, so nothing changes now.

        `begin_s` replaces the time of the problem's row.
        """
        if sign is None or sign is (problem in self.active):
            self._since_ns.pop(problem, None)
            return
        rule, since_ns = PROBLEMS[problem], self._since_ns.setdefault(problem, now_ns)
        least_s = rule.end_s if not sign else rule.begin_s if begin_s is None else begin_s
        if now_ns - since_ns < least_s * 1e9:
            return
        del self._since_ns[problem]
        if sign:
            self.active[problem] = detail
        else:
            del self.active[problem]

    def restart(self) -> None:
        """Start the delays anew: inputs were missing."""
        self._since_ns.clear()


class Watcher:
    """Finds the problems of one stream. For the stream's thread, but for `accept`."""

    @property
    def problems(self) -> Mapping[Problem, str]:
        """Problems that last, each with what is known about it."""
        return {}

    def watch(self, item: Any, result: StreamResult) -> None:
        """Watch an input, and what the model has answered."""

    def pause(self) -> None:
        """Record that no inputs come."""

    def observe(self, events: Sequence[Event]) -> None:
        """Learn from what the model has found."""

    def configure(self, config: StreamConfig) -> None:
        """Use other zones."""

    def suspend_zones(self, suspended: bool) -> bool:
        """Leave the zones out, or use them again; return False if there are none."""
        return False

    def accept(self) -> None:
        """Take what the camera sees now for its right view. Any thread may call this."""
        raise CommandError("a microphone has no view")

    def poll(self, now_ns: int) -> None:
        """Let time pass, up to the capture of the newest input, ns; write what was learned, if that is due."""

    def close(self) -> None:
        """Write what was learned: the stream ends."""
