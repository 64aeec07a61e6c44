"""One configured stream: opens its model and source, and runs its pipeline in a supervised thread of its own."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from agent.backoff import Backoff
from agent.capture.source import with_login
from agent.capture.supervisor import CaptureStats
from agent.comms.messages import ModelId
from agent.comms.reporter import Reporter
from agent.compute.infer.session import NotYetError
from agent.compute.manifest import Model
from agent.config import PublishConfig, StreamConfig
from agent.config.features import StreamBudget
from agent.config.places import check_masks
from agent.config.source_uri import parse
from agent.daemon.parts import Parts, StreamContext, check_values, open_part, open_parts
from agent.daemon.streams import perception
from agent.daemon.streams.counters import StreamMetrics
from agent.daemon.streams.perception import Perception, open_perception, prepare_perception
from agent.daemon.streams.pipeline import Input, Pipeline, StreamRun, open_pipeline
from agent.daemon.streams.services import AT_WORK, State, StreamServices
from agent.errors import BackendError, BlurError, BlurModelError, VedetteError, about
from agent.health import StreamHealth
from agent.models.library import log_guesses, open_model
from agent.text import plural
from agent.types import Track

if TYPE_CHECKING:
    from agent.compute.infer.session import Session


log = logging.getLogger(__name__)
HANGING_MAX = 2
"""Most threads of one stream that may hang in a library: each holds a model, and a third would hang as well."""
_POLL_S = 0.2
_PASSING = (BackendError, BlurError, BlurModelError)
"""Errors after which the stream is started again: what was wrong may be right in a while."""

_SNAPSHOT = tuple(
    key for key in PublishConfig.__struct_fields__ if key.startswith("snapshot_") and key != "snapshot_every_s"
)


def _with_live_settings(config: StreamConfig, other: StreamConfig) -> StreamConfig:
    """Return a configuration with the filters, masks, zones, lines and kind of snapshots of another one.

    Lines keep theirs if they have other names, which need other topics.
    """
    same_lines = [line.name for line in config.lines] == [line.name for line in other.lines]
    return replace(
        config,
        filters=other.filters,
        zones=other.zones,
        lines=other.lines if same_lines else config.lines,
        gate=replace(config.gate, masks=other.gate.masks, masks_enabled=other.gate.masks_enabled),
        track=replace(config.track, only_moving=other.track.only_moving),
        publish=replace(config.publish, **{key: getattr(other.publish, key) for key in _SNAPSHOT}),
    )


def log_change(stream: str, state: str, reason: str) -> None:
    """Log a new state of a stream's source, as `agent.capture.supervisor.OnChange`. Any thread may call this."""
    what = reason if state == "starting" else f"{state}: {reason}"
    log.log(logging.WARNING if state == "lost" else logging.INFO, "stream %s: %s", stream, what)


class Stream:
    """One entry of `[streams]`, run in a thread of its own and restarted after a failure that may pass.

    Attributes:
        name: of the stream.
        state: of the thread; while it runs, the source's state may be more exact, see `status`.
        detail: the reason, in a line; empty: none.
        config: in use.
        model: that it runs; None before it was opened.
        metrics: what it has handled.
        reduced: what it has less of than everything, and why; empty: of nothing.
        unmet: which promise of its service is not kept, and by whose doing; empty: all are.
        budget: no more is used from the next input on. Any thread may set it.
        parts: of its features, open while it runs; each run has its own.
        run: what exists only while it runs, see `StreamRun`.
    """

    def __init__(self, name: str, config: StreamConfig, services: StreamServices) -> None:
        self.name, self.config, self._services = name, config, services
        self.state: State = "starting" if config.enabled else "disabled"
        self.detail, self._tries_again, self._logged = "", False, ""
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._heartbeat_s = time.monotonic()
        self._predecessors: Sequence[Stream] = ()
        self._perception: Perception | None = None  # only while it runs, as its parts: they are large
        self.parts, self.run = Parts(), StreamRun()
        self._context: StreamContext | None = None
        self._captured: CaptureStats | None = None
        self.metrics = StreamMetrics()
        self._reporter: Reporter | None = None
        self.model: Model | None = None
        self._variant = config.variants  # that the model was opened with
        self._adjustments: deque[StreamConfig] = deque()
        self.budget, self._budget_in_use = StreamBudget(), StreamBudget()
        self.reduced = self.unmet = ""
        self._is_announced = False
        self._abandoned_s: float | None = None

    def prepare(self) -> None:
        """Open the model, unless it needs a device, and check all that can be checked without the source.

        A model that cannot be checked within `perception.PREPARE_S` is opened by the stream's thread.

        Raises:
            ConfigError, SourceError, ModelError: what is wrong, in one line. The stream is `failed` then.
        """
        try:
            with about("source"):
                parse(self.config.source)
            for keys, check in check_values(self.name, self.config):
                with about(*keys):
                    check()
            if self.config.enabled:
                with about("capture"):
                    with_login(parse(self.config.source), self.config.capture)
                check_masks(self.config.privacy)
                with about("model"):
                    self._open_model(perception.PREPARE_S)
                    opener, vetting = self._services.opener, self._services.vetting
                    self._perception = prepare_perception(self.name, self.config, self.model, opener, vetting)
        except NotYetError:
            pass  # the stream's thread opens it
        except VedetteError as error:
            self._logged = str(error)  # by who called this
            self._fail(str(error), again=isinstance(error, BlurModelError))
            raise

    def _open_model(self, wait_s: float | None) -> Model:
        """Find the model, and log what was guessed about it; `wait_s` as for `open_model`."""
        variant = self.config.variants
        model = open_model(self.config.model, variant, wait_s, self._services.vetting)
        self.model, self._variant = model, variant
        log_guesses(self.name, self.config.model)
        return model

    @property
    def model_changed(self) -> bool:
        """True if the model's file or manifest has changed, or can no longer be used."""
        model = self.model
        return model is not None and perception.models_changed(
            self.name, self.config, model, self._variant, self._perception
        )

    def adjust(self, config: StreamConfig) -> None:
        """Use another configuration that `can_adjust` allows, from the next input on."""
        self.config = config
        self._adjustments.append(config)

    def can_adjust(self, config: StreamConfig) -> bool:
        """True if a configuration can be used without opening the source or the model again.

        Only thresholds, filters, zones, lines, what is promised and a variant that is open may differ.
        """
        now = self.config
        promised = replace(config.service, smaller_variants=now.service.smaller_variants)
        alike = replace(
            _with_live_settings(config, now), decode=now.decode, variant=now.variant, service=now.service
        )
        return alike == now and promised == config.service and self._has_open(config.variant)

    def _has_open(self, variant: str) -> bool:
        """True if a variant, or `auto`, needs only variants that are open."""
        if variant == self.config.variant or self.model is None:
            return True
        try:
            wanted = open_model(self.config.model, variant, 0.0).manifest.variants
        except VedetteError:
            return False
        return set(wanted) <= set(self.model.manifest.variants) and not self.model_changed

    @property
    def encodes_clips(self) -> bool:
        """True if a part encodes pictures now."""
        return any(part.encodes for part in self.parts)

    @property
    def perception(self) -> Perception | None:
        """That it runs; None while it does not."""
        return self._perception

    @property
    def is_at_work(self) -> bool:
        """True if it handles pictures or sound now."""
        return self.status[0] in AT_WORK

    @property
    def has_sound(self) -> bool:
        """True if its model takes sound."""
        return self.model is not None and self.model.manifest.audio is not None

    def open_part(self, name: str) -> Any:
        """Return an open part, opened now if need be; None: there is nothing for it to do. For any thread."""
        return None if self._context is None else open_part(name, self._context, self.parts)

    def start(self, predecessors: Sequence[Stream] = ()) -> None:
        """Run in a thread of its own, unless the stream is disabled or failed.

        It waits while `_hanging_max` or more of its predecessors, the replaced streams, hang.
        """
        if self.state == "starting" or self._tries_again:
            self.heartbeat()
            self._predecessors = predecessors
            self._thread = threading.Thread(target=self._supervise, name=f"stream-{self.name}", daemon=True)
            self._thread.start()

    def ask_to_stop(self) -> None:
        """Begin to stop; `join` waits for it. From now on only ends of tracks are published."""
        self._stop.set()
        if (reporter := self._reporter) is not None:
            reporter.stop()

    def join(self, timeout_s: float) -> bool:
        """Wait for the thread. Return True if it has stopped, with every track ended."""
        if self._thread is not None:
            self._thread.join(timeout_s)
        return self._thread is None or not self._thread.is_alive()

    @property
    def finished(self) -> bool:
        """True if the stream has ended, failed for good or is disabled."""
        return self.state in ("ended", "failed", "disabled") and not self._tries_again

    @property
    def stalled_s(self) -> float:
        """Age of the newest heartbeat, s; 0 without a running thread."""
        is_alive = self._thread is not None and self._thread.is_alive()
        return time.monotonic() - self._heartbeat_s if is_alive else 0.0

    def heartbeat(self) -> None:
        """Show that the thread makes progress: it calls this between inputs, and the watchdog reads the age."""
        self._heartbeat_s = time.monotonic()

    def abandon(self) -> None:
        """Give up a thread that hangs in a library: end the tracks, free the source, publish nothing more.

        The model is freed when the library returns.
        """
        self._abandoned_s = time.monotonic()
        if self._reporter is not None:
            self._reporter.close("shutdown")
        self.parts.abandon()
        if (source := self.run.source) is not None:
            source.stop(wait=False)

    def discard(self) -> None:
        self._close()

    @property
    def status(self) -> tuple[State, str]:
        """State now and its reason; while the stream runs, those of its source."""
        if self.state == "running" and (source := self.run.source) is not None:
            capture, opened = source.stats, self._perception
            if capture.state != "running" or opened is None:
                return capture.state, capture.detail
            if why := perception.degraded(opened):
                return "degraded", why
            why = opened.alarm or self.parts.trouble
            return "running", why or capture.detail
        return self.state, self.detail

    @property
    def has_result(self) -> bool:
        """True if the current run has made an inference."""
        return self.metrics.has_result

    @property
    def session(self) -> Session | None:
        """Session of the model; None before the first inference, and while the stream does not run."""
        opened, pipeline = self._perception, self.run.pipeline
        return opened.session if opened is not None and pipeline is not None and self.has_result else None

    @property
    def thread_id(self) -> int | None:
        """The kernel's id of its thread; None: there is none."""
        return None if self._thread is None else self._thread.native_id

    @property
    def captured(self) -> CaptureStats | None:
        """Totals of the source; None before it was opened."""
        return source.stats if (source := self.run.source) is not None else self._captured

    @property
    def counted_labels(self) -> tuple[tuple[str, str], ...]:
        """Zones and labels with a count, see `Reporter.counted`."""
        return self._reporter.counted_labels if self._reporter else ()

    @property
    def open_tracks(self) -> list[Track]:
        """Tracks that have been published and have not ended."""
        return self._reporter.open_tracks if self._reporter else []

    @property
    def tracks(self) -> int:
        """Number of tracks that are alive."""
        return opened.tracker.alive if (opened := self._perception) else 0

    @property
    def answered_by(self) -> tuple[str, str]:
        """Backend and variant of the newest answer; empty while it does not run."""
        return opened.answered_by if (opened := self._perception) else ("", "")

    def health(self) -> StreamHealth:
        """Return the state now, and rates since the previous call."""
        capture, model = self.captured, self.model
        rates = self.metrics.rates(capture.decoded if capture else 0)
        (state, detail), (backend, variant) = self.status, self.answered_by
        return StreamHealth(
            state=state,
            detail=detail,
            fps=rates.fps,
            inferences_per_s=rates.inferences_per_s,
            infer_ms=rates.infer_ms,
            frames=capture.frames if capture else 0,
            dropped=capture.dropped if capture else 0,
            reopened=capture.reopened if capture else 0,
            tracks=self.tracks,
            p95_ms=self.metrics.p95_ms(),
            model=model.manifest.name if model else "",
            reduced=self.reduced,
            unmet=self.unmet,
            problems=self.parts.problems,
            backend=backend,
            variant=variant,
            decoding=capture.decoding if capture else "",
            decoded_fps=rates.decoded_fps,
        )

    def _supervise(self) -> None:
        self._wait_for_predecessors()
        if self._stop.is_set():
            self._close()  # what was prepared
        else:
            self._run_repeatedly()

    def _wait_for_predecessors(self) -> None:
        """Wait without a heartbeat: after that many hanging threads only a restart of the daemon may help."""
        while len(self._predecessors) >= self._hanging_max and not self._stop.is_set():
            hanging = plural(len(self._predecessors), "earlier inference")
            self.detail = f"waiting for {hanging} of this stream to end"
            self._stop.wait(_POLL_S)
            self._predecessors = [one for one in self._predecessors if not one.join(0.0)]
        self._predecessors = ()
        self.detail = ""

    def _run_repeatedly(self) -> None:
        longest_s = self._services.restart_last_s
        backoff = Backoff(self._services.restart_first_s, longest_s, jitter=0.0)
        while True:
            began = time.monotonic()
            self.heartbeat()
            self._run_once()
            self._close()
            self.heartbeat()
            if not self._tries_again:
                return
            if time.monotonic() - began > longest_s:
                backoff.reset()
            if self._stop.wait(backoff.next_s()):
                return

    def _run_once(self) -> None:
        try:
            self._run()
        except VedetteError as error:
            # Broken input stays broken: a reload or a restart tries it again.
            self._fail(str(error), again=isinstance(error, _PASSING))
            if self.detail != self._logged:
                log.error("stream %s: %s", self.name, self.detail)
            self._logged = self.detail
        except Exception as error:
            # An internal error of one stream must not end the others.
            self._fail(f"{type(error).__name__}: {error}", again=True)
            log.exception("stream %s: internal error (please report); starting the stream again", self.name)
        else:
            self._tries_again = False
            self.state, self.detail = "ended", ""

    def _fail(self, detail: str, *, again: bool) -> None:
        self._tries_again = again  # first: a failed stream that does not try again is over
        self.state, self.detail = "failed", detail

    @property
    def _hanging_max(self) -> int:
        """There is one device of a kind, and its process ends when an inference takes too long."""
        return 1 if self._perception is None else HANGING_MAX

    def _run(self) -> None:
        model = self._vetted_model()
        if model is None:
            return
        if self._perception is None:
            self._perception = open_perception(self.name, self.config, model, self._services.opener)
        reporter = self._open_reporter(model)
        if self._stop.is_set():  # `ask_to_stop` may have missed this reporter
            return
        services = self._services
        self.metrics.begin_run()
        self._budget_in_use = StreamBudget()
        opened = self._perception
        folder = None if services.state == Path() else services.state
        self._context = context = StreamContext(self.name, self.config, opened, reporter, services, folder)
        try:
            with closing(open_parts(context)) as self.parts:
                # The source's threads, which may hang, hold what logs its changes, and so no stream.
                changed = partial(log_change, self.name)
                more = self.parts, self.metrics, services.cameras
                source, pipeline = open_pipeline(self.name, self.config, opened, reporter, changed, *more)
                self._run_pipeline(source, pipeline, opened)
        finally:
            self._context = None  # it holds the model

    def _run_pipeline(self, source: Input, pipeline: Pipeline[Any], opened: Perception) -> None:
        self.run.source, self.run.pipeline, self._is_announced = source, pipeline, False
        self.state, self.detail, self._logged = "running", "", ""
        try:
            if not self._stop.is_set():
                source.start()
            pipeline.run(self._stop, before_each=partial(self._before_each, opened, pipeline, source))
        finally:
            self._close_pipeline(source)

    def _vetted_model(self) -> Model | None:
        """Wait until the model has been vetted, perhaps after other models. Return None if told to stop."""
        if self._perception is None:  # to be opened for the first time, or again after a failure
            self.detail = f"model {self.config.model} is being opened on {self.config.backend}"
        while not self._stop.is_set():
            with suppress(NotYetError):
                model = self.model or self._open_model(perception.PREPARE_S)
                if self._perception or perception.is_vetted(
                    self.name, self.config, model, self._services.vetting, perception.PREPARE_S
                ):
                    return model
            self.heartbeat()
        return None

    def _open_reporter(self, opened: Model) -> Reporter:
        shared, model = self._services, ModelId(opened.manifest.name, opened.sha256[:12])
        publish = self.config.publish
        counts = self.metrics.events
        counts.hides_labels = opened.manifest.gives_texts
        reporter = Reporter(
            shared.topics, self.name, publish, model, shared.events, shared.board, shared.tap, counts
        )
        self._reporter = reporter
        if self.config.hides:
            log.info("stream %s: %s", self.name, perception.describe_privacy(self.config))
        has_counts = opened.manifest.has_tracks and not opened.manifest.gives_texts
        if has_counts and not self._stop.is_set():
            named = self.config.labels_to_count
            zones = {pair: 0 for pair in named if pair[0]}
            reporter.counts({label: 0 for zone, label in named if not zone}, zones)
        return reporter

    def _before_each(self, opened: Perception, pipeline: Pipeline[Any], source: Input) -> None:
        self.heartbeat()
        if (budget := self.budget) != self._budget_in_use:
            self._budget_in_use = budget
            pipeline.set_budget(budget)
        while self._adjustments:
            config = self._adjustments.popleft()
            opened.configure(config)
            pipeline.configure(config)
        if not self._is_announced and (capture := source.stats).state in ("running", "ended"):
            self._is_announced = True
            log.info("stream %s: %s", self.name, perception.describe(self.config, opened, capture.detail))

    def _close_pipeline(self, source: Input) -> None:
        source.stop()
        self._captured, self.run.source, self.run.pipeline = source.stats, None, None

    def _close(self) -> None:
        opened, self._perception = self._perception, None
        if opened is not None:
            opened.close()
        if (abandoned_s := self._abandoned_s) is not None:
            self._abandoned_s = None
            stuck_s = time.monotonic() - abandoned_s
            log.info("stream %s: the call that was stuck returned %.0f s later", self.name, stuck_s)
