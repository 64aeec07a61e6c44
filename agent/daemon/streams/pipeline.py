"""Takes the inputs of one stream through its stages: perceive, report, compare, record, snapshot, count.

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
from pathlib import Path
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar, Union, cast

from agent import spans
from agent.capture.decode_policy import DecodeMode, Demand
from agent.comms.reporter import Reporter
from agent.compute.manifest import Model
from agent.compute.track.tracker import Tracker
from agent.config import PublishConfig, StreamConfig
from agent.config.source_uri import parse
from agent.daemon.condition.watchers import open_condition
from agent.daemon.metrics.counters import StreamMetrics
from agent.daemon.metrics.stages import add_stages
from agent.daemon.streams.lines import LineCounters, open_lines
from agent.daemon.streams.privacy import privacy_of
from agent.daemon.streams.snapshots import SnapshotStage
from agent.types import AudioChunk, Event, Frame, StageTimes, StreamBudget, StreamResult

if TYPE_CHECKING:
    from agent.capture.camera import Cameras
    from agent.capture.streams import FrameStream, SoundStream
    from agent.compute.hearing import AudioPerception
    from agent.compute.listening import UtterancePerception
    from agent.compute.vision import VideoPerception
    from agent.daemon.clips.stream_clips import StreamClips
    from agent.daemon.condition.told import StreamCondition
    from agent.daemon.inspection import Inspection, InspectionPipeline
    from agent.daemon.shadow import Shadow
    from agent.daemon.streams.perception import Perception
    from agent.daemon.teaching.states import StreamStates
    from agent.daemon.teaching.words import StreamWords
    from agent.storage.clips.recorder import Recorder


log = logging.getLogger("agent.daemon.streams.stream")
TAKE_S = 0.25
"""Longest wait for an input, s; then ends that are due, a stop and a lost source are handled."""

OnChange = Callable[[str, str], None]
"""Called with a new state of a source, and the reason."""


Input = Union["FrameStream", "SoundStream"]
T = TypeVar("T", Frame, AudioChunk)
T_co = TypeVar("T_co", covariant=True)
T_contra = TypeVar("T_contra", contravariant=True)


class PipelineSource(Protocol[T_co]):
    """Gives inputs: `FrameStream` or `SoundStream` of `agent.capture.streams`, or a test's list.

    It is `lost` while nothing comes for longer than the stall time, and a finite one has `ended` when every input
    was taken. `take` returns None when none came in time.
    """

    @property
    def ended(self) -> bool: ...

    @property
    def lost(self) -> bool: ...

    def take(self, timeout_s: float) -> T_co | None: ...


class FrameSource(PipelineSource[Frame], Protocol):
    """Gives frames whose memory is reused after `give_back`."""

    def give_back(self, frame: Frame) -> None: ...


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


class Pipeline(ABC, Generic[T]):
    """Runs one stream until its source ends or it is told to stop.

    `shadow` compares another model on the same inputs, `condition` tells what is wrong with them, and `lines`
    counts who crosses one.
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
        self.condition: StreamCondition | None = None
        self.lines: LineCounters | None = None
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
                if self.lines is not None:
                    self.lines.store()
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
            self._end_tracks(why)
            if self.condition is not None:
                self.condition.close()
            if self.lines is not None:
                self.lines.close()

    def request_snapshot(self) -> None:
        """Publish the next picture as the snapshot; sound has none. Any thread may call this."""

    def configure(self, config: StreamConfig) -> None:
        """Use another configuration from the next input on, see `Stream.can_adjust`. For the stream's thread."""
        if self.lines is not None:
            self.lines.configure(config.lines)

    def set_budget(self, budget: StreamBudget) -> None:
        """Use no more than a budget from the next input on; sound is all inferred. For the stream's thread."""
        self._reporter.set_budget(budget)
        if self._clips is not None:
            self._clips.set_budget(budget)

    @property
    def _wait_s(self) -> float:
        """Longest wait for the next input, s."""
        return TAKE_S

    @abstractmethod
    def _process(self, item: T) -> None: ...

    def _perceive(self, item: T) -> StreamResult:
        self._now = item.captured_ns, item.captured_at
        result = self._process_item(item)
        if self.condition is not None:
            self.condition.observe(result.events)
            self.condition.poll(*self._now)
        return result

    def _process_item(self, item: T) -> StreamResult:
        """Process an input, and record its stages while a trace is made."""
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
        if self.lines is not None:
            self.lines.add(events)
        if not self._counts:
            return
        tracker = self._perception.tracker
        self._reporter.counts(tracker.counts(), tracker.zone_counts())

    def _idle(self) -> None:
        """End the tracks of a lost source at once, those of a slow one when they are due."""
        self._report_values({})
        self._reporter.send_due_sample()
        if self._source.lost:
            if self.condition is not None:
                self.condition.pause()
            self._end_tracks("stall")
        elif self._perception.tracker.alive:
            at = datetime.now(UTC)
            self._publish(self._perception.tracker.tick(time.monotonic_ns(), at), at)

    def _end_tracks(self, reason: str) -> None:
        at_ns, at = self._now or (time.monotonic_ns(), datetime.now(UTC))
        self._publish(self._perception.finish(at_ns, at, reason), at)

    def _publish(self, events: Sequence[Event], at: datetime) -> None:
        if events:
            if self.condition is not None:
                self.condition.observe(events)
            self._reporter.events(events, at, StageTimes(), *self._perception.answered_by)
            self._report_counts(events)
            if self._clips is not None:
                self._clips.add_events(events)


_BUSY = ("hold", "off")
"""Reasons of the gate for which each picture of a camera is of use, besides motion and tracks."""


_RARE_S, _CALM_S = 5.0, 12.0
"""A stream that is to infer more often than this has all of an encoded camera decoded, or each key frame, s."""


def _looks_closely(vision: VideoPerception) -> bool:
    """Return True if more than whole pictures in small are looked at, or are encoded again."""
    config = vision.config
    return config.shows_part or config.hides or config.inspection is not None or vision.secondary is not None


class VideoPipeline(Pipeline[Frame]):
    """Frames of one stream: perceive, report, compare, record, snapshot.

    `on_demand` is told what of an encoded camera is to be decoded; None: everything is.
    """

    def __init__(
        self,
        source: FrameSource,
        vision: VideoPerception,
        reporter: Reporter,
        config: PublishConfig,
        clips: StreamClips | None = None,
        metrics: StreamMetrics | None = None,
        states: StreamStates | None = None,
    ) -> None:
        super().__init__(source, vision, reporter, clips, metrics)
        self._frames, self._vision, self._states = source, vision, states
        self._snapshots = SnapshotStage(vision, reporter, config, states)
        self.on_demand: Callable[[Demand], None] | None = None
        self._most = DecodeMode.FULL

    def _update_demand(self) -> None:
        """Tell the camera how much of it is to be decoded."""
        if self.on_demand is not None:
            vision = self._vision
            moved = vision.gate_reason == "motion"
            busy = moved or vision.gate_reason in _BUSY or vision.is_watching or vision.must_infer
            encodes = self._clips is not None and self._clips.encodes
            busy = busy or self._snapshots.requested or encodes
            busy = busy or vision.config.gate.max_idle_s < _RARE_S
            often = min(vision.config.gate.max_idle_s, vision.config.track.stationary_check_s) < _CALM_S
            quiet = DecodeMode.KEYFRAMES if often else DecodeMode.PACKETS
            exact = encodes or _looks_closely(vision)
            self.on_demand(Demand(DecodeMode.FULL if busy else quiet, moved, self._most, exact))

    def request_snapshot(self) -> None:
        """Publish the next frame as the snapshot, whatever is in it. Any thread may call this."""
        self._snapshots.request()

    def configure(self, config: StreamConfig) -> None:
        super().configure(config)
        self._snapshots.configure(config.publish)

    def set_budget(self, budget: StreamBudget) -> None:
        super().set_budget(budget)
        self._vision.set_budget(budget)
        self._snapshots.set_budget(budget)
        self._most = DecodeMode.KEYFRAMES if budget.decode == "keyframes" else DecodeMode.FULL

    def _process(self, frame: Frame) -> None:
        kept = False
        try:
            if self._states is not None:
                self._states.poll(frame.captured_ns)
            result = self._perceive(frame)
            self._report(frame.seq, frame.captured_at, result)
            self._compare(frame, result)
            if self._states is not None and result.detections is not None:
                self._states.process(frame)
            if not self._reporter.stopped:  # else this inference has outlasted the stream
                self._snapshots.process(frame, result, in_place=self._clips is None and not frame.shared)
                # Last: from here on the clips may give the frame back, and another picture, that is not masked
                # yet, may be read into its memory.
                kept = self._clips is not None and self._clips.add_frame(frame, result.events)
            self.metrics.add(result, 1, late=frame.late)
        finally:
            if not kept:
                self._frames.give_back(frame)
            self._update_demand()

    def _idle(self) -> None:
        super()._idle()
        if self._states is not None:
            if self._source.lost:
                self._states.suspend()
            self._states.poll(time.monotonic_ns())
        self._update_demand()

    def _end_tracks(self, reason: str) -> None:
        if self._states is not None and reason != "stall":
            self._states.finish(reason)
        super()._end_tracks(reason)

    def _compare(self, frame: Frame, result: StreamResult) -> None:
        if self.shadow is not None and result.detections is not None:
            self.shadow.compare_frame(frame, self._vision.last_crop, result.detections, result.stages.infer)


class AudioPipeline(Pipeline[AudioChunk]):
    """Sound of one stream: perceive, report, compare."""

    def __init__(
        self,
        source: PipelineSource[AudioChunk],
        hearing: AudioPerception | UtterancePerception,
        reporter: Reporter,
        metrics: StreamMetrics | None = None,
        words: StreamWords | None = None,
    ) -> None:
        super().__init__(source, hearing, reporter, metrics=metrics)
        self._hearing, self._words = hearing, words

    def _process(self, chunk: AudioChunk) -> None:
        result = self._perceive(chunk)
        self._report(chunk.first, chunk.captured_at, result)
        self._report_words(chunk.captured_at, result.stages)
        inferences = self._hearing.inferences
        if self.shadow is not None:
            self.shadow.compare_audio(chunk, result.detections, result.stages.infer // max(1, inferences))
        self.metrics.add(result, inferences)

    def _idle(self) -> None:
        super()._idle()
        if self._words is not None:
            self._words.poll(time.monotonic_ns())

    def _end_tracks(self, reason: str) -> None:
        super()._end_tracks(reason)
        if self._words is not None and reason != "stall":
            self._report_words((self._now or (0, datetime.now(UTC)))[1], StageTimes())
            self._words.finish(reason)

    def _report_words(self, at: datetime, stages: StageTimes) -> None:
        """Report the taught words in the newest sound."""
        if self._words is not None:
            self._words.poll(time.monotonic_ns())
            self._words.process(cast("UtterancePerception", self._hearing).utterances, at, stages)


def open_pipeline(
    name: str,
    config: StreamConfig,
    opened: Perception,
    reporter: Reporter,
    on_change: OnChange,
    recorder: Recorder | None = None,
    metrics: StreamMetrics | None = None,
    inspection: Inspection | None = None,
    taught: StreamStates | StreamWords | None = None,
    cameras: Cameras | None = None,
    state: Path | None = None,
) -> tuple[Input, VideoPipeline | AudioPipeline | InspectionPipeline, StreamClips | None]:
    """Return the source of a stream, not yet started, its pipeline, and its clips if it records any.

    Its condition is watched if there is a folder for the daemon's `state`.
    """
    parts = recorder, metrics, inspection, taught, cameras
    source, pipeline, clips = _open_pipeline(name, config, opened, reporter, on_change, *parts)
    folder = None if state == Path() else state  # no folder at all, as of services that were given none
    if folder is not None:
        pipeline.condition = open_condition(name, config, opened, reporter, folder)
    pipeline.lines = open_lines(name, config.lines, folder, reporter)
    return source, pipeline, clips


def _open_pipeline(
    name: str,
    config: StreamConfig,
    opened: Perception,
    reporter: Reporter,
    on_change: OnChange,
    recorder: Recorder | None,
    metrics: StreamMetrics | None,
    inspection: Inspection | None,
    taught: StreamStates | StreamWords | None,
    cameras: Cameras | None,
) -> tuple[Input, VideoPipeline | AudioPipeline | InspectionPipeline, StreamClips | None]:
    if opened.model.manifest.audio is None:
        from agent.capture.streams import FrameStream

        vision, states = cast("VideoPerception", opened), cast("StreamStates | None", taught)
        clips = _open_clips(name, config, recorder, lambda one: frames.give_back(one)) if recorder else None
        frames = FrameStream(
            name,
            config.source,
            config.capture,
            on_change=on_change,
            cameras=cameras,
            privacy=privacy_of(config, vision),
            on_packet=clips.on_packet if clips else None,
        )
        if inspection is not None:
            from agent.daemon.inspection import InspectionPipeline

            return frames, InspectionPipeline(frames, vision, reporter, inspection, config.publish, metrics), None
        pipeline = VideoPipeline(frames, vision, reporter, config.publish, clips, metrics, states)
        pipeline.on_demand = frames.set_demand
        return frames, pipeline, clips
    from agent.capture.camera_sound.stream import open_sound_stream

    hearing, words = cast("AudioPerception", opened), cast("StreamWords | None", taught)
    settings = config.source, config.capture, hearing.rate_hz
    sound = open_sound_stream(name, *settings, on_change=on_change, cameras=cameras)
    return sound, AudioPipeline(sound, hearing, reporter, metrics, words), None


def _open_clips(
    name: str, config: StreamConfig, recorder: Recorder, give_back: Callable[[Frame], None]
) -> StreamClips | None:
    if config.clips is None or config.inspection is not None:
        return None
    from agent.daemon.clips.record_source import open_record_source
    from agent.daemon.clips.stream_clips import StreamClips

    opened = StreamClips(
        name,
        config.clips,
        recorder,
        give_back,
        only_zones=config.publish.only_zones,
        lossless=parse(config.source).lossless,
        copies=not config.hides,
        has_other_source=bool(config.clips.record_source),
        stall_s=config.capture.stall_s,
    )
    opened.other_source = open_record_source(name, config, opened.add_packet)
    return opened
