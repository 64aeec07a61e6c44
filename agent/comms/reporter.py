"""One stream's results as messages: events to the spool, counts, detections and snapshots to the broker."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Protocol

from msgspec.structs import replace

from agent.comms import messages
from agent.comms.topics import Topics
from agent.config import PublishConfig
from agent.types import Event, OpenTrack, StageTimes, StreamResult, Track


class EventSink(Protocol):
    """Where events go: what keeps them until the broker has them."""

    def put(self, topic: str, body: bytes, track: OpenTrack | None = None) -> None:
        """Add an event and the crash end of its track; never blocks."""
        ...


class RetainedSink(Protocol):
    """Where state and samples go: straight to the broker."""

    def retain(self, topic: str, payload: bytes, *, patient: bool = False) -> None:
        """Set a retained topic; the newest wins. A patient one may wait up to a second for company."""
        ...

    def send(self, topic: str, payload: bytes) -> None:
        """Send once at QoS 0, or drop."""
        ...


class Reporter:
    """Publishes for one stream, and remembers the tracks that it owes an `end`.

    For the stream's thread; `stop` and `close` may be called from any.
    """

    def __init__(
        self,
        topics: Topics,
        stream: str,
        config: PublishConfig,
        model: messages.ModelId,
        events: EventSink,
        board: RetainedSink,
    ) -> None:
        self._topics, self._stream, self._config, self._model = topics, stream, config, model
        self._events, self._board = events, board
        self._open: dict[str, Track] = {}
        self._lock = threading.Lock()
        self._stopped = self._closed = False
        self._answered_by = ("", "")
        self._counts: dict[str, int] = {}
        self._zone_counts: dict[tuple[str, str], int] = {}
        self._seen: dict[tuple[str, str], None] = {}

    def seen(self, seq: int, at: datetime, seen: StreamResult, backend: str, variant: str) -> None:
        """Report what one frame, or some sound, gave.

        Args:
            seq: its number within the stream.
            at: its capture, UTC.
            seen: what it gave.
            backend: that answered.
            variant: that answered.
        """
        with self._lock:
            if self._config.detections and seen.detections is not None and not self._stopped:
                message = messages.DetectionsMessage(
                    self._topics.device,
                    self._stream,
                    seq,
                    at,
                    seen.detections,
                    _latency(seen.stages),
                    self._model,
                    backend,
                    variant,
                )
                self._board.send(self._topics.detections(self._stream), messages.encode(message))
            if seen.events:
                self._report(seen.events, at, seen.stages, backend, variant)

    def events(
        self, events: Sequence[Event], at: datetime, stages: StageTimes, backend: str, variant: str
    ) -> None:
        """Put events into the spool; after `stop` only ends, after `close` none."""
        with self._lock:
            self._report(events, at, stages, backend, variant)

    def _report(
        self, events: Sequence[Event], at: datetime, stages: StageTimes, backend: str, variant: str
    ) -> None:
        if self._config.events and not self._closed:
            self._answered_by = backend, variant
            self._put([wanted for event in events if (wanted := self._wanted(event))], at, stages)

    def stop(self) -> None:
        """Publish nothing more but ends of tracks, and counts of 0. When this returns, that holds."""
        with self._lock:
            self._stopped = True

    @property
    def stopped(self) -> bool:
        """True after `stop` or `close`."""
        return self._stopped

    def close(self, reason: str) -> None:
        """End the open tracks for a stream whose thread hangs, and publish nothing more at all.

        Args:
            reason: of the ends.
        """
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

    def _crash_end(self, event: Event, at: datetime) -> OpenTrack | None:
        """Return the `end` of a track for the case that the process dies; a keyword has none."""
        if event.kind == "keyword":
            return None
        over = event.kind == "end"
        body = None if over else self._body(Event("end", event.track, "restart"), at, _NO_LATENCY)
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

        Args:
            counts: by label; those that are not among them stay as they are.
            zones: by zone and label; those that are not among them are 0.
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
        # Counts change with events, and travel with them.
        self._board.retain(topic, str(count).encode(), patient=self._config.events)

    @property
    def counted(self) -> tuple[tuple[str, str], ...]:
        """Zones and labels that something was counted for, in the order of that; no zone: the whole picture.

        May be asked from any thread.
        """
        return tuple(self._seen.copy())

    def snapshot(self, jpeg: bytes) -> None:
        """Set the picture of the newest event; after `stop` the picture is dropped."""
        with self._lock:
            if not self._stopped:
                self._board.retain(self._topics.snapshot(self._stream), jpeg, patient=True)

    def _wanted(self, event: Event) -> Event | None:
        """With `only_zones`, a track begins when it first stands in a zone, and only then has an end."""
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
    return messages.Latency(
        *(
            round(ns / 1e6, 3)
            for ns in (
                stages.queue,
                stages.gate,
                stages.prepare,
                stages.infer,
                stages.decode,
                stages.track,
                0,
                stages.total,
            )
        )
    )


_NO_LATENCY = _latency(StageTimes())
