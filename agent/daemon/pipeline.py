"""What every stream's corridor does, for pictures and sound: take, hand on, notice time, end every track."""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from msgspec import Struct

from agent.comms.reporter import Reporter
from agent.compute.track.tracker import Tracker
from agent.messages import Event, Seen, Stages
from agent.recent import Recent

if TYPE_CHECKING:
    from agent.shadow import Shadow

_TAKE_S = 0.25
"""Longest wait for an input before time itself is looked at: ends that are due, a stop, a loss."""

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Source(Protocol[T_co]):
    """Where inputs come from: a grabber of frames, a listener to sound, or a test's list."""

    @property
    def ended(self) -> bool:
        """Whether a finite source is over and everything was taken."""
        ...

    @property
    def lost(self) -> bool:
        """Whether nothing has come for longer than the stall time."""
        ...

    def take(self, timeout_s: float) -> T_co | None:
        """The next input, or None when none came in time."""
        ...


class Sense(Protocol):
    """What makes events of inputs: `agent.compute.vision.Vision`, or `agent.compute.hearing.Hearing`."""

    @property
    def tracker(self) -> Tracker:
        """What is there now."""
        ...

    @property
    def answered_by(self) -> tuple[str, str]:
        """Backend and rung of the newest answer."""
        ...

    def tick(self, at_ns: int, at: datetime) -> list[Event]:
        """Time passes and nothing comes: ends that are due."""
        ...

    def finish(self, at_ns: int, at: datetime, reason: str) -> list[Event]:
        """End every track."""
        ...


class Tally(Struct):
    """Running totals of one corridor. A picture, or some sound, is a frame."""

    frames: int = 0
    inferences: int = 0
    infer_ns: int = 0


class Corridor(ABC, Generic[T]):
    """Runs one stream until its source ends or it is told to stop.

    Attributes:
        shadow: is shown what was inferred.
    """

    def __init__(self, source: Source[T], sense: Sense, reporter: Reporter) -> None:
        self._source, self._sense, self._reporter = source, sense, reporter
        self._now: tuple[int, datetime] | None = None
        self.tally, self.recent = Tally(), Recent()
        self.first_result = threading.Event()
        self.shadow: Shadow | None = None

    def run(
        self, stop: threading.Event, reason: str = "ended", between: Callable[[], None] = lambda: None
    ) -> None:
        """Move inputs until the end. Tracks are always ended, whatever happens.

        Args:
            stop: checked between inputs.
            reason: of the tracks' ends when the source ends by itself.
            between: called between inputs, in this thread.

        Raises:
            VedetteError: the source or the inference failed.
        """
        why = "failure"
        try:
            while not stop.is_set() and not self._source.ended:
                between()
                self._step()
            why = reason if not stop.is_set() else "shutdown"
        finally:
            self._finish(why)

    def ask_snapshot(self) -> None:
        """Publish the next input as a snapshot, where there are pictures."""

    def _step(self) -> None:
        taken = self._source.take(_TAKE_S)
        if taken is None:
            self._idle()
        else:
            self._handle(taken)

    @abstractmethod
    def _handle(self, taken: T) -> None:
        """Take one input through the rooms."""

    def _note(self, seen: Seen, inferences: int) -> None:
        """Keep the totals, after the results are on their way."""
        tally = self.tally
        tally.frames += 1
        if seen.detections is not None:
            tally.inferences += inferences
            tally.infer_ns += seen.stages.infer
            self.recent.add(seen.stages.infer // max(1, inferences))
            if not self.first_result.is_set():
                self.first_result.set()

    def _idle(self) -> None:
        """No input: a lost source ends its tracks at once, a slow one when they are due."""
        if self._source.lost:
            self._finish("stall")
        elif self._sense.tracker.alive:
            at = datetime.now(UTC)
            self._report(self._sense.tick(time.monotonic_ns(), at), at)

    def _finish(self, reason: str) -> None:
        at_ns, at = self._now or (time.monotonic_ns(), datetime.now(UTC))
        self._report(self._sense.finish(at_ns, at, reason), at)

    def _report(self, events: Sequence[Event], at: datetime) -> None:
        if events:
            self._reporter.events(events, at, Stages(), *self._sense.answered_by)
            self._count()

    def _count(self) -> None:
        tracker = self._sense.tracker
        self._reporter.counts(tracker.counts(), tracker.zone_counts())
