"""Takes the inputs of one stream through its stages: perceive, report, and what each part does.

A pipeline also ends the tracks that are due while no input comes, and all of them when the stream is over.
OpenCV is loaded by what uses it: a board with nothing but microphones runs without it.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, Union, cast

from msgspec import Struct

from agent import spans
from agent.capture.source import DecodeMode, Demand
from agent.comms.reporter import Reporter
from agent.compute.manifest import Model
from agent.compute.track.tracker import Tracker
from agent.config import StreamConfig
from agent.config.features import StreamBudget
from agent.daemon.parts import Parts
from agent.daemon.streams.counters import StreamMetrics
from agent.errors import ConfigError
from agent.spans import SpanRecorder
from agent.types import AudioChunk, Event, Frame, StageTimes, StreamResult

if TYPE_CHECKING:
    from agent.capture.camera import Cameras
    from agent.capture.sound import AudioStream
    from agent.capture.streams import FrameStream
    from agent.compute.hearing import AudioPerception
    from agent.compute.listening import UtterancePerception
    from agent.compute.vision import VideoPerception
    from agent.daemon.streams.perception import Perception


log = logging.getLogger("agent.daemon.streams.stream")
TAKE_S = 0.25
"""Longest wait for an input, s; then ends that are due, a stop and a lost source are handled."""
_IN_TURN = ("gate", "prepare", "infer", "decode", "track", "secondary")

OnChange = Callable[[str, str], None]
"""Called with a new state of a source, and the reason."""


Input = Union["FrameStream", "AudioStream"]
T = TypeVar("T", Frame, AudioChunk)
T_co = TypeVar("T_co", covariant=True)
T_contra = TypeVar("T_contra", contravariant=True)


class PipelineSource(Protocol[T_co]):
    """Gives inputs: `FrameStream` or `AudioStream` of `agent.capture.streams`, or a test's list.

    It is `lost` while nothing comes for longer than the stall time, and a finite one has `ended` when every input
    was taken. `take` returns None when none came in time.
    """

    @property
    def ended(self) -> bool: ...

    @property
    def lost(self) -> bool: ...

    def take(self, timeout_s: float) -> T_co | None: ...


class StreamPerception(Protocol[T_contra]):
    """Makes events of inputs: a perception of `agent.compute.vision`, `hearing` or `listening`."""

    @property
    def model(self) -> Model: ...

    @property
    def tracker(self) -> Tracker: ...

    @property
    def answered_by(self) -> tuple[str, str]: ...

    def process(self, item: T_contra, /) -> StreamResult: ...

    def finish(self, at_ns: int, at: datetime, reason: str) -> list[Event]: ...


def add_stages(recorder: SpanRecorder, began_ns: int, stages: StageTimes, number: int) -> None:
    """Add a span `frame` and in it one for each stage that ran; they follow one another without a pause.

    Args:
        recorder: of the trace.
        began_ns: when the first stage began, CLOCK_MONOTONIC, ns.
        stages: durations; the time in the queue was spent on another thread, and is not shown.
        number: of the picture, or of the first sample.
    """
    at_ns = began_ns
    for name in _IN_TURN:
        took_ns: int = getattr(stages, name)
        if took_ns > 0:
            recorder.add(name, at_ns, at_ns + took_ns)
            at_ns += took_ns
    recorder.add("frame", began_ns, at_ns, number)


class Pipeline(ABC, Generic[T]):
    """Runs one stream until its source ends or it is told to stop. The caller closes the `parts`."""

    def __init__(
        self,
        source: PipelineSource[T],
        perception: StreamPerception[T],
        reporter: Reporter,
        parts: Parts | None = None,
        metrics: StreamMetrics | None = None,
    ) -> None:
        self._source: PipelineSource[T] = source
        self._reporter, self.parts = reporter, parts or Parts()
        self._perception: StreamPerception[T] = self.parts.perception(perception)
        self._now: tuple[int, datetime] | None = None
        self.metrics = metrics or StreamMetrics()
        output = perception.model.manifest.output
        self._step = float(output.options.get("step", 0.0)) if output.decoder == "regression" else None
        self._counts = not perception.model.manifest.gives_texts  # each text would be a topic

    def run(
        self, stop: threading.Event, reason: str = "ended", before_each: Callable[[], None] = lambda: None
    ) -> None:
        """Process inputs until the source ends, for that `reason`, or until `stop`. Tracks are always ended.

        `before_each` is called before each wait for an input, in this thread.

        Raises:
            VedetteError: the source or the inference failed.
        """
        why = "failure"
        try:
            while not stop.is_set() and not self._source.ended:
                before_each()
                with spans.span("wait"):
                    item = self._source.take(self._wait_s)
                if item is None:
                    self._idle()
                else:
                    self._process(item)
                item = None  # while waiting for the next one: a picture of 1080p takes 6 MB
            why = reason if not stop.is_set() else "shutdown"
            self._report_values({}, math.inf)
        finally:
            self.parts.end(self._end_tracks(why), why)

    def configure(self, config: StreamConfig) -> None:
        """Use another configuration from the next input on, see `Stream.can_adjust`. For the stream's thread."""
        self.parts.configure(config)

    def set_budget(self, budget: StreamBudget) -> None:
        """Use no more than a budget from the next input on; sound is all inferred. For the stream's thread."""
        self._reporter.set_budget(budget)
        self.parts.set_budget(budget)

    @property
    def _wait_s(self) -> float:
        """Longest wait for the next input, s."""
        return min(TAKE_S, self.parts.wait_s)

    @abstractmethod
    def _process(self, item: T) -> None: ...

    def _perceive(self, item: T) -> StreamResult:
        self._now = item.captured_ns, item.captured_at
        if (recorder := spans.active) is None:
            return self._perception.process(item)
        began_ns = time.monotonic_ns()
        result = self._perception.process(item)
        add_stages(recorder, began_ns, result.stages, item.seq if isinstance(item, Frame) else item.first)
        return result

    def _report(self, seq: int, at: datetime, result: StreamResult) -> None:
        with spans.span("report"):
            self._reporter.report(seq, at, result, *self._perception.answered_by)
        if result.events:
            self._report_counts(result.events)
        self._report_values(
            {one.label: one.values[0] for one in result.detections or () if self._step is not None}
        )

    def _report_values(self, measured: Mapping[str, float], now_s: float | None = None) -> None:
        if self._step is not None:
            self._reporter.values(measured, self._step, time.monotonic() if now_s is None else now_s)

    def _report_counts(self, events: Sequence[Event]) -> None:
        if not self._counts:
            return
        tracker = self._perception.tracker
        self._reporter.counts(tracker.counts(), tracker.zone_counts())

    def _idle(self) -> None:
        """End the tracks of a lost source at once, those of a slow one when they are due."""
        self._report_values({})
        self._reporter.send_due_sample()
        events: Sequence[Event] = ()
        if self._source.lost:
            events = self._end_tracks("stall")
        elif self._perception.tracker.alive:
            at = datetime.now(UTC)
            events = self._perception.tracker.tick(time.monotonic_ns(), at)
            self._publish(events, at)
        self.parts.idle(events, lost=self._source.lost)

    def _end_tracks(self, reason: str) -> Sequence[Event]:
        at_ns, at = self._now or (time.monotonic_ns(), datetime.now(UTC))
        events = self._perception.finish(at_ns, at, reason)
        self._publish(events, at)
        return events

    def _publish(self, events: Sequence[Event], at: datetime) -> None:
        if events:
            self._reporter.events(events, at, StageTimes(), *self._perception.answered_by)
            self._report_counts(events)


_BUSY = ("hold", "off")
"""Reasons of the gate for which each picture of a camera is of use, besides motion and tracks."""


_RARE_S, _CALM_S = 5.0, 12.0
"""A stream that is to infer more often than this has all of an encoded camera decoded, or each key frame, s."""


def _looks_closely(vision: VideoPerception) -> bool:
    """Return True if more than whole pictures in small are looked at, or are encoded again."""
    config = vision.config
    return config.shows_part or config.hides or vision.secondary is not None


class VideoPipeline(Pipeline[Frame]):
    """Frames of one stream.

    `on_demand` is told what of an encoded camera is to be decoded; None: everything is.
    """

    def __init__(
        self,
        source: PipelineSource[Frame],
        vision: VideoPerception,
        reporter: Reporter,
        parts: Parts | None = None,
        metrics: StreamMetrics | None = None,
    ) -> None:
        super().__init__(source, vision, reporter, parts, metrics)
        self._vision = vision
        self.on_demand: Callable[[Demand], None] | None = None
        self._most = DecodeMode.FULL

    def _update_demand(self) -> None:
        """Tell the camera how much of it is to be decoded."""
        if self.on_demand is not None:
            vision = self._vision
            moved = vision.gate_reason == "motion"
            busy = moved or vision.gate_reason in _BUSY or vision.is_watching or vision.must_infer
            busy = busy or vision.config.gate.max_idle_s < _RARE_S
            often = min(vision.config.gate.max_idle_s, vision.config.track.stationary_check_s) < _CALM_S
            quiet = DecodeMode.KEYFRAMES if often else DecodeMode.PACKETS
            own = Demand(DecodeMode.FULL if busy else quiet, moved, self._most, _looks_closely(vision))
            self.on_demand(self.parts.demand(own))

    def set_budget(self, budget: StreamBudget) -> None:
        super().set_budget(budget)
        self._vision.set_budget(budget)
        self._most = DecodeMode.KEYFRAMES if budget.decode == "keyframes" else DecodeMode.FULL

    def _process(self, frame: Frame) -> None:
        try:
            result = self._perceive(frame)
            self._report(frame.seq, frame.captured_at, result)
            if not self._reporter.stopped:  # else this inference has outlasted the stream
                self.parts.process(frame, result)
            self.metrics.add(result, 1, late=frame.late)
        finally:
            frame.release()
            self._update_demand()

    def _idle(self) -> None:
        super()._idle()
        self._update_demand()


class AudioPipeline(Pipeline[AudioChunk]):
    """Sound of one stream."""

    def __init__(
        self,
        source: PipelineSource[AudioChunk],
        hearing: AudioPerception | UtterancePerception,
        reporter: Reporter,
        parts: Parts | None = None,
        metrics: StreamMetrics | None = None,
    ) -> None:
        super().__init__(source, hearing, reporter, parts, metrics)
        self._hearing = hearing

    def _process(self, chunk: AudioChunk) -> None:
        result = self._perceive(chunk)
        self._report(chunk.first, chunk.captured_at, result)
        if not self._reporter.stopped:
            self.parts.process(chunk, result)
        self.metrics.add(result, self._hearing.inferences)


class StreamRun(Struct):
    """Source and pipeline of a run; None: it does not run."""

    pipeline: Pipeline[Any] | None = None
    source: Input | None = None


def open_pipeline(
    name: str,
    config: StreamConfig,
    opened: Perception,
    reporter: Reporter,
    on_change: OnChange,
    parts: Parts,
    metrics: StreamMetrics | None = None,
    cameras: Cameras | None = None,
) -> tuple[Input, VideoPipeline | AudioPipeline]:
    """Return the source of a stream, not yet started, and its pipeline with its open parts."""
    if opened.model.manifest.audio is None:
        from agent.capture.source import Privacy
        from agent.capture.streams import FrameStream

        vision = cast("VideoPerception", opened)
        if config.blur and vision.blur is None:
            raise ConfigError("blur: the models that find what is blurred are not open", keys=("blur",))
        find = vision.blur.find if vision.blur is not None else None
        frames = FrameStream(
            name,
            config.source,
            config.capture,
            on_change=on_change,
            cameras=cameras,
            privacy=Privacy(config.privacy, find, config.mask_model),
            on_packet=parts.on_packet,
        )
        pipeline = VideoPipeline(frames, vision, reporter, parts, metrics)
        pipeline.on_demand = frames.set_demand
        return frames, pipeline
    from agent.capture.sound import AudioStream

    hearing = cast("AudioPerception", opened)
    settings = config.source, config.capture, hearing.rate_hz
    sound = AudioStream(name, *settings, on_change=on_change, cameras=cameras)
    return sound, AudioPipeline(sound, hearing, reporter, parts, metrics)


_FULL = StreamBudget()
"""Of snapshots that were asked for."""
_SMALL_BELOW, _SMALL_WIDTH = 60, 480
"""Below this quality of the JPEG, snapshots are made so narrow, px: a fifth of the bytes at quality 40."""


def show_snapshot(reporter: Reporter, frame: Frame, budget: StreamBudget | None, quality: int) -> None:
    """Publish a frame as the snapshot.

    Args:
        reporter: of its stream.
        frame: to be encoded as JPEG.
        budget: for its quality, which is lower where the network is slow; None: it was asked for, and is full.
        quality: of the JPEG, 1..100, where the budget allows it.

    Raises:
        BackendError: OpenCV cannot encode it.
    """
    reporter.snapshot(_encode(frame, budget or _FULL, quality), asked=budget is None)


def _encode(frame: Frame, budget: StreamBudget, quality: int) -> bytes:
    """Return the JPEG of a frame; one of a low budget is small, too."""
    from agent.compute.drawing import FrameEncoder

    if budget.snapshot_quality < _FULL.snapshot_quality:
        quality = min(quality, budget.snapshot_quality)
    width = _SMALL_WIDTH if budget.snapshot_quality < _SMALL_BELOW else frame.shape[1]
    return FrameEncoder(width, quality).encode(frame).jpeg
