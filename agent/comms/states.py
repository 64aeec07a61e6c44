"""Retained topics: only the newest payload of each counts, and a new connection gets them all."""

from __future__ import annotations

import logging
import threading

from agent.comms import reasons
from agent.comms.connection import Acknowledged, Connection

log = logging.getLogger(__name__)


class States:
    """Payload by topic, and which of them the broker does not have yet. `set` and `all` are for any thread."""

    def __init__(self, where: object) -> None:
        """Start empty.

        Args:
            where: the broker, for messages.
        """
        self._where = where
        self._lock = threading.Lock()
        self._payloads: dict[str, bytes] = {}
        self._due: dict[str, None] = {}
        self._flight: dict[int, str] = {}
        self._complained: set[str] = set()

    def set(self, topic: str, payload: bytes) -> bool:
        """Set a topic; whether that is news."""
        with self._lock:
            if self._payloads.get(topic) == payload:
                return False
            self._payloads[topic] = payload
            self._due[topic] = None
            return True

    def set_if_new(self, topic: str, payload: bytes) -> bool:
        """Set a topic that nobody has set; whether that was so."""
        with self._lock:
            if topic in self._payloads:
                return False
            self._payloads[topic] = payload
            self._due[topic] = None
            return True

    def repeat(self, topic: str) -> bool:
        """Have a topic sent again; whether anybody has set it."""
        with self._lock:
            if topic not in self._payloads:
                return False
            self._due[topic] = None
            return True

    def payload(self, topic: str) -> bytes | None:
        """What a topic is set to; None: nobody has set it."""
        with self._lock:
            return self._payloads.get(topic)

    def is_under_way(self, topic: str) -> bool:
        """Whether a topic waits to be sent, or to be acknowledged. For the thread that sends."""
        with self._lock:
            return topic in self._due or topic in self._flight.values()

    def all(self) -> dict[str, bytes]:
        """Every topic with its payload."""
        with self._lock:
            return dict(self._payloads)

    def restart(self) -> None:
        """Begin on a new connection: the broker may have lost everything."""
        with self._lock:
            self._flight.clear()
            self._due = dict.fromkeys(self._payloads)

    @property
    def in_flight(self) -> int:
        """Payloads sent and not acknowledged."""
        return len(self._flight)

    @property
    def is_waiting(self) -> bool:
        """Whether there is something to send."""
        return bool(self._due)

    def send(self, connection: Connection, room: int) -> None:
        """Send at most `room` payloads."""
        while room > 0 and (taken := self._take()) is not None:
            topic, payload = taken
            try:
                if not connection.fits(topic, payload):
                    raise ValueError(f"{len(payload)} bytes, the broker takes {connection.max_packet}")
                self._flight[connection.publish(topic, payload, qos=1, retain=True)] = topic
            except ValueError as error:
                self._complain(topic, f"cannot be sent: {error}")
            room -= 1

    def _take(self) -> tuple[str, bytes] | None:
        with self._lock:
            for topic in self._due:
                del self._due[topic]
                return topic, self._payloads[topic]
            return None

    def take(self, acknowledged: Acknowledged) -> bool:
        """Take note of an acknowledgement; whether it was about a retained topic."""
        topic = self._flight.pop(acknowledged.mid, None)
        if topic is None:
            return False
        if acknowledged.is_refusal:
            self._complain(topic, f"is refused: {reasons.in_words(acknowledged.code)}")
        else:
            self._complained.discard(topic)
            self._forget_deleted(topic)
        return True

    def _forget_deleted(self, topic: str) -> None:
        """An empty payload has deleted a topic at the broker: it is not deleted again on each connection."""
        with self._lock:
            under_way = topic in self._due or topic in self._flight.values()
            if not under_way and self._payloads.get(topic) == b"":
                del self._payloads[topic]

    def _complain(self, topic: str, what: str) -> None:
        """Say it once. The topic is tried again when its payload changes, or on the next connection."""
        if topic not in self._complained:
            self._complained.add(topic)
            log.warning("broker %s: retained %s %s", self._where, topic, what)
