"""Pipelines: take the inputs of one stream through its stages: perceive, report, compare, record, snapshot.

A pipeline also ends the tracks that are due while no input comes, and all of them when the stream is over.
OpenCV is loaded for the first snapshot only: a board with nothing but microphones runs without it.
"""

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
from agent.daemon.metrics import StreamMetrics
from agent.types import AudioChunk, Event, Frame, StageTimes, StreamResult

if TYPE_CHECKING:
    from agent.compute.hearing import AudioPerception
    from agent.compute.vision import VideoPerception
    from agent.daemon.clips import StreamClips
    from agent.daemon.shadow import Shadow


_TAKE_S = 0.25
"""Longest wait for an input, s; then ends that are due, a stop and a lost source are handled."""

T = TypeVar("T", Frame, AudioChunk)
T_co = TypeVar("T_co", covariant=True)
T_contra = TypeVar("T_contra", contravariant=True)


class PipelineSource(Protocol[T_co]):
    """Gives inputs: `FrameStream` or `AudioStream` of `agent.capture.streams`, or a test's list."""

    @property
    def ended(self) -> bool:
        """A finite source is over and every input was taken."""
        ...

    @property
    def lost(self) -> bool:
        """Nothing has come for longer than the stall time."""
        ...

    def take(self, timeout_s: float) -> T_co | None:
        """Return the next input, or None when none came in time."""
        ...


class FrameSource(PipelineSource[Frame], Protocol):
    """Gives frames whose memory is reused."""

    def give_back(self, frame: Frame) -> None:
        """Free the frame's memory for another frame."""
        ...


class StreamPerception(Protocol[T_contra]):
    """Makes events of inputs: `VideoPerception` or `AudioPerception` of `agent.compute`."""

    @property
    def tracker(self) -> Tracker:
        """Follows what is there now."""
        ...

    @property
    def answered_by(self) -> tuple[str, str]:
        """Backend and variant of the newest inference."""
        ...

    def process(self, item: T_contra, /) -> StreamResult:
        """Process one input."""
        ...

    def tick(self, at_ns: int, at: datetime) -> list[Event]:
        """Return the ends that are due while no input comes."""
        ...

    def finish(self, at_ns: int, at: datetime, reason: str) -> list[Event]:
        """End every track."""
        ...


class Pipeline(ABC, Generic[T]):
    """Run one stream until its source ends or it is told to stop.

    Attributes:
        metrics: counts inputs and inferences.
        shadow: compares another model on the same inputs; None: none does.
    """

    def __init__(
        self,
        source: PipelineSource[T],
        perception: StreamPerception[T],
        reporter: Reporter,
        clips: StreamClips | None = None,
        metrics: StreamMetrics | None = None,
    ) -> None:
        self._source: PipelineSource[T] = source
        self._perception: StreamPerception[T] = perception
        self._reporter, self._clips = reporter, clips
        self._now: tuple[int, datetime] | None = None
        self.metrics = metrics or StreamMetrics()
        self.shadow: Shadow | None = None

    def run(
        self, stop: threading.Event, reason: str = "ended", before_each: Callable[[], None] = lambda: None
    ) -> None:
        """Process inputs until the end. Tracks are always ended, whatever happens.

        Args:
            stop: checked between inputs.
            reason: of the tracks' ends when the source ends by itself.
            before_each: called before each wait for an input, in this thread.

        Raises:
            VedetteError: the source or the inference failed.
        """
        why = "failure"
        try:
            while not stop.is_set() and not self._source.ended:
                before_each()
                item = self._source.take(_TAKE_S)
                if item is None:
                    self._idle()
                else:
                    self._process(item)
            why = reason if not stop.is_set() else "shutdown"
        finally:
            self._end_tracks(why)

    def request_snapshot(self) -> None:
        """Publish the next picture as the snapshot; sound has none. Any thread may call this."""

    @abstractmethod
    def _process(self, item: T) -> None:
        """Take one input through the stages."""

    def _perceive(self, item: T) -> StreamResult:
        self._now = item.captured_ns, item.captured_at
        return self._perception.process(item)

    def _report(self, seq: int, at: datetime, result: StreamResult) -> None:
        self._reporter.seen(seq, at, result, *self._perception.answered_by)
        if result.events:
            self._report_counts()

    def _report_counts(self) -> None:
        tracker = self._perception.tracker
        self._reporter.counts(tracker.counts(), tracker.zone_counts())

    def _idle(self) -> None:
        """End the tracks of a lost source at once, those of a slow one when they are due."""
        if self._source.lost:
            self._end_tracks("stall")
        elif self._perception.tracker.alive:
            at = datetime.now(UTC)
            self._publish(self._perception.tick(time.monotonic_ns(), at), at)

    def _end_tracks(self, reason: str) -> None:
        at_ns, at = self._now or (time.monotonic_ns(), datetime.now(UTC))
        self._publish(self._perception.finish(at_ns, at, reason), at)

    def _publish(self, events: Sequence[Event], at: datetime) -> None:
        """Report and record events that came without an input."""
        if events:
            self._reporter.events(events, at, StageTimes(), *self._perception.answered_by)
            self._report_counts()
            if self._clips is not None:
                self._clips.add_events(events)


class SnapshotStage:
    """Publishes the best picture of what is in view, and the next picture when asked."""

    def __init__(self, vision: VideoPerception, reporter: Reporter, config: PublishConfig) -> None:
        self._vision, self._reporter, self._config = vision, reporter, config
        self._best = BestShot(config.snapshot_every_s)
        self._requested = False

    def request(self) -> None:
        """Publish the next frame, whatever is in it."""
        self._requested = True

    def process(self, frame: Frame, result: StreamResult, *, in_place: bool) -> None:
        """Publish the frame if it is the best, or was asked for.

        Args:
            frame: the newest.
            result: what was found in it.
            in_place: True if its image may be drawn on.
        """
        if self._is_best(frame, result) or self._requested:
            self._requested = False
            self._publish(frame, in_place=in_place)

    def _is_best(self, frame: Frame, result: StreamResult) -> bool:
        if not self._config.snapshot or not (result.events or self._best.is_due(frame.captured_ns)):
            return False
        return self._best.is_better(result.events, self._vision.tracks(), frame.captured_ns)

    def _publish(self, frame: Frame, *, in_place: bool) -> None:
        from agent.compute.drawing import annotate, jpeg

        # The box of a track that was missed in this frame is where it was before: it is not drawn.
        found = [track for track in self._vision.tracks() if track.last_seen == frame.captured_at]
        picture = annotate(frame.image, found, order=frame.order, in_place=in_place)
        self._reporter.snapshot(jpeg(picture, self._config.snapshot_quality, frame.order))


class VideoPipeline(Pipeline[Frame]):
    """Frames of one stream: perceive, report, compare, record, snapshot."""

    def __init__(
        self,
        source: FrameSource,
        vision: VideoPerception,
        reporter: Reporter,
        config: PublishConfig,
        clips: StreamClips | None = None,
        metrics: StreamMetrics | None = None,
    ) -> None:
        super().__init__(source, vision, reporter, clips, metrics)
        self._frames, self._vision = source, vision
        self._snapshots = SnapshotStage(vision, reporter, config)

    def request_snapshot(self) -> None:
        """Publish the next frame as the snapshot, whatever is in it. Any thread may call this."""
        self._snapshots.request()

    def _process(self, frame: Frame) -> None:
        kept = False
        try:
            result = self._perceive(frame)
            self._report(frame.seq, frame.captured_at, result)
            self._compare(frame, result)
            if not self._reporter.stopped:  # else this inference has outlasted the stream
                kept = self._clips is not None and self._clips.add_frame(frame, result.events)
                self._snapshots.process(frame, result, in_place=not kept)
            self.metrics.add(result, 1)
        finally:
            if not kept:
                self._frames.give_back(frame)

    def _compare(self, frame: Frame, result: StreamResult) -> None:
        if self.shadow is not None and result.detections is not None:
            self.shadow.compare_frame(frame, self._vision.last_crop, result.detections, result.stages.infer)


class AudioPipeline(Pipeline[AudioChunk]):
    """Sound of one stream: perceive, report, compare."""

    def __init__(
        self,
        source: PipelineSource[AudioChunk],
        hearing: AudioPerception,
        reporter: Reporter,
        metrics: StreamMetrics | None = None,
    ) -> None:
        super().__init__(source, hearing, reporter, metrics=metrics)
        self._hearing = hearing

    def _process(self, chunk: AudioChunk) -> None:
        result = self._perceive(chunk)
        self._report(chunk.first, chunk.captured_at, result)
        inferences = self._hearing.inferences
        if self.shadow is not None:
            self.shadow.compare_audio(chunk, result.detections, result.stages.infer // max(1, inferences))
        self.metrics.add(result, inferences)
