"""Keeps what streams may use now, and the changes that one decision makes."""

from __future__ import annotations

from collections import deque

from agent.compute.governor import pace
from agent.compute.governor.decision import Change
from agent.compute.governor.readings import StreamReading
from agent.compute.governor.state import LEVELS, PROCESSORS, Domain, StreamState, described
from agent.compute.governor.steps import Step, cheaper, steps
from agent.config.governor import Giving, GovernorConfig


class Budgets:
    """Keeps what each stream may use, and how often that changes.

    Attributes:
        states: of streams, by name.
    """

    def __init__(self) -> None:
        self.states: dict[str, StreamState] = {}
        self._lines: dict[str, Change] = {}
        self._changed_at: deque[float] = deque(maxlen=pace.CHANGES_PER_MINUTE)
        self._now_s, self._max_stride = 0.0, 1

    def begin(self, now_s: float, config: GovernorConfig) -> None:
        """Begin another decision; `now_s`: CLOCK_MONOTONIC, s."""
        self._now_s, self._max_stride, self._lines = now_s, config.max_stride, {}

    @property
    def changes(self) -> tuple[Change, ...]:
        """Changes of the present decision, the last one of each stream."""
        return tuple(self._lines.values())

    def tell(self, stream: str, now: str, why: str, *, is_more: bool = False) -> None:
        """Keep a change for the present decision; it replaces an earlier one of the stream. See `Change`."""
        self._lines[stream] = Change(stream, now, why, is_more)

    @property
    def wait_s(self) -> float:
        """Time until a decision may change something again, if none may now, s."""
        return 60.0 - (self._now_s - self._changed_at[0])

    def may_change(self, kept: int = 0) -> bool:
        """Return True if this decision may change something; `kept`: so many of a minute must be left then."""
        at = self._changed_at
        if at and at[-1] == self._now_s:
            return True
        return sum(self._now_s - one < 60.0 for one in at) + kept < pace.CHANGES_PER_MINUTE

    def record(self, stream: str, text: str, why: str, *, urgent: bool = False) -> None:
        """Keep a change for the decision.

        Args:
            stream: its name; empty: the change is one of the event queue.
            text: what holds now.
            why: its reason.
            urgent: it does not count for the most changes in a minute.
        """
        if not urgent and (not self._changed_at or self._changed_at[-1] != self._now_s):
            self._changed_at.append(self._now_s)
        is_more = bool(stream) and why in (pace.ROOM, pace.TRIAL) and self.states[stream].is_reduced
        self.tell(stream, text, why, is_more=is_more)

    def cheaper(self, name: str, stream: StreamReading, at_most: float) -> Step:
        """Return the best cheaper step of a stream that costs at most so much, or its cheapest."""
        return cheaper(steps(stream, self._max_stride), self.states[name].step(stream), at_most)

    def set_step(self, name: str, step: Step, stream: StreamReading, why: str, *, urgent: bool = False) -> bool:
        """Run a stream that way; return False if it does already, or not now.

        Args:
            name: of the stream.
            step: the way.
            stream: its newest reading.
            why: the reason of the change.
            urgent: it is changed however much has changed in the last minute.
        """
        state, before = self.states[name], self.states[name].step(stream)
        variant = "" if step.variant == stream.variants[0].name else step.variant
        kept = pace.FOR_PROMISES_ROOM if why in (pace.ROOM, pace.TRIAL) else 0
        if (state.stride, state.variant) == (step.stride, variant) or not (urgent or self.may_change(kept)):
            return False
        told, (state.stride, state.variant) = described(state), (step.stride, variant)
        if step.stride > before.stride or step.cost < before.cost:
            state.cause = why
        if described(state) != told:
            self.record(name, described(state), why, urgent=urgent)
        return True

    def lower(self, name: str, giving: Giving, why: str, domain: Domain) -> bool:
        """Take a level of something from a stream for a domain that is short; False: none is left, or not now."""
        state = self.states[name]
        kept = 0 if domain == PROCESSORS else pace.FOR_PROMISES
        if state.levels[giving] >= LEVELS[giving] - 1 or not self.may_change(kept):
            return False
        state.lower(giving, domain, why)
        self.record(name, described(state), why)
        return True
