"""A stream: prepares its rooms and runs its corridor, supervised, in a thread of its own."""

from __future__ import annotations

import logging
import threading
import time
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from agent import senses
from agent.capture.keeper import CaptureStats
from agent.capture.source import check_login, check_uri
from agent.comms.payload import ModelId, StreamHealth
from agent.comms.reporter import Reporter
from agent.compute.infer.ends import NotYetError
from agent.config import StreamConfig
from agent.corridor import Corridor, Tally
from agent.desk import Desk as Desk
from agent.errands import Errands
from agent.errors import CommandError, VedetteError
from agent.library import open_model, tell
from agent.manifest import Model
from agent.meter import Meter
from agent.recent import Recent
from agent.senses import Input, Sense, open_corridor, open_sense, prepare_sense
from agent.supervised import HANGING_MAX, State, Supervised

if TYPE_CHECKING:
    from agent.compute.infer.backend import Session
    from agent.filming import Filming
    from agent.shadow import Shadow

log = logging.getLogger(__name__)


class Stream(Supervised):
    """One entry of `[streams]`, alive.

    Attributes:
        config: in use. model: that it runs; None: it was never opened.
        shadow: another model that is to be compared with its own; None: none is.
    """

    def __init__(self, name: str, config: StreamConfig, desk: Desk) -> None:
        super().__init__(name, "starting" if config.enabled else "disabled")
        self.config, self._desk = config, desk
        self._sense: Sense | None = None
        # What is large is there while it runs only; of what ran, its totals are kept.
        self._pipeline: Corridor[Any] | None = None
        self._tally, self._first_result = Tally(), threading.Event()
        self._recent, self._inferred_before = Recent(), 0
        self._captured: CaptureStats | None = None
        self._reporter: Reporter | None = None
        self._source: Input | None = None
        self._filming: Filming | None = None
        self.model: Model | None = None
        self._rung = config.rung  # that the model was opened with
        self._meter, self._errands = Meter(), Errands()
        self.shadow: Shadow | None = None
        self._left_at: float | None = None

    def prepare(self) -> None:
        """Open the model, unless it waits for a device, and check all that can be checked without the source.

        A model that is not known in `agent.senses.PREPARE_S` is left to the stream's thread.

        Raises:
            ConfigError, SourceError, ModelError: what is wrong, in one line. The stream is `failed` then.
        """
        try:
            check_uri(self.config.source)
            if self.config.enabled:
                check_login(self.config.source, self.config.capture)
                self._open_model(senses.PREPARE_S)
                desk = self._desk
                self._sense = prepare_sense(self.name, self.config, self.model, desk.opener, desk.vetting)
        except NotYetError:
            pass  # the stream's thread opens it
        except VedetteError as error:
            self.state, self.detail = "failed", str(error)
            raise

    def _open_model(self, wait_s: float | None) -> Model:
        """Find the model, and log what was guessed of it; `wait_s` as for `open_model`."""
        rung = self.config.rung
        model = open_model(self.config.model, rung, wait_s, self._desk.vetting)
        self.model, self._rung = model, rung
        tell(self.name, self.config.model)
        return model

    @property
    def model_changed(self) -> bool:
        """Whether its model's file or manifest is another one now, or can no longer be used."""
        if (model := self.model) is None:
            return False
        try:
            now = open_model(self.config.model, self._rung, 0.0)
        except VedetteError:
            return True
        return (now.sha256, now.manifest) != (model.sha256, model.manifest)

    def adjust(self, config: StreamConfig) -> None:
        """Take another configuration that `can_adjust` allows."""
        self.config = config
        self._errands.configure(config)

    def can_adjust(self, config: StreamConfig) -> bool:
        """Whether another can be taken in mid-stream, without opening the source or the model anew.

        Only thresholds and zones differ then, or the rung, and that is open.
        """
        alike = replace(config, decode=self.config.decode, zones=self.config.zones, rung=self.config.rung)
        return alike == self.config and self._holds(config.rung)

    def _holds(self, rung: str) -> bool:
        """Whether a rung, or `auto`, needs nothing that is not open."""
        if rung == self.config.rung or self.model is None:
            return True
        try:
            wanted = open_model(self.config.model, rung, 0.0).manifest.rungs
        except VedetteError:
            return False
        return set(wanted) <= set(self.model.manifest.rungs) and not self.model_changed

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
        """See `agent.recent.Recent.p95_ms`."""
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
        rates, source = self._meter.look(self._tally), self._source
        capture = source.stats if source else self._captured
        sense, model = self._sense, self.model  # the stream's thread may close its own meanwhile
        backend, rung = sense.answered_by if sense else ("", "")
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
            rung=rung,
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
            self._sense = open_sense(self.name, self.config, opened, self._desk.opener)
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
        source, pipeline, self._filming = open_corridor(
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
                model = self.model or self._open_model(senses.PREPARE_S)
                if self._sense or senses.is_tried(self.config, model, self._desk.vetting, senses.PREPARE_S):
                    return model
            self.come_round()
        return None

    def _between(self, sense: Sense, pipeline: Corridor[Any]) -> None:
        self.come_round()
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
