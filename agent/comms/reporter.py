"""One stream's results as messages: events to the spool, counts, detections and snapshots to the broker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Protocol

from msgspec.structs import replace

from agent.comms import payload
from agent.comms.topics import Topics
from agent.config import PublishConfig
from agent.messages import Event, Frame, Seen, Stages

_NO_STAGES = Stages()


class EventSink(Protocol):
    """Where events go: on disk before anything else."""

    def put(self, topic: str, body: bytes) -> None:
        """Take an event; never blocks."""
        ...


class Board(Protocol):
    """Where state and samples go: straight to the broker."""

    def retain(self, topic: str, payload: bytes) -> None:
        """Set a retained topic; the newest wins."""
        ...

    def send(self, topic: str, payload: bytes) -> None:
        """Send once at QoS 0, or drop."""
        ...


class Reporter:
    """Speaks for one stream."""

    def __init__(
        self,
        topics: Topics,
        stream: str,
        config: PublishConfig,
        model: payload.ModelId,
        events: EventSink,
        board: Board,
    ) -> None:
        self._topics, self._stream, self._config, self._model = topics, stream, config, model
        self._events, self._board = events, board
        self._announced: set[str] = set()
        self._counts: dict[str, int] = {}

    def seen(self, frame: Frame, seen: Seen, backend: str, rung: str) -> None:
        """Report what one frame gave."""
        if seen.events:
            self.events(seen.events, frame.captured_at, seen.stages, backend, rung)
        if self._config.detections and seen.detections is not None:
            message = payload.DetectionsMessage(
                self._topics.device,
                self._stream,
                frame.seq,
                frame.captured_at,
                seen.detections,
                _latency(seen.stages),
                self._model,
                backend,
                rung,
            )
            self._board.send(self._topics.detections(self._stream), payload.encode(message))

    def events(self, events: Sequence[Event], at: datetime, stages: Stages, backend: str, rung: str) -> None:
        """Put events into the spool."""
        if not self._config.events:
            return
        topic = self._topics.events(self._stream)
        latency = _latency(stages)
        for event in filter(None, map(self._wanted, events)):
            message = payload.EventMessage(
                payload.new_id(),
                self._topics.device,
                self._stream,
                event.kind,
                event.reason,
                event.track,
                at,
                latency,
                self._model,
                backend,
                rung,
            )
            self._events.put(topic, payload.encode(message))

    def counts(self, counts: Mapping[str, int]) -> None:
        """Set the number of live tracks of each label that changed."""
        if not self._config.counts:
            return
        for label, count in counts.items():
            if self._counts.get(label) != count:
                self._counts[label] = count
                self._board.retain(self._topics.count(self._stream, label), str(count).encode())

    def snapshot(self, jpeg: bytes) -> None:
        """Set the picture of the newest event."""
        self._board.retain(self._topics.snapshot(self._stream), jpeg)

    def _wanted(self, event: Event) -> Event | None:
        """With `only_zones`, a track begins when it first stands in a zone, and only then has an end."""
        if not self._config.only_zones:
            return event
        track = event.track.id
        if track in self._announced:
            if event.kind == "end":
                self._announced.discard(track)
            return event
        if event.kind == "end" or not event.track.zones:
            return None
        self._announced.add(track)
        return event if event.kind == "new" else replace(event, kind="new")


def _latency(stages: Stages) -> payload.Latency:
    return payload.Latency(
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
