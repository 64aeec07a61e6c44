"""What every stream's corridor does, for pictures and sound: take, hand on, notice time, end every track."""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from agent.comms.reporter import Reporter
from agent.compute.track.best_shot import BestShot
from agent.compute.track.tracker import Tracker
from agent.config.stream import PublishConfig
from agent.daemon.metrics import LatencyWindow, StreamTotals
from agent.types import AudioChunk, Event, Frame, StageTimes, StreamResult

if TYPE_CHECKING:
    from agent.compute.hearing import AudioPerception
    from agent.compute.vision import VideoPerception
    from agent.daemon.clips import StreamClips
    from agent.daemon.shadow import Shadow


_TAKE_S = 0.25
"""Longest wait for an input before time itself is looked at: ends that are due, a stop, a loss."""

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class PipelineSource(Protocol[T_co]):
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


class StreamPerception(Protocol):
    """What makes events of inputs: `VideoPerception` or `AudioPerception` of `agent.compute`."""

    @property
    def tracker(self) -> Tracker:
        """What is there now."""
        ...

    @property
    def answered_by(self) -> tuple[str, str]:
        """Backend and variant of the newest answer."""
        ...

    def tick(self, at_ns: int, at: datetime) -> list[Event]:
        """Time passes and nothing comes: ends that are due."""
        ...

    def finish(self, at_ns: int, at: datetime, reason: str) -> list[Event]:
        """End every track."""
        ...


class Pipeline(ABC, Generic[T]):
    """Runs one stream until its source ends or it is told to stop.

    Attributes:
        shadow: is shown what was inferred.
    """

    def __init__(self, source: PipelineSource[T], sense: StreamPerception, reporter: Reporter) -> None:
        self._source, self._sense, self._reporter = source, sense, reporter
        self._now: tuple[int, datetime] | None = None
        self.tally, self.recent = StreamTotals(), LatencyWindow()
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

    def _note(self, seen: StreamResult, inferences: int) -> None:
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
            self._reporter.events(events, at, StageTimes(), *self._sense.answered_by)
            self._count()

    def _count(self) -> None:
        tracker = self._sense.tracker
        self._reporter.counts(tracker.counts(), tracker.zone_counts())


# The corridor of a stream of pictures: frames through its vision to its reporter and its clips, nothing else.


class FrameSource(PipelineSource[Frame], Protocol):
    """Where frames come from: `agent.capture.streams.FrameStream`, or a test's list."""

    def give_back(self, frame: Frame) -> None:
        """The frame's memory may be used again."""
        ...


class VideoPipeline(Pipeline[Frame]):
    """Pictures of one stream."""

    def __init__(
        self,
        source: FrameSource,
        vision: VideoPerception,
        reporter: Reporter,
        config: PublishConfig,
        filming: StreamClips | None = None,
    ) -> None:
        super().__init__(source, vision, reporter)
        self._filming = filming
        self._frames, self._vision, self._config = source, vision, config
        self._best = BestShot(config.snapshot_every_s)
        self._asked = False

    def ask_snapshot(self) -> None:
        """Publish the next frame as the snapshot, whatever is in it."""
        self._asked = True

    def _handle(self, frame: Frame) -> None:
        taken = False
        try:
            seen = self._look(frame)
            if not self._reporter.stopped:  # else this inference has outlasted the stream
                taken = self._show(frame, seen)
            self._note(seen, 1)
        finally:
            if not taken:
                self._frames.give_back(frame)

    def _show(self, frame: Frame, seen: StreamResult) -> bool:
        """Hand the picture to the clips and publish it where it is wanted; True if the clips keep it."""
        taken = self._filming is not None and self._filming.add_frame(frame, seen.events)
        wanted = self._config.snapshot and (seen.events or self._best.is_due(frame.captured_ns))
        if (wanted and self._is_best(frame, seen)) or self._asked:
            self._asked = False
            self._snapshot(frame, is_ours=not taken)
        return taken

    def _look(self, frame: Frame) -> StreamResult:
        vision = self._vision
        self._now = frame.captured_ns, frame.captured_at
        seen = vision.process(frame)
        self._reporter.seen(frame.seq, frame.captured_at, seen, *vision.answered_by)
        if seen.events:
            self._count()
        if self.shadow is not None and seen.detections is not None:
            self.shadow.compare_frame(frame, vision.looked, seen.detections, seen.stages.infer)
        return seen

    def _report(self, events: Sequence[Event], at: datetime) -> None:
        super()._report(events, at)
        if self._filming is not None and events:
            self._filming.add_events(events)

    def _is_best(self, frame: Frame, seen: StreamResult) -> bool:
        return self._best.is_better(seen.events, self._vision.tracks(), frame.captured_ns)

    def _snapshot(self, frame: Frame, *, is_ours: bool) -> None:
        # It loads OpenCV, which a board of microphones does without.
        from agent.compute.drawing import annotate, jpeg

        # One that was missed in this very frame stays in memory only: its box is where it was.
        found = [track for track in self._vision.tracks() if track.last_seen == frame.captured_at]
        picture = annotate(frame.image, found, order=frame.order, in_place=is_ours)
        self._reporter.snapshot(jpeg(picture, self._config.snapshot_quality, frame.order))


# The corridor of a stream of sound: chunks through its hearing to its reporter. Nothing here loads OpenCV.


class AudioPipeline(Pipeline[AudioChunk]):
    """Sound of one stream."""

    def __init__(self, source: PipelineSource[AudioChunk], hearing: AudioPerception, reporter: Reporter) -> None:
        super().__init__(source, hearing, reporter)
        self._hearing = hearing

    def _handle(self, chunk: AudioChunk) -> None:
        hearing = self._hearing
        self._now = chunk.captured_ns, chunk.captured_at
        seen = hearing.process(chunk)
        self._reporter.seen(chunk.first, chunk.captured_at, seen, *hearing.answered_by)
        if seen.events:
            self._count()
        if self.shadow is not None:
            self.shadow.compare_audio(chunk, seen.detections, seen.stages.infer // max(1, hearing.inferences))
        self._note(seen, hearing.inferences)
