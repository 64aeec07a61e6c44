"""One stream's results as messages: events and verdicts to the spool, counts and the like to the broker."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Protocol

from msgspec.structs import asdict, replace

from agent.comms import messages
from agent.comms.topics import Topics
from agent.config import PublishConfig
from agent.config.features import StreamBudget
from agent.types import Event, EventKind, OpenTrack, StageTimes, StreamResult, Track


class EventSink(Protocol):
    """Stores events until the broker has acknowledged them. The spool is one."""

    def put(self, topic: str, body: bytes, track: OpenTrack | None = None) -> None:
        """Add an event and the crash end of its track; never blocks."""
        ...


class RetainedSink(Protocol):
    """Sends retained topics and samples to the broker. The publisher is one."""

    def retain(self, topic: str, payload: bytes, *, patient: bool = False) -> None:
        """Set a retained topic; a patient one may wait up to a second to be sent with others."""
        ...

    def send(self, topic: str, payload: bytes) -> None:
        """Send once at QoS 0, or drop."""
        ...


EventListener = Callable[[str, Sequence[Event], datetime], None]
"""Called with a stream, its events, and their UTC of capture, in the stream's thread: it must return quickly."""


class EventTap:
    """Passes the events of all streams on to one listener in this process, published or not; None: to nobody."""

    def __init__(self) -> None:
        self.listener: EventListener | None = None


_LABELS_MAX, _LABEL_LENGTH = 64, 64
_OTHER, _TEXT = "other", "text"


class EventCounts:
    """Number of published events of one stream since the start, by label and kind. One thread adds at a time.

    The number of labels is bounded: those that come after 64 others count as `other`.

    Attributes:
        hides_labels: labels are texts that the model reads, such as number plates, and count as `text`.
    """

    def __init__(self) -> None:
        self.hides_labels = False
        self._counts: dict[tuple[str, EventKind], int] = {}
        self._labels: set[str] = set()

    def add(self, event: Event) -> None:
        """Count an event."""
        label = _TEXT if self.hides_labels else event.track.label[:_LABEL_LENGTH]
        if label not in self._labels:
            if len(self._labels) >= _LABELS_MAX:
                label = _OTHER
            self._labels.add(label)
        key = label, event.kind
        self._counts[key] = self._counts.get(key, 0) + 1

    def all(self) -> dict[tuple[str, EventKind], int]:
        """Return the counts by label and kind; any thread may ask."""
        return self._counts.copy()


class Reporter:
    """Publishes the results of one stream, and remembers the tracks that need an `end`.

    For the stream's thread; any thread may call `set_budget`, `stop` and `close`.
    """

    def __init__(
        self,
        topics: Topics,
        stream: str,
        config: PublishConfig,
        model: messages.ModelId,
        events: EventSink,
        board: RetainedSink,
        tap: EventTap | None = None,
        published: EventCounts | None = None,
    ) -> None:
        self._tap, self._published = tap or EventTap(), published or EventCounts()
        self._topics, self._stream, self._config, self._model = topics, stream, config, model
        self._events, self._board = events, board
        self._open: dict[str, Track] = {}
        self._lock = threading.Lock()
        self._stopped = self._closed = False
        self._answered_by = ("", "")
        self._sample: messages.DetectionsMessage | None = None  # the newest, which waits until it is due
        self._sample_every_s, self._sampled_s = 0.0, -math.inf
        self._counts: dict[str, int] = {}
        self._zone_counts: dict[tuple[str, str], int] = {}
        self._seen: dict[tuple[str, str], None] = {}
        self._measured: dict[str, float] = {}
        self._values: dict[str, tuple[float, float]] = {}
        self._fading: set[str] = set()

    def report(self, seq: int, at: datetime, result: StreamResult, backend: str, variant: str) -> None:
        """Publish the result of one frame, or of some sound, with its number and time of capture."""
        self._pass_on(result.events, at)
        with self._lock:
            found = result.detections if result.detections is not None else result.predicted
            if self._config.detections and found is not None and not self._stopped:
                is_predicted = result.detections is None
                self._sample = messages.DetectionsMessage(
                    *(self._topics.device, self._stream, seq, at, found, _latency(result.stages), self._model),
                    *(backend, variant, is_predicted),
                )
            self._send_sample()
            if result.events:
                self._put_wanted(result.events, at, result.stages, backend, variant)

    def _send_sample(self) -> None:
        now_s = time.monotonic()
        if self._sample is not None and now_s >= self._sampled_s + self._sample_every_s:
            sample, self._sample, self._sampled_s = self._sample, None, now_s
            self._board.send(self._topics.detections(self._stream), messages.encode(sample))

    def send_due_sample(self) -> None:
        """Send the newest `detections` that had to wait, if it is due; call now and then while no input comes."""
        with self._lock:
            self._send_sample()

    def set_budget(self, budget: StreamBudget) -> None:
        """Send `detections` at the rate of a budget from now on. Any thread may call this."""
        with self._lock:
            self._sample_every_s = budget.samples_every_s

    def events(
        self, events: Sequence[Event], at: datetime, stages: StageTimes, backend: str, variant: str
    ) -> None:
        """Publish events; after `stop` only ends, after `close` none."""
        self._pass_on(events, at)
        with self._lock:
            self._put_wanted(events, at, stages, backend, variant)

    def _pass_on(self, events: Sequence[Event], at: datetime) -> None:
        """Pass events on to who listens in this process; after `stop` only ends, after `close` none."""
        if not events or self._closed or (listener := self._tap.listener) is None:
            return
        listener(self._stream, [one for one in events if one.kind == "end" or not self._stopped], at)

    def _put_wanted(
        self, events: Sequence[Event], at: datetime, stages: StageTimes, backend: str, variant: str
    ) -> None:
        if self._config.events and not self._closed:
            self._answered_by = backend, variant
            self._put([wanted for event in events if (wanted := self._wanted(event))], at, stages)

    def stop(self) -> None:
        """From now on publish only ends of tracks, and counts of 0.

        Measurements, states and condition are unknown then.
        """
        with self._lock:
            self._stopped = True
            self._sample = None
            for topic in self._fading:
                self._board.retain(topic, b"")
            self._fading.clear()

    @property
    def stopped(self) -> bool:
        return self._stopped

    @property
    def open_tracks(self) -> list[Track]:
        """Tracks that have been published and have not ended."""
        with self._lock:
            return list(self._open.values())

    @property
    def place(self) -> tuple[str, str]:
        """Device and stream."""
        return self._topics.device, self._stream

    def close(self, reason: str) -> None:
        """End the open tracks for a stream whose thread hangs, and publish nothing more."""
        with self._lock:
            self._put(
                [Event("end", track, reason) for track in self._open.values()], datetime.now(UTC), StageTimes()
            )
            self._open.clear()
            self._set_counts(dict.fromkeys(self._counts, 0), {})  # empty where none are published
            self._stopped = self._closed = True

    def _put(self, events: Sequence[Event], at: datetime, stages: StageTimes) -> None:
        topic = self._topics.events(self._stream)
        latency = _latency(stages)
        for event in events:
            self._events.put(topic, self._body(event, at, latency), self._crash_end(event, at))
            self._published.add(event)

    def _crash_end(self, event: Event, at: datetime) -> OpenTrack | None:
        """Return the `end` of a track to publish if the process dies; a keyword has none."""
        if event.kind == "keyword":
            return None
        body = None if event.kind == "end" else self._body(Event("end", event.track, "restart"), at, _NO_LATENCY)
        return OpenTrack(event.track.id, body)

    def _body(self, event: Event, at: datetime, latency: messages.Latency) -> bytes:
        return messages.encode(
            messages.EventMessage(
                messages.new_id(),
                self._topics.device,
                self._stream,
                event.kind,
                event.reason,
                event.track,
                at,
                latency,
                self._model,
                *self._answered_by,
            )
        )

    def counts(self, counts: Mapping[str, int], zones: Mapping[tuple[str, str], int]) -> None:
        """Set the numbers of live tracks that changed; after `stop` only to 0, after `close` none.

        Labels that are missing in `counts` stay as they are; zones and labels missing in `zones` are 0.
        """
        with self._lock:
            if self._config.counts and not self._closed:
                self._set_counts(counts, zones)

    def _set_counts(self, counts: Mapping[str, int], zones: Mapping[tuple[str, str], int]) -> None:
        for label, count in counts.items():
            if self._counts.get(label) != count and not (count and self._stopped):
                self._counts[label] = count
                self._count(self._topics.count(self._stream, label), "", label, count)
        for zone, label in (*zones, *(known for known in self._zone_counts if known not in zones)):
            count = zones.get((zone, label), 0)
            if self._zone_counts.get((zone, label)) != count and not (count and self._stopped):
                self._zone_counts[zone, label] = count
                self._count(self._topics.zone_count(self._stream, zone, label), zone, label, count)

    def _count(self, topic: str, zone: str, label: str, count: int) -> None:
        if count:
            self._seen[zone, label] = None
        # Counts change with events, and can be sent with them.
        self._board.retain(topic, str(count).encode(), patient=self._config.events)

    @property
    def counted_labels(self) -> tuple[tuple[str, str], ...]:
        """Zones and labels that had a count above 0, in that order; an empty zone is the whole picture.

        For any thread.
        """
        return tuple(self._seen.copy())

    def values(self, measurements: Mapping[str, float], step: float, now_s: float) -> None:
        """Set the measurements that have changed by a step, at most every `values_every_s`; after `stop` none.

        What comes in between is set when it is due, by the next call.

        Args:
            measurements: by label; those that are missing are as they were.
            step: least change; 0: any.
            now_s: CLOCK_MONOTONIC, s; inf: all is due.
        """
        with self._lock:
            if self._stopped or not self._config.counts:
                return
            self._measured.update(measurements)
            for label, value in self._measured.items():
                known, at_s = self._values.get(label, (None, 0.0))
                has_changed = known is None or (value != known and abs(value - known) >= step)
                if has_changed and (known is None or now_s - at_s >= self._config.values_every_s):
                    self._values[label] = value, now_s
                    topic = self._topics.value(self._stream, label)
                    self._fading.add(topic)
                    self._board.retain(topic, f"{value:.9g}".encode(), patient=True)

    def retain(self, message: messages.RetainedMessage) -> None:
        """Set a retained topic of the stream; what fades is dropped after `stop`, the others after `close`."""
        topic = self._topics.retained(self._stream, message.LEVEL, getattr(message, "name", ""))
        with self._lock:
            is_over = self._stopped if message.FADES else self._closed
            if is_over or (message.IS_COUNT and not self._config.counts):
                return
            if message.FADES:
                self._fading.add(topic)
            # Counts change with events, and can be sent with them.
            patient = self._config.events and not message.FADES
            self._board.retain(topic, messages.encode(message), patient=patient)

    def clear(self, kind: type[messages.RetainedMessage], name: str = "") -> None:
        """Delete a topic of the stream; one that fades, only if this run has set it."""
        topic = self._topics.retained(self._stream, kind.LEVEL, name)
        with self._lock:
            if not kind.FADES or topic in self._fading:
                self._fading.discard(topic)
                self._board.retain(topic, b"")

    def verdict(
        self, verdict: messages.PartVerdict, judged_ms: float, picture: str, backend: str, variant: str
    ) -> None:
        """Publish the verdict on a part, also after `stop`, since its reject output has acted; not after `close`.

        Args:
            verdict: on the part.
            judged_ms: from its trigger to the verdict, ms.
            picture: path of its picture; empty: none is kept.
            backend: that computed it.
            variant: of the model.
        """
        message = messages.VerdictMessage(
            id=messages.new_id(),
            device=self._topics.device,
            stream=self._stream,
            **asdict(replace(verdict, score=round(verdict.score, 4))),
            judged_ms=round(judged_ms, 3),
            picture=picture.encode("utf-8", "replace").decode(),  # a path may not be UTF-8
            model=self._model,
            backend=backend,
            variant=variant,
        )
        with self._lock:
            if self._config.events and not self._closed:
                self._events.put(self._topics.verdicts(self._stream), messages.encode(message))

    def snapshot(self, jpeg: bytes, *, asked: bool = False) -> None:
        """Publish the picture of the newest event, or one that was asked for; after `stop` drop it."""
        with self._lock:
            if not self._stopped:
                self._board.retain(self._topics.snapshot(self._stream), jpeg, patient=not asked)

    def _wanted(self, event: Event) -> Event | None:
        """Return the event to publish, if any. With `only_zones`, a track begins when it enters a zone."""
        track = event.track
        if event.kind == "end":
            return event if self._open.pop(track.id, None) else None
        if self._stopped:
            return None
        if event.kind == "keyword":
            return event
        if track.id not in self._open:
            if self._config.only_zones and not track.zones:
                return None
            event = event if event.kind == "new" else replace(event, kind="new")
        self._open[track.id] = track
        return event


def _latency(stages: StageTimes) -> messages.Latency:
    ns = (
        stages.queue,
        stages.gate,
        stages.prepare,
        stages.infer,
        stages.decode,
        stages.track,
        0,
        stages.total,
        stages.secondary,
    )
    return messages.Latency(*(round(one / 1e6, 3) for one in ns))


_NO_LATENCY = _latency(StageTimes())
