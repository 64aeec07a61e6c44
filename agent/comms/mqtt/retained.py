"""Queue of retained topics: only the newest payload of each is sent.

A message that is being written cannot be overtaken by an event. So large payloads, such as snapshots, are sent
one by one, when no event waits, and on a slow network for a part of the time only. One that would take long waits
for a smaller one in its place, unless it is urgent.
"""

from __future__ import annotations

import logging
import math
import threading
import time

from agent.comms.mqtt import reasons
from agent.comms.mqtt.connection import Connection, PubAck

log = logging.getLogger(__name__)

_LARGE = 8192
"""Payloads of retained topics above this size wait until the network has nothing better to do, bytes."""
_LARGE_PAUSE, _LARGE_PAUSE_MAX_S = 3.0, 30.0
"""Pause after a large payload, as a multiple of the time until its acknowledgement, and the longest, s: so they
take a quarter of a slow network, and an event seldom comes while one is being written."""
_QUICK_S, _UNQUICK_WAIT_S = 1.5, 30.0
"""Time that one large payload should take on a slow network, and how long one that would take longer waits, s."""
_FAST = 1e9
"""Rate of a network that is not known yet, bytes per second."""


class RetainedTopics:
    """Newest payload by topic. Each connection gets them all. Any thread may call `set…`, `repeat` and `all`."""

    def __init__(self, where: object) -> None:
        self._where = where
        self._lock = threading.Lock()
        self._payloads: dict[str, bytes] = {}
        self._due: dict[str, float] = {}  # with the time from which the topic waits
        self._urgent: set[str] = set()
        self._flight: dict[int, str] = {}
        self._large = 0  # number of the one large payload in flight; 0: there is none
        self._large_at = 0.0  # when it was sent; or when the next one may be sent
        self._large_size, self._rate = 0, _FAST
        self._complained: set[str] = set()

    def set(self, topic: str, payload: bytes, *, urgent: bool = True) -> bool:
        """Set a topic. Return True if its payload changes.

        A large payload that is not urgent waits for a slow network, and takes the place of no urgent one.
        """
        with self._lock:
            waits = topic in self._urgent and topic in self._due
            if self._payloads.get(topic) == payload or (waits and not urgent and len(payload) > _LARGE):
                return False
            (self._urgent.add if urgent else self._urgent.discard)(topic)
            self._payloads[topic] = payload
            self._due.setdefault(topic, time.monotonic())
            return True

    def set_if_new(self, topic: str, payload: bytes) -> bool:
        """Set a topic unless it is set. Return True if it was not."""
        with self._lock:
            if topic in self._payloads:
                return False
            self._payloads[topic] = payload
            self._due.setdefault(topic, time.monotonic())
            return True

    def repeat(self, topic: str) -> bool:
        """Send a topic again. Return False if it is not set."""
        with self._lock:
            if topic not in self._payloads:
                return False
            self._due.setdefault(topic, time.monotonic())
            return True

    def all(self) -> dict[str, bytes]:
        with self._lock:
            return dict(self._payloads)

    def restart(self) -> None:
        """Begin on a new connection: the broker may have lost everything."""
        with self._lock:
            self._flight.clear()
            self._large, self._large_at, self._rate = 0, 0.0, _FAST
            self._due = dict.fromkeys(self._payloads, time.monotonic())

    @property
    def in_flight(self) -> int:
        return len(self._flight)

    @property
    def is_waiting(self) -> bool:
        return bool(self._due)

    @property
    def large_bytes(self) -> int:
        """Bytes of the large payloads that wait."""
        with self._lock:
            sizes = [len(self._payloads[topic]) for topic in self._due]
        return sum(size for size in sizes if size > _LARGE)

    @property
    def quick_bytes(self) -> int:
        """Bytes that the network takes in 1.5 s, by the newest large payload. Any thread may read it."""
        rate, elapsed_s = self._rate, time.monotonic() - self._large_at
        if self._large and elapsed_s > _QUICK_S:
            rate = min(rate, self._large_size / elapsed_s)
        return round(rate * _QUICK_S)

    @property
    def wants_large(self) -> bool:
        """True if a large payload waits and may be sent."""
        with self._lock:
            return self._next_large() is not None

    def send(self, connection: Connection, room: int, *, set_by: float = math.inf) -> None:
        """Send at most `room` payloads that wait since `set_by` (monotonic clock), large ones not among them."""
        while room > 0 and (due := self._next(set_by)) is not None:
            self._publish(connection, *due)
            room -= 1

    def send_large(self, connection: Connection, *, set_by: float = math.inf) -> None:
        """Send the large payload that has waited for longest, unless one is in flight or was just now."""
        with self._lock:
            if (topic := self._next_large()) is None or self._due[topic] > set_by:
                return
            del self._due[topic]
            payload = self._payloads[topic]
        self._large_size, self._large_at = len(payload), time.monotonic()
        self._large = self._publish(connection, topic, payload)

    def _publish(self, connection: Connection, topic: str, payload: bytes) -> int:
        """Return the number of the message; 0: it cannot be sent."""
        try:
            if not connection.fits(topic, payload):
                raise ValueError(f"{len(payload)} bytes, the broker takes {connection.max_packet}")
            mid = connection.publish(topic, payload, qos=1, retain=True)
        except ValueError as error:
            self._complain(topic, f"cannot be sent: {error}")
            return 0
        self._flight[mid] = topic
        return mid

    def _next(self, set_by: float) -> tuple[str, bytes] | None:
        with self._lock:
            for topic, waits_from in self._due.items():
                payload = self._payloads[topic]
                if len(payload) <= _LARGE and waits_from <= set_by:
                    del self._due[topic]
                    return topic, payload
            return None

    def _next_large(self) -> str | None:
        """Return the topic of the large payload that may be sent now. Call it with the lock held."""
        if self._large:
            return None
        now_s, quick = time.monotonic(), self.quick_bytes
        large = {topic: size for topic in self._due if (size := len(self._payloads[topic])) > _LARGE}
        urgent = next((topic for topic in large if topic in self._urgent), None)
        if urgent is not None or now_s < self._large_at:
            return urgent
        may = (one for one, size in large.items() if size <= quick or now_s >= self._due[one] + _UNQUICK_WAIT_S)
        return next(may, None)

    def acknowledge(self, acknowledged: PubAck) -> bool:
        """Record an acknowledgement. Return True if it was for a retained topic."""
        topic = self._flight.pop(acknowledged.mid, None)
        if topic is None:
            return False
        if acknowledged.mid == self._large:
            self._end_large()
        if acknowledged.is_refusal:
            self._complain(topic, f"is refused: {reasons.in_words(acknowledged.code)}")
        else:
            self._complained.discard(topic)
            self._forget_deleted(topic)
        return True

    def _end_large(self) -> None:
        now_s = time.monotonic()
        took_s = now_s - self._large_at
        self._rate = self._large_size / max(1e-3, took_s)
        self._large, self._large_at = 0, now_s + min(_LARGE_PAUSE_MAX_S, _LARGE_PAUSE * took_s)

    def _forget_deleted(self, topic: str) -> None:
        """Forget a topic that the broker has deleted, so that it is not deleted again on each connection."""
        with self._lock:
            is_sent_again = topic in self._due or topic in self._flight.values()
            if not is_sent_again and self._payloads.get(topic) == b"":
                del self._payloads[topic]

    def _complain(self, topic: str, what: str) -> None:
        """Log it once. The topic is tried again when its payload changes, or on the next connection."""
        if topic not in self._complained:
            self._complained.add(topic)
            log.warning("broker %s: retained %s %s", self._where, topic, what)
