"""Fused events in the daemon: joins what the streams report and what comes as text, in a thread of its own.

Evidence comes from the reporters of this process, not over the broker. A thread with the name `fusion` waits for
it, and for the next instant at which time alone changes something.
"""

from __future__ import annotations

import logging
import queue
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct

from agent.comms.reporter import EventSink, Reporter, RetainedSink
from agent.comms.topics import Topics
from agent.config import Config, PublishConfig
from agent.daemon.parts import DevicePart
from agent.daemon.runtime import Runtime
from agent.errors import CommandError, ConfigError
from agent.features.fusion.checks import FusedEvent, FusionPlan, plan_fusion
from agent.features.fusion.rules import Evidence, Fusion, FusionTimes, text_evidence
from agent.health import FusionHealth
from agent.structs import from_json
from agent.types import Event, StageTimes, Track

if TYPE_CHECKING:
    from agent.comms.mqtt.inbox import IncomingMessage

log = logging.getLogger(__name__)
_AHEAD_NS, _BEHIND_NS = 1_000_000_000, 60_000_000_000
"""A capture time outside of this, as seen from the arrival, is of a replay or of a clock that was set."""
_RETRY_NS = 10_000_000_000
"""Time until an event whose condition has failed is tried again, unless evidence comes before."""


class _Fused:
    """One fused event with its reporter. For the fusion's thread."""

    def __init__(
        self, name: str, planned: FusedEvent, topics: Topics, events: EventSink, board: RetainedSink
    ) -> None:
        self.planned, config = planned, planned.config
        self.reporter = Reporter(topics, name, PublishConfig(), planned.model, events, board)
        times = FusionTimes.of_seconds(config.window_s, config.late_s, config.hold_s, config.update_every_s)
        self.fusion = Fusion(name, planned.condition, times)
        self.reporter.counts({name: 0}, {})
        self._fails = False

    def is_same(self, planned: FusedEvent) -> bool:
        """Return True if it can go on: the same configuration and files, tied to the same sources."""
        old = self.planned
        same_terms = tuple(old.condition.terms) == tuple(planned.condition.terms)
        return same_terms and (old.config, old.model) == (planned.config, planned.model)

    def poll(self, now_ns: int, now: datetime) -> None:
        """Publish what is due. An error is logged once, and ends no other event."""
        try:
            self.publish(self.fusion.poll(now_ns, now), now)
        except Exception:
            self.fusion.next_due_ns = now_ns + _RETRY_NS
            if not self._fails:
                log.exception("fusion %s: internal error (please report); trying it again", self.fusion.name)
            self._fails = True
        else:
            self._fails = False

    def publish(self, events: Iterable[Event], now: datetime) -> None:
        """Publish events, each with the time that has passed since the instant that it tells of."""
        for event in events:
            at = event.track.first_seen if event.kind == "new" else event.track.last_seen
            waited = round((now - at).total_seconds() * 1e9) if event.kind == "new" else 0
            self.reporter.events([event], at, StageTimes(queue=max(0, waited)), "fusion", "")
            self.reporter.counts({event.track.label: int(event.kind != "end")}, {})

    def health(self) -> FusionHealth:
        return FusionHealth(self.fusion.is_on, self.fusion.events, self.fusion.away)


class FusionRunner:
    """Runs every fused event of a configuration. Any thread may call its methods; none of them waits but `stop`.

    Attributes:
        texts: receivers by name of the text input.
    """

    def __init__(self, topics: Topics, events: EventSink, board: RetainedSink) -> None:
        self._topics, self._events, self._board = topics, events, board
        self._fused: dict[str, _Fused] = {}
        self._present: dict[str, bool] = {}
        self._health: dict[str, FusionHealth] = {}
        self.texts: dict[str, TextReceiver] = {}
        self._tasks: queue.SimpleQueue[Callable[[int, datetime], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread, unless it runs."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="fusion", daemon=True)
            self._thread.start()

    def stop(self, timeout_s: float) -> None:
        """End every event that goes on, and the thread."""
        self._tasks.put(self._finish)
        self._tasks.put(None)
        if self._thread is not None:
            self._thread.join(timeout_s)

    def configure(self, plan: FusionPlan, tracks: Mapping[str, Sequence[Track]]) -> None:
        """Run another plan: events whose condition is the same go on, others end.

        Args:
            plan: to run from now on.
            tracks: that are open now, by stream: evidence for what is new.
        """
        self.texts = {name: self.texts.get(name) or TextReceiver(name, self.add_text) for name in plan.texts}
        self._tasks.put(partial(self._configure, plan.fused, tracks))

    def add_events(self, stream: str, events: Sequence[Event], at: datetime) -> None:
        """Add events of a stream, with their UTC of capture."""
        self._tasks.put(partial(self._add_events, stream, events, at))

    def add_text(self, name: str, text: str, at: datetime) -> None:
        """Add a text. Only what a condition asks for is kept of it."""
        self._tasks.put(partial(self._add_text, name, text, at))

    def set_present(self, present: Mapping[str, bool]) -> None:
        """Tell which streams and texts are there now, and which are away."""
        changed = {name: is_there for name, is_there in present.items() if self._present.get(name) != is_there}
        self._present = dict(present)
        if changed:
            self._tasks.put(partial(self._set_present, changed))

    def health(self) -> dict[str, FusionHealth]:
        """Return the state of each fused event, by name."""
        return self._health

    def refused(self) -> dict[str, int]:
        """Return how many texts were refused, by name, without those of which none was."""
        return {name: one.refused for name, one in self.texts.items() if one.refused}

    def _run(self) -> None:
        while True:
            try:
                task = self._tasks.get(timeout=self._wait_s())
            except queue.Empty:
                task = self._do_nothing
            if task is None:
                return
            try:
                self._handle(task)
            except Exception:  # one odd piece of evidence must not end the others
                log.exception("fusion: internal error (please report)")

    def _wait_s(self) -> float | None:
        """Return the time until the next event is due, s; None: nothing is."""
        dues = [one.fusion.next_due_ns for one in self._fused.values() if one.fusion.next_due_ns is not None]
        return max(0.0, (min(dues) - time.monotonic_ns()) / 1e9) if dues else None

    def _handle(self, task: Callable[[int, datetime], None]) -> None:
        now_ns, now = time.monotonic_ns(), datetime.now(UTC)
        task(now_ns, now)
        for one in self._fused.values():
            one.poll(now_ns, now)
        self._health = {name: one.health() for name, one in self._fused.items()}

    def _do_nothing(self, now_ns: int, now: datetime) -> None:
        """Let time alone end what is due."""

    def _configure(
        self,
        wanted: Mapping[str, FusedEvent],
        tracks: Mapping[str, Sequence[Track]],
        now_ns: int,
        now: datetime,
    ) -> None:
        for name, one in list(self._fused.items()):
            if name in wanted and one.is_same(wanted[name]):
                continue
            del self._fused[name]
            one.publish(one.fusion.finish(now_ns, now, "reloaded"), now)
            if name not in wanted:
                self._board.retain(self._topics.count(name, name), b"")
        for name, planned in wanted.items():
            if name not in self._fused:
                self._fused[name] = _Fused(name, planned, self._topics, self._events, self._board)
                self._begin(self._fused[name], tracks, now_ns, now)

    def _finish(self, now_ns: int, now: datetime) -> None:
        for one in self._fused.values():
            one.publish(one.fusion.finish(now_ns, now, "shutdown"), now)
        self._fused = {}

    def _begin(self, fused: _Fused, tracks: Mapping[str, Sequence[Track]], now_ns: int, now: datetime) -> None:
        for name in (name for name, is_there in self._present.items() if is_there):
            fused.fusion.set_away(name, now_ns, away=False)
        for stream, some in tracks.items():
            for track in some:
                fused.fusion.add(_evidence(stream, Event("update", track, ""), now_ns, now, now))

    def _add_events(self, stream: str, events: Sequence[Event], at: datetime, now_ns: int, now: datetime) -> None:
        for event in events:
            evidence = _evidence(stream, event, now_ns, now, at)
            for one in self._fused.values():
                one.fusion.add(evidence)

    def _add_text(self, name: str, text: str, at: datetime, now_ns: int, now: datetime) -> None:
        at_ns = min(now_ns, now_ns - round((now - at).total_seconds() * 1e9))
        for one in self._fused.values():
            for evidence in text_evidence(one.planned.condition.terms, name, text, at_ns):
                one.fusion.add(evidence)

    def _set_present(self, changed: Mapping[str, bool], now_ns: int, now: datetime) -> None:
        for one in self._fused.values():
            for name, is_there in changed.items():
                one.fusion.set_away(name, now_ns, away=not is_there)


def _evidence(stream: str, event: Event, now_ns: int, now: datetime, at: datetime) -> Evidence:
    """Return a stream's event as evidence, on this process's clock.

    The UTC of capture is on the clock of that instant. If it lies in the future or far behind, the clock was set
    or a recording is replayed faster than it was made: then the event counts as captured now.
    """
    late_ns = round((now - at).total_seconds() * 1e9)
    at_ns = now_ns - late_ns if -_AHEAD_NS <= late_ns <= _BEHIND_NS else now_ns

    from_ns = min(now_ns, at_ns - round((at - event.track.first_seen).total_seconds() * 1e9))
    return Evidence.of_event(stream, event, from_ns, min(now_ns, at_ns))


class FusionPart(DevicePart):
    """Fused events of a configuration: none, if it has none any more."""

    def __init__(self, runtime: Runtime) -> None:
        """Listen to texts, before the connection to the broker is made; the thread starts later."""
        self._runtime = runtime
        self.runner = FusionRunner(runtime.topics, runtime.spool, runtime.mqtt)
        self._texts: dict[str, TextReceiver] = {}
        self.configure(runtime.config)

    def start(self) -> None:
        self.runner.start()

    def configure(self, config: Config) -> None:
        """Run the events of a checked configuration in place of those that run, and listen to their texts."""
        runtime = self._runtime
        try:
            plan = plan_fusion(config)
        except ConfigError as error:  # a file has changed since the check
            log.error("keeping the old fused events: %s", error)
            return
        runtime.tap.listener = self.runner.add_events if plan.fused else None
        self.runner.configure(plan, {name: one.open_tracks for name, one in runtime.streams.items()})
        texts = self.runner.texts if runtime.commands else {}
        for name in self._texts.keys() - texts.keys():
            runtime.mqtt.ignore(runtime.topics.text(name))
        for name, receiver in texts.items():
            if self._texts.get(name) is not receiver:
                runtime.mqtt.listen(runtime.topics.text(name), receiver.receive, as_published=True)
        self._texts = dict(texts)

    def poll(self) -> None:
        """Tell the fused events which streams and texts are there now."""
        streams, connected = self._runtime.streams, self._runtime.mqtt.state.connected
        present = {name: one.status[0] in ("running", "degraded") for name, one in streams.items()}
        self.runner.set_present({**present, **dict.fromkeys(self._texts, connected)})

    def health(self) -> dict[str, Any]:
        return {"fusion": self.runner.health(), "texts_refused": self.runner.refused()}

    def close(self, seconds: float) -> None:
        self.runner.stop(seconds)


def open_device_part(runtime: Runtime) -> FusionPart:
    """Run the fused events of a configuration."""
    return FusionPart(runtime)


TEXT_MAX = 4096
"""Largest payload, bytes."""
_CLOCK_WITHIN = timedelta(seconds=5)
"""Most difference of a text's own time from this device's clock for which it counts."""


class ReceivedText(Struct, frozen=True):
    """A text.

    Attributes:
        text: as sent.
        at: UTC at which it was said, by the sender's clock; None: the sender does not tell.
    """

    text: str
    at: datetime | None = None


class _Body(Struct, frozen=True):
    text: str
    at: datetime | float | None = None


def decode_text(payload: bytes) -> ReceivedText:
    """Decode a payload.

    Raises:
        CommandError: it is too large, not UTF-8, or no such JSON object. The message does not quote it.
    """
    if len(payload) > TEXT_MAX:
        raise CommandError(f"{len(payload)} bytes, at most {TEXT_MAX} are taken")
    try:
        text = payload.decode()
    except UnicodeDecodeError as error:
        raise CommandError(f"not UTF-8 at byte {error.start}") from None
    if not text.lstrip().startswith("{"):
        return ReceivedText(text)
    try:
        body = from_json(payload, _Body)
        return ReceivedText(body.text, _utc(body.at))
    except (msgspec.MsgspecError, ValueError, OverflowError, RecursionError):
        raise CommandError('expected JSON with "text", and "at" as a time, or plain text') from None


def _utc(at: datetime | float | None) -> datetime | None:
    if at is None:
        return None
    if isinstance(at, datetime):
        if at.tzinfo is None:
            raise ValueError("a time without its offset")
        return at.astimezone(UTC)
    return datetime.fromtimestamp(at, UTC)


def said_at(text: ReceivedText, arrived_at: datetime) -> datetime:
    """Return when a text was said: its own time if that is near enough, and not ahead; else its arrival."""
    if text.at is None or abs(text.at - arrived_at) > _CLOCK_WITHIN:
        return arrived_at
    return min(text.at, arrived_at)


class TextReceiver:
    """Receives the texts of one topic. For the connection's thread; each kind of refusal is logged once.

    Attributes:
        refused: number of messages that were refused.
    """

    def __init__(self, name: str, on_text: Callable[[str, str, datetime], None]) -> None:
        """Pass on the name of the text input, the text, and the UTC at which it was said."""
        self._name, self._on_text = name, on_text
        self.refused, self._reasons = 0, set[str]()

    def receive(self, received: IncomingMessage) -> None:
        """Pass a message on, or refuse it."""
        if received.retained:  # it would count again at every start
            if received.payload:
                self._refuse("retained by the broker; send it without the retain flag")
            return
        arrived_at = datetime.now(UTC)
        try:
            text = decode_text(received.payload)
        except CommandError as error:
            self._refuse(str(error))
            return
        self._on_text(self._name, text.text, said_at(text, arrived_at))

    def _refuse(self, why: str) -> None:
        self.refused += 1
        kind = re.sub(r"\d+", "", why)
        if kind not in self._reasons:
            self._reasons.add(kind)
            log.warning("text %s: refused: %s; more of this kind are counted in health", self._name, why)
