"""Follows what devices publish, and finds lost messages. Used by `vedette watch` and `vedette demo`.

A daemon that was cut off begins its next run above every number that it may have given out, and each message
tells with which number its run began. So a gap before that number does not mean lost messages: its numbers were
never given out, or were in the device's memory only. See `agent.storage.spool.disk`.

A device with a new card begins at its clock, above all that it had before, unless the clock is wrong. So an
unknown run that begins lower is such a one, and its messages are counted from there.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, TypeVar

import msgspec
import paho.mqtt.client as mqtt
from msgspec import Struct

from agent.comms.consumer.client import BrokerOptions, ConsumerClient
from agent.comms.messages import ConditionMessage, EventMessage, InspectionMessage, LineMessage, VerdictMessage
from agent.errors import NO_JSON
from agent.health import HealthMessage
from agent.structs import json_decoder

Kind = Literal[
    "status",
    "health",
    "events",
    "verdicts",
    "detections",
    "clips",
    "inspection",
    "condition",
    "snapshot",
    "count",
    "line",
]

_START_S = 20.0
T = TypeVar("T")


class Numbered(Struct, frozen=True):
    """The numbers of a message that went through the spool; a detection's number is `spool_seq`."""

    seq: int = 0
    spool_seq: int = 0
    first_seq: int = 0


_events = json_decoder(EventMessage)
_verdicts = json_decoder(VerdictMessage)
_inspections = json_decoder(InspectionMessage)
_conditions = json_decoder(ConditionMessage)
_lines = json_decoder(LineMessage)
_numbered = json_decoder(Numbered)
_health = json_decoder(HealthMessage)


class ReceivedMessage(Struct, frozen=True):
    """One message from a device.

    Attributes:
        topic, payload: as received.
        device, stream: names; `stream` is empty for the device's own topics.
        kind: third level of the topic, or the second of the device's own.
        received_ns: CLOCK_MONOTONIC, ns.
        retained: the broker had retained it; it is not new.
    """

    topic: str
    device: str
    stream: str
    kind: Kind
    payload: bytes
    received_ns: int
    retained: bool

    def event(self) -> EventMessage | None:
        """Return the event, or None if the message cannot be read as one."""
        return self._decoded("events", _events)

    def verdict(self) -> VerdictMessage | None:
        """Return the verdict on a part, or None if the message cannot be read as one."""
        return self._decoded("verdicts", _verdicts)

    def inspection(self) -> InspectionMessage | None:
        """Return the counters of inspected parts, or None if the message cannot be read as such."""
        return self._decoded("inspection", _inspections)

    def condition(self) -> ConditionMessage | None:
        """Return the problems of a stream, or None if the message cannot be read as such."""
        return self._decoded("condition", _conditions)

    def line(self) -> LineMessage | None:
        """Return the crossings of a line, or None if the message cannot be read as such."""
        return self._decoded("line", _lines)

    def health(self) -> HealthMessage | None:
        """Return the device's health; None: it is not what this version can read."""
        return self._decoded("health", _health)

    def _decoded(self, kind: Kind, decoder: msgspec.json.Decoder[T]) -> T | None:
        try:
            return decoder.decode(self.payload) if self.kind == kind else None
        except NO_JSON:
            return None

    def numbers(self) -> tuple[int, int] | None:
        """Return `seq` and `first_seq`, which is 0 if unknown; None: the message has no number."""
        if self.kind not in ("events", "verdicts", "clips", "detections"):
            return None
        try:
            numbers = _numbered.decode(self.payload)
        except NO_JSON:
            return None
        seq = numbers.spool_seq if self.kind == "detections" else numbers.seq
        return (seq, numbers.first_seq) if seq else None


class Subscriber:
    """Subscribes to every topic of one device or of all. Reconnects by itself."""

    def __init__(self, options: BrokerOptions, *, prefix: str = "vedette", device: str = "+") -> None:
        """Prepare; `start` connects. Raise BrokerError if a certificate or a key cannot be used."""
        self._prefix, self._device = prefix, device
        self._received: queue.SimpleQueue[ReceivedMessage] = queue.SimpleQueue()
        self._connection = ConsumerClient(options, reconnects=True, on_connect=self._subscribe)
        self._connection.client.on_message = self._message

    def start(self, timeout_s: float = _START_S) -> None:
        """Connect and subscribe. Raise BrokerError if the broker cannot be reached, or refuses the connection."""
        self._connection.connect(timeout_s)

    def messages(self, until: float | None = None) -> Iterator[ReceivedMessage | None]:
        """Yield messages as they arrive; None about four times a second while there are none.

        `until` is a time of CLOCK_MONOTONIC at which to end, s; None: never.
        """
        while until is None or time.monotonic() < until:
            try:
                yield self._received.get(timeout=0.25)
            except queue.Empty:
                yield None

    def stop(self) -> None:
        self._connection.disconnect()

    def _subscribe(self) -> None:
        self._connection.client.subscribe(f"{self._prefix}/{self._device}/#", qos=1)

    def _message(self, client: mqtt.Client, userdata: Any, message: mqtt.MQTTMessage) -> None:
        levels = message.topic.removeprefix(f"{self._prefix}/").split("/")
        device, stream, kind = _parts(levels)
        self._received.put(
            ReceivedMessage(
                message.topic,
                device,
                stream,
                kind,
                bytes(message.payload),
                time.monotonic_ns(),
                message.retain,
            )
        )


def _parts(levels: list[str]) -> tuple[str, str, Any]:
    if len(levels) >= 3:
        return levels[0], levels[1], levels[2]
    return levels[0], "", levels[-1]


SEQ_END = 1 << 63
"""Above every number."""
_RUNS_MAX = 1000


class SequenceGap(NamedTuple):
    """Numbers that have not arrived.

    Attributes:
        first, last: of the gap.
        restart: a run began after the gap; else its messages were lost on the way.
    """

    first: int
    last: int
    restart: bool


class SequenceTracker:
    """Track the sequence numbers of one device's messages in the order in which they arrive.

    Attributes:
        lost: number of messages lost on the way since the first that arrived.
    """

    def __init__(self) -> None:
        self._run, self.lost = 0, 0
        self._newest: dict[int, int] = {}  # number of the newest message by first_seq of its run

    def record(self, seq: int, first_seq: int) -> list[SequenceGap]:
        """Record a message. Return the gap before it, in two parts if a run began within it.

        A repeated or late message leaves no gap: numbers are sent in their order. Nor does the first message of a
        run that begins lower than the one before: what preceded it is not known.
        """
        run = first_seq if 0 < first_seq <= seq else self._run
        known = self._newest.get(run)
        if not (known or 0) < seq < SEQ_END:
            return []
        expected = (self._newest.get(self._run, 0) if known is None else known) + 1
        self._remember(run, seq)
        if expected == 1 or seq < expected:  # what preceded the first message is not known
            return []
        begins = first_seq if expected < first_seq <= seq else expected
        gaps = [SequenceGap(expected, begins - 1, True), SequenceGap(begins, seq - 1, False)]
        found = [gap for gap in gaps if gap.first <= gap.last]
        self.lost += sum(gap.last - gap.first + 1 for gap in found if not gap.restart)
        return found

    def _remember(self, run: int, seq: int) -> None:
        self._newest.pop(run, None)
        self._run, self._newest[run] = run, seq
        if len(self._newest) > _RUNS_MAX:
            del self._newest[next(iter(self._newest))]
