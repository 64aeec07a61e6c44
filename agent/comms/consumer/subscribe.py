"""The other end of the line: what a consumer of detections sees. Used by `vedette watch` and `vedette demo`."""

from __future__ import annotations

import queue
import time
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import msgspec
import paho.mqtt.client as mqtt
from msgspec import Struct

from agent.comms.consumer.client import BrokerOptions, ConsumerClient
from agent.comms.messages import EventMessage, HealthMessage
from agent.errors import NO_JSON

Kind = Literal["status", "health", "events", "detections", "clips", "snapshot", "count"]

_START_S = 20.0


class Numbered(Struct, frozen=True):
    """Read the numbers of a message that went through the spool; a detection's number is `spool_seq`."""

    seq: int = 0
    spool_seq: int = 0
    first_seq: int = 0


_events = msgspec.json.Decoder(EventMessage)
_numbered = msgspec.json.Decoder(Numbered)
_health = msgspec.json.Decoder(HealthMessage)


class ReceivedMessage(Struct, frozen=True):
    """One message from a device.

    Attributes:
        topic: as received.
        device: its name.
        stream: empty for the device's own topics.
        kind: what it is.
        payload: as received.
        received_ns: CLOCK_MONOTONIC, ns.
        retained: whether it is the broker's memory and not news.
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
        if self.kind != "events":
            return None
        try:  # earlier versions publish a keyword as `heard`
            return _events.decode(self.payload.replace(b'"kind":"heard"', b'"kind":"keyword"', 1))
        except NO_JSON:
            return None

    def numbers(self) -> tuple[int, int] | None:
        """Its number and what the run began with that gave it, 0: not known; None: it has no number."""
        if self.kind not in ("events", "clips", "detections"):
            return None
        try:
            told = _numbered.decode(self.payload)
        except NO_JSON:
            return None
        seq = told.spool_seq if self.kind == "detections" else told.seq
        return (seq, told.first_seq) if seq else None

    def health(self) -> HealthMessage | None:
        """How the device is, or None when this is not what this version can read."""
        try:
            return _health.decode(self.payload) if self.kind == "health" else None
        except NO_JSON:
            return None


class Subscriber:
    """Subscribes to every topic of one device or of all. Reconnects by itself."""

    def __init__(self, access: BrokerOptions, *, prefix: str = "vedette", device: str = "+") -> None:
        """Prepare; `start` connects.

        Raises:
            BrokerError: a certificate or a key cannot be used.
        """
        self._prefix, self._device = prefix, device
        self._received: queue.SimpleQueue[ReceivedMessage] = queue.SimpleQueue()
        self._guest = ConsumerClient(access, "3.1.1", stays=True, let_in=self._subscribe)
        self._guest.client.on_message = self._message

    def start(self, timeout_s: float = _START_S) -> None:
        """Connect and subscribe.

        Args:
            timeout_s: at most.

        Raises:
            BrokerError: nobody listens there, or the broker refuses us.
        """
        self._guest.connect(timeout_s)

    def messages(self, until: float | None = None) -> Iterator[ReceivedMessage | None]:
        """Messages as they come; None about four times a second when there are none.

        Args:
            until: CLOCK_MONOTONIC at which to end, s; None: never.
        """
        while until is None or time.monotonic() < until:
            try:
                yield self._received.get(timeout=0.25)
            except queue.Empty:
                yield None

    def stop(self) -> None:
        """Disconnect."""
        self._guest.disconnect()

    def _subscribe(self) -> None:
        self._guest.client.subscribe(f"{self._prefix}/{self._device}/#", qos=1)

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


# The numbers of one device's messages: which of them have not come, and which were never given out.
#
# A daemon that was cut off begins its next run above every number that it may have given out, and tells with each
# message what number its run began with. So a gap before that number is no loss on the way: what lies in it was
# never given out, or lay in the device's memory only. See `agent.storage.spool.disk`.
#
# A device with a new card begins at its clock, above all that it had before, unless the clock is wrong. So a run
# that was not heard of yet and begins lower is such a one, and what comes is counted from there.

LARGEST = 1 << 63
"""No number is."""
_MOST = 1000
"""Runs that are known, the newest."""


class SequenceGap(NamedTuple):
    """Numbers that have not come.

    Attributes:
        first, last: of them.
        restart: whether the device began anew behind them; else they were lost on the way.
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
        self._newest: dict[int, int] = {}  # by what a run began with

    def take(self, seq: int, first_seq: int) -> list[SequenceGap]:
        """Take note of a message; gives the gap before it, in two parts where it is of two kinds.

        What comes again, or late, is no news: numbers are sent in their order. A run that begins lower than what
        there was leaves no gap: what was before its first message is not known.

        Args:
            seq: its number.
            first_seq: what its run began with; 0: not known.
        """
        run = first_seq if 0 < first_seq <= seq else self._run
        known = self._newest.get(run)
        if not (known or 0) < seq < LARGEST:
            return []
        expected = (self._newest.get(self._run, 0) if known is None else known) + 1
        self._note(run, seq)
        if expected == 1 or seq < expected:  # nobody knows what was before the first one
            return []
        begins = first_seq if expected < first_seq <= seq else expected
        gaps = [SequenceGap(expected, begins - 1, True), SequenceGap(begins, seq - 1, False)]
        found = [gap for gap in gaps if gap.first <= gap.last]
        self.lost += sum(gap.last - gap.first + 1 for gap in found if not gap.restart)
        return found

    def _note(self, run: int, seq: int) -> None:
        self._newest.pop(run, None)
        self._run, self._newest[run] = run, seq
        if len(self._newest) > _MOST:
            del self._newest[next(iter(self._newest))]
