"""A stream: prepares its rooms and runs its corridor, supervised, in a thread of its own."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Union, cast

from msgspec import Struct
from msgspec.structs import replace

from agent.capture.source import check_login, check_uri
from agent.capture.supervisor import CaptureStats
from agent.comms.messages import ModelId, StreamHealth
from agent.comms.reporter import EventSink, Reporter, RetainedSink
from agent.comms.topics import Topics
from agent.compute.infer.runtime_shapes import NotYetError
from agent.compute.manifest import Model
from agent.config.stream import StreamConfig
from agent.daemon import perception
from agent.daemon.metrics import LatencyWindow, StreamMetrics, StreamTotals
from agent.daemon.perception import Perception, _filming, open_perception, prepare_perception
from agent.daemon.pipeline import Pipeline
from agent.errors import BackendError, CommandError, VedetteError
from agent.models.library import open_model, tell
from agent.text import plural

if TYPE_CHECKING:
    from agent.capture.streams import AudioStream, FrameStream
    from agent.compute.hearing import AudioPerception
    from agent.compute.infer.session import Opener, Session
    from agent.compute.infer.vetting.vetting import Vetting
    from agent.compute.vision import VideoPerception
    from agent.daemon.clips import StreamClips
    from agent.daemon.pipeline import AudioPipeline, VideoPipeline
    from agent.daemon.shadow import Shadow
    from agent.storage.clips.recorder import Recorder


# A stream's sense by its model: eyes for a model of pictures, ears for one of sound, each with its source.

OnChange = Callable[[str, str], None]
Input = Union["FrameStream", "AudioStream"]


def open_pipeline(
    name: str,
    config: StreamConfig,
    sense: Perception,
    reporter: Reporter,
    on_change: OnChange,
    recorder: Recorder | None = None,
) -> tuple[Input, VideoPipeline | AudioPipeline, StreamClips | None]:
    """The source of a stream, not yet started, the corridor that takes from it, and its clips if it has any."""
    if sense.model.manifest.audio is None:
        from agent.capture.streams import FrameStream
        from agent.daemon.pipeline import VideoPipeline

        grabber = FrameStream(name, config.source, config.capture, on_change=on_change)
        filming = _filming(name, config, recorder, grabber) if recorder and config.clips else None
        return (
            grabber,
            VideoPipeline(grabber, cast("VideoPerception", sense), reporter, config.publish, filming),
            filming,
        )
    from agent.capture.streams import AudioStream
    from agent.daemon.pipeline import AudioPipeline

    ear = cast("AudioPerception", sense)
    listener = AudioStream(name, config.source, config.capture, ear.rate_hz, on_change=on_change)
    return listener, AudioPipeline(listener, ear, reporter), None


# What the streams of a device share: where they report, what opens their models, what records.


class StreamServices(Struct, frozen=True):
    """What a stream reports to: the same for all of a device.

    Attributes:
        topics: of the device.
        events: the spool.
        board: the broker.
        opener: of models' sessions; None: `auto` is the CPU.
        recorder: of clips; None: there are none.
        vetting: see `agent.compute.infer.backends.open_session`.
    """

    topics: Topics
    events: EventSink
    board: RetainedSink
    opener: Opener | None = None
    recorder: Recorder | None = None
    vetting: Vetting | None = None


class Errands:
    """Of one stream. They are asked for by any thread, and run in the stream's own."""

    def __init__(self) -> None:
        self._configs: deque[StreamConfig] = deque()
        self._snapshot = False

    def configure(self, config: StreamConfig) -> None:
        """Take a configuration that the sense can take, see `agent.compute.vision.VideoPerception.configure`."""
        self._configs.append(config)

    def snapshot(self) -> None:
        """Publish the next picture."""
        self._snapshot = True

    def run(self, sense: Perception, corridor: Pipeline[Any]) -> None:
        """Run what is asked for.

        Raises:
            ModelError: the configuration cannot be taken.
        """
        while self._configs:
            sense.configure(self._configs.popleft())
        if self._snapshot:
            self._snapshot = False
            corridor.ask_snapshot()


# Supervised: runs in a thread of its own until it ends or is told to, and is started again when it breaks.

log = logging.getLogger(__name__)

_RESTART_FIRST_S, _RESTART_LAST_S = 1.0, 60.0
HANGING_MAX = 2
"""Threads of one stream that hang in a library, at most: each holds a model, and a third would hang as well."""
_LOOK_S = 0.2

State = Literal["starting", "running", "degraded", "lost", "ended", "failed", "disabled"]


class SupervisedThread:
    """What a stream is to those who start and stop it; what it does is in `_run` and `_close`.

    Attributes:
        name: of the stream.
        state: as of itself; while it runs its source may know better.
        detail: why, in a line; empty: nothing is to be said.
    """

    def __init__(self, name: str, state: State) -> None:
        self.name = name
        self.state: State = state
        self.detail = ""
        self._tries_again = False
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._came_round_s = time.monotonic()
        self._before: Sequence[SupervisedThread] = ()

    def start(self, before: Sequence[SupervisedThread] = ()) -> None:
        """Run in a thread of its own, unless it is disabled or failed.

        Args:
            before: streams that this one replaces and that were left behind. While as many of them hang as
                `_hanging_max` says, it waits.
        """
        if self.state == "starting":
            self.heartbeat()
            self._before = before
            self._thread = threading.Thread(target=self._supervise, name=f"stream-{self.name}", daemon=True)
            self._thread.start()

    def ask_to_stop(self) -> None:
        """Begin to stop: `join` waits for it."""
        self._stop.set()

    def join(self, timeout_s: float) -> bool:
        """Whether it has stopped in time, with every track ended."""
        if self._thread is not None:
            self._thread.join(timeout_s)
        return self._thread is None or not self._thread.is_alive()

    @property
    def over(self) -> bool:
        """Whether nothing more will come of it."""
        return self.state in ("ended", "failed", "disabled") and not self._tries_again

    @property
    def stalled_s(self) -> float:
        """How long its thread has been busy with one and the same thing, s; 0 without one."""
        is_alive = self._thread is not None and self._thread.is_alive()
        return time.monotonic() - self._came_round_s if is_alive else 0.0

    def heartbeat(self) -> None:
        """For its thread: something is over, the next begins."""
        self._came_round_s = time.monotonic()

    @property
    def _hanging_max(self) -> int:
        """Threads of this stream that may hang before another one begins."""
        return HANGING_MAX

    def _run(self) -> None:
        """Run until it ends or `_stop` is set.

        Raises:
            VedetteError: it is broken; after a BackendError it is tried again.
        """
        raise NotImplementedError

    def _close(self) -> None:
        """Give back what a run holds, however that ended."""
        raise NotImplementedError

    def _supervise(self) -> None:
        self._wait_for_those_before()
        if self._stop.is_set():
            self._close()  # what was prepared
        else:
            self._attempts()

    def _wait_for_those_before(self) -> None:
        """The watchdog counts this time: what has hung so often may be ended by a restart of the daemon only."""
        while len(self._before) >= self._hanging_max and not self._stop.is_set():
            self.detail = f"waiting for {plural(len(self._before), 'earlier inference')} of this stream to end"
            self._stop.wait(_LOOK_S)
            self._before = [one for one in self._before if not one.join(0.0)]
        self._before = ()
        self.detail = ""

    def _attempts(self) -> None:
        pause_s = _RESTART_FIRST_S
        while True:
            began = time.monotonic()
            self.heartbeat()
            self._attempt()
            self._close()
            self.heartbeat()
            if not self._tries_again:
                return
            if time.monotonic() - began > _RESTART_LAST_S:
                pause_s = _RESTART_FIRST_S
            if self._stop.wait(pause_s):
                return
            pause_s = min(_RESTART_LAST_S, pause_s * 2)

    def _attempt(self) -> None:
        """Run until the source ends, the stream is told to stop, or something breaks."""
        try:
            self._run()
        except VedetteError as error:
            # Broken input stays broken: a reload or a restart tries it again.
            self._fail(str(error), again=isinstance(error, BackendError))
            log.error("stream %s: %s", self.name, self.detail)
        except Exception as error:
            # A defect in one stream must not take the others with it.
            self._fail(f"{type(error).__name__}: {error}", again=True)
            log.exception("stream %s: a defect in Vedette; starting the stream again", self.name)
        else:
            self._tries_again = False
            self.state, self.detail = "ended", ""

    def _fail(self, detail: str, *, again: bool) -> None:
        self._tries_again = again  # first: a failed stream that does not try again is over
        self.state, self.detail = "failed", detail


class Stream(SupervisedThread):
    """One entry of `[streams]`, alive.

    Attributes:
        config: in use. model: that it runs; None: it was never opened.
        shadow: another model that is to be compared with its own; None: none is.
    """

    def __init__(self, name: str, config: StreamConfig, desk: StreamServices) -> None:
        super().__init__(name, "starting" if config.enabled else "disabled")
        self.config, self._desk = config, desk
        self._sense: Perception | None = None
        # What is large is there while it runs only; of what ran, its totals are kept.
        self._pipeline: Pipeline[Any] | None = None
        self._tally, self._first_result = StreamTotals(), threading.Event()
        self._recent, self._inferred_before = LatencyWindow(), 0
        self._captured: CaptureStats | None = None
        self._reporter: Reporter | None = None
        self._source: Input | None = None
        self._filming: StreamClips | None = None
        self.model: Model | None = None
        self._variant = config.variant  # that the model was opened with
        self._meter, self._errands = StreamMetrics(), Errands()
        self.shadow: Shadow | None = None
        self._left_at: float | None = None

    def prepare(self) -> None:
        """Open the model, unless it waits for a device, and check all that can be checked without the source.

        A model that is not known in `agent.daemon.perception.PREPARE_S` is left to the stream's thread.

        Raises:
            ConfigError, SourceError, ModelError: what is wrong, in one line. The stream is `failed` then.
        """
        try:
            check_uri(self.config.source)
            if self.config.enabled:
                check_login(self.config.source, self.config.capture)
                self._open_model(perception.PREPARE_S)
                desk = self._desk
                self._sense = prepare_perception(self.name, self.config, self.model, desk.opener, desk.vetting)
        except NotYetError:
            pass  # the stream's thread opens it
        except VedetteError as error:
            self.state, self.detail = "failed", str(error)
            raise

    def _open_model(self, wait_s: float | None) -> Model:
        """Find the model, and log what was guessed of it; `wait_s` as for `open_model`."""
        variant = self.config.variant
        model = open_model(self.config.model, variant, wait_s, self._desk.vetting)
        self.model, self._variant = model, variant
        tell(self.name, self.config.model)
        return model

    @property
    def model_changed(self) -> bool:
        """Whether its model's file or manifest is another one now, or can no longer be used."""
        if (model := self.model) is None:
            return False
        try:
            now = open_model(self.config.model, self._variant, 0.0)
        except VedetteError:
            return True
        return (now.sha256, now.manifest) != (model.sha256, model.manifest)

    def adjust(self, config: StreamConfig) -> None:
        """Take another configuration that `can_adjust` allows."""
        self.config = config
        self._errands.configure(config)

    def can_adjust(self, config: StreamConfig) -> bool:
        """Whether another can be taken in mid-stream, without opening the source or the model anew.

        Only thresholds and zones differ then, or the variant, and that is open.
        """
        alike = replace(config, decode=self.config.decode, zones=self.config.zones, variant=self.config.variant)
        return alike == self.config and self._holds(config.variant)

    def _holds(self, variant: str) -> bool:
        """Whether a variant, or `auto`, needs nothing that is not open."""
        if variant == self.config.variant or self.model is None:
            return True
        try:
            wanted = open_model(self.config.model, variant, 0.0).manifest.variants
        except VedetteError:
            return False
        return set(wanted) <= set(self.model.manifest.variants) and not self.model_changed

    def snapshot_now(self) -> None:
        """Publish the next picture as the snapshot.

        Raises:
            CommandError: there will be none, with the reason.
        """
        if self.model is not None and self.model.manifest.audio is not None:
            raise CommandError(f"stream {self.name} listens: it has no pictures")
        state, detail = self.standing
        if state not in ("running", "degraded"):
            raise CommandError(f"stream {self.name} is {state}, so there is no picture{detail and f': {detail}'}")
        self._errands.snapshot()

    def record(self, seconds: float) -> str:
        """Save what is kept and what comes in the next seconds; gives the path of the clip that this will be in.

        Any thread may call this. That the clip is complete is told by its message.

        Raises:
            CommandError, StorageError: none can be made or saved, with the reason.
        """
        if self.config.clips is None:
            raise CommandError(f"stream {self.name}: clips are off; [streams.{self.name}.clips] turns them on")
        if (filming := self._filming) is None:
            raise CommandError(f"stream {self.name} is {self.standing[0]}, so there is nothing to record")
        return filming.record(seconds)

    def ask_to_stop(self) -> None:
        """Begin to stop: `join` waits for it. From now on nothing is published but the ends of tracks."""
        super().ask_to_stop()
        if (reporter := self._reporter) is not None:
            reporter.stop()

    def leave_behind(self) -> None:
        """Give its thread up, which hangs in a library: publish nothing more, end its tracks, free its source.

        The model is freed when the library answers.
        """
        self._left_at = time.monotonic()
        if self._reporter is not None:
            self._reporter.close("shutdown")
        if (filming := self._filming) is not None:
            filming.end()
        if (source := self._source) is not None:
            source.stop(wait=False)

    def discard(self) -> None:
        """Close what `prepare` has opened, for a stream that is never started."""
        self._close()

    @property
    def standing(self) -> tuple[State, str]:
        """State now and why; while it runs, its source's."""
        if self.state == "running" and (source := self._source) is not None:
            capture, sense = source.stats, self._sense
            if capture.state == "running" and sense is not None and (why := sense.session.degraded):
                return "degraded", why
            return capture.state, capture.detail or (sense.alarm if sense is not None else "")
        return self.state, self.detail

    @property
    def has_result(self) -> bool:
        """Whether an inference has been made."""
        return self._first_result.is_set()

    @property
    def inferred(self) -> int:
        """Inferences since the start."""
        return self._inferred_before + self._tally.inferences

    @property
    def infer_p95_ms(self) -> float | None:
        """See `agent.daemon.metrics.LatencyWindow.p95_ms`."""
        return self._recent.p95_ms

    @property
    def session(self) -> Session | None:
        """What runs its model; None: it has not inferred yet, or does not run."""
        sense, pipeline = self._sense, self._pipeline
        return sense.session if sense is not None and pipeline is not None and self.has_result else None

    @property
    def frames(self) -> int:
        """Frames handled since the start."""
        return self._tally.frames

    @property
    def counted(self) -> tuple[tuple[str, str], ...]:
        """Zones and labels that something was counted for, see `Reporter.counted`."""
        return self._reporter.counted if self._reporter else ()

    def health(self) -> StreamHealth:
        """State now, and rates since the last call."""
        rates, source = self._meter.rates(self._tally), self._source
        capture = source.stats if source else self._captured
        sense, model = self._sense, self.model  # the stream's thread may close its own meanwhile
        backend, variant = sense.answered_by if sense else ("", "")
        state, detail = self.standing
        return StreamHealth(
            state=state,
            detail=detail,
            fps=rates.fps,
            inferences_per_s=rates.inferences_per_s,
            infer_ms=rates.infer_ms,
            frames=capture.frames if capture else 0,
            dropped=capture.dropped if capture else 0,
            reopened=capture.reopened if capture else 0,
            tracks=sense.tracker.alive if sense else 0,
            model=model.manifest.name if model else "",
            backend=backend,
            variant=variant,
        )

    @property
    def _hanging_max(self) -> int:
        """Of a device there is one, and its process ends when the inference has taken too long."""
        return 1 if self._sense is None else HANGING_MAX

    def _run(self) -> None:
        if self._sense is None:  # a device or an unknown model is to be opened, or anew what has broken
            self.detail = f"model {self.config.model} is being opened on {self.config.backend}"
        opened = self._tried_model()
        if opened is None:
            return
        if self._sense is None:
            self._sense = open_perception(self.name, self.config, opened, self._desk.opener)
        model = ModelId(opened.manifest.name, opened.sha256[:12])
        publish = self.config.publish
        desk = self._desk
        reporter = self._reporter = Reporter(desk.topics, self.name, publish, model, desk.events, desk.board)
        if self._stop.is_set():  # `ask_to_stop` may not have seen this reporter
            return
        if opened.manifest.has_tracks:
            named = self.config.named
            reporter.counts(
                {label: 0 for zone, label in named if not zone}, {pair: 0 for pair in named if pair[0]}
            )
        source, pipeline, self._filming = open_pipeline(
            self.name, self.config, self._sense, reporter, partial(_tell_change, self.name), desk.recorder
        )
        self._source, self._pipeline = source, pipeline
        self._inferred_before += self._tally.inferences
        self._tally, self._first_result, self._recent = pipeline.tally, pipeline.first_result, pipeline.recent
        self._meter.reset()
        self.state, self.detail = "running", ""
        try:
            if not self._stop.is_set():
                source.start()
            pipeline.run(self._stop, between=partial(self._between, self._sense, pipeline))
        finally:
            source.stop()
            self._captured, self._source, self._pipeline = source.stats, None, None
            filming, self._filming = self._filming, None
            if filming is not None:
                filming.close()

    def _tried_model(self) -> Model | None:
        """Wait until the model has been tried, which is no hang: others may come first. None: told to stop."""
        while not self._stop.is_set():
            with suppress(NotYetError):
                model = self.model or self._open_model(perception.PREPARE_S)
                if self._sense or perception.is_tried(
                    self.config, model, self._desk.vetting, perception.PREPARE_S
                ):
                    return model
            self.heartbeat()
        return None

    def _between(self, sense: Perception, pipeline: Pipeline[Any]) -> None:
        self.heartbeat()
        pipeline.shadow = self.shadow
        self._errands.run(sense, pipeline)

    def _close(self) -> None:
        sense, self._sense = self._sense, None
        if sense is not None:
            sense.close()
        if (left_at := self._left_at) is not None:
            self._left_at = None
            log.info("stream %s: what hung has answered %.0f s later", self.name, time.monotonic() - left_at)


def _tell_change(name: str, state: str, reason: str) -> None:
    """For the source's threads, which may hang: so it is no method, which would hold the stream."""
    (log.warning if state == "lost" else log.info)("stream %s: %s: %s", name, state, reason)
