"""Events on their way: taken in order, sent at QoS 1, settled when they are acknowledged.

Order is kept per device: after a lost connection everything that was not acknowledged is sent again, oldest
first. Events of a topic that the broker refuses wait, those of other topics go on; from time to time the oldest
of them alone tries whether the refusal lasts, so that none overtakes it. (Of several that were on their way when
the broker began to refuse, it may have taken the later ones.)
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Protocol

import msgspec

from agent.backoff import Backoff
from agent.comms.messages import complete_spooled
from agent.comms.mqtt import reasons
from agent.comms.mqtt.connection import Connection, PubAck
from agent.types import Stored

# Where the events come from: whatever keeps them until they are acknowledged. The spool does.


class EventSource(Protocol):
    """Events in the order of their numbers."""

    def peek(self, after_seq: int, limit: int) -> list[Stored]:
        """The first events above a number that are not settled, at most `limit`."""
        ...

    def settle(self, seqs: Iterable[int]) -> None:
        """Forget events: they have been acknowledged."""
        ...

    def drop(self, seq: int) -> None:
        """Forget an event that can never be sent."""
        ...

    def on_stored(self, hook: Callable[[], None] | None) -> None:
        """Call `hook` from any thread whenever there is more to peek, in place of the one before."""
        ...


log = logging.getLogger(__name__)

_AHEAD = 256
"""Events read at once."""
_SCAN = 2000
"""Events looked at in one go for one that can be sent: the network must not wait for a search."""
_RETRY_FIRST_S = 1.0
_LOOK_S = 60.0
"""Between two looks for older events: after an outage of the disk they come back late."""


class _Hold:
    """A topic that the broker refuses.

    Attributes:
        since, until: from its first refusal to the next attempt, s of the monotonic clock; `until` is 0 when
            an attempt is due.
        trying: the event of that attempt is on its way.
    """

    def __init__(self, max_s: float) -> None:
        self.backoff, self.since = Backoff(_RETRY_FIRST_S, max_s), time.monotonic()
        self.until, self.trying = 0.0, False

    @property
    def lets_through(self) -> bool:
        """Return True if an event may be sent to see if the refusal lasts."""
        return not self.until and not self.trying


class EventSender:
    """The flow of events over one connection after another. Used by one thread, save for `more`.

    Attributes:
        sent, acknowledged: counts since the start.
    """

    def __init__(self, outgoing: EventSource, where: object, retry_max_s: float) -> None:
        """Take events from a source.

        Args:
            outgoing: the source.
            where: the broker, for messages.
            retry_max_s: longest pause before a refused topic is tried again, s.
        """
        self._outgoing, self._where, self._retry_max_s = outgoing, where, retry_max_s
        self.sent = self.acknowledged = 0
        self._flight: dict[int, Stored] = {}
        self._flying: set[int] = set()
        self._settled: list[int] = []
        self._holds: dict[str, _Hold] = {}
        self.restart()

    def restart(self) -> None:
        """Begin on a new connection: everything that has not been acknowledged is sent again."""
        self._flight.clear()
        self._flying.clear()
        for hold in self._holds.values():
            hold.trying = False
        self._rewind()

    def _rewind(self) -> None:
        self.settle()  # what is done with must not be found again
        self._ahead: deque[Stored] = deque()
        self._after, self._more = 0, True
        self._look_at = time.monotonic() + _LOOK_S

    def more(self) -> None:
        """There is more to peek. May be called from any thread."""
        self._more = True

    @property
    def in_flight(self) -> int:
        """Events sent and not acknowledged."""
        return len(self._flight)

    @property
    def is_waiting(self) -> bool:
        """Return True if an event could be sent now, or there may be one to read."""
        return bool(self._ahead) or self._more

    def retry_in(self) -> float:
        """Seconds until a refused topic is tried again."""
        now = time.monotonic()
        waits = (hold.until - now for hold in self._holds.values() if hold.until)
        return max(0.0, min(waits, default=_LOOK_S))

    def send(self, connection: Connection, room: int) -> None:
        """Send at most `room` events."""
        self._look_again()
        while room > 0 and (stored := self._next()) is not None:
            try:
                body = complete_spooled(stored)
                if not connection.fits(stored.topic, body):
                    raise ValueError(f"{len(body)} bytes, the broker takes {connection.max_packet}")
                mid = connection.publish(stored.topic, body, qos=1, kind="event")
            except (msgspec.MsgspecError, ValueError, RecursionError) as error:
                # It can never be sent; kept, it would stand in the way for ever.
                log.error("event %d on %s cannot be sent and is dropped: %s", stored.seq, stored.topic, error)
                self._outgoing.drop(stored.seq)
                continue
            self._flight[mid] = stored
            self._flying.add(stored.seq)
            if self._holds and (hold := self._holds.get(stored.topic)) is not None:
                hold.trying = True
            self.sent += 1
            room -= 1

    def _look_again(self) -> None:
        now = time.monotonic()
        due = [hold for hold in self._holds.values() if 0 < hold.until <= now]
        for hold in due:
            hold.until = 0.0
        if due or (not self._flight and now >= self._look_at):
            self._rewind()

    def _next(self) -> Stored | None:
        """The next event that may be sent, if there is one."""
        for _ in range(_SCAN):
            if not self._ahead and not self._read():
                return None
            stored = self._ahead.popleft()
            hold = self._holds.get(stored.topic)
            if stored.seq not in self._flying and (hold is None or hold.lets_through):
                return stored
        return None

    def _read(self) -> bool:
        if not self._more:
            return False
        self._more = False  # before the look: what comes during it sets it again
        rows = self._outgoing.peek(self._after, _AHEAD)
        if len(rows) == _AHEAD:
            self._more = True
        if rows:
            self._after = rows[-1].seq
            self._ahead.extend(rows)
        return bool(rows)

    def acknowledge(self, acknowledged: PubAck) -> bool:
        """Record an acknowledgement. Return True if it was for an event."""
        stored = self._flight.pop(acknowledged.mid, None)
        if stored is None:
            return False
        self._flying.discard(stored.seq)
        if acknowledged.is_refusal:
            self._refused(stored.topic, acknowledged.code)
            return True
        self._settled.append(stored.seq)
        self.acknowledged += 1
        if self._holds and (hold := self._holds.pop(stored.topic, None)) is not None:
            self._rewind()  # those that waited lie behind
            seconds = time.monotonic() - hold.since
            log.info("broker %s takes %s again after %.0f s", self._where, stored.topic, seconds)
        return True

    def _refused(self, topic: str, code: int) -> None:
        hold = self._holds.get(topic)
        if hold is None:
            hold = self._holds[topic] = _Hold(self._retry_max_s)
            log.warning(
                "broker %s refuses %s: %s; its events are kept and tried again",
                self._where,
                topic,
                reasons.in_words(code),
            )
        hold.trying = False
        if not hold.until:  # all that were in flight together are one refusal
            hold.until = time.monotonic() + hold.backoff.next_s()

    def settle(self) -> None:
        """Hand the acknowledged ones on, all at once."""
        if self._settled:
            settled, self._settled = self._settled, []
            self._outgoing.settle(settled)


# Answers to requests: sent at once at QoS 0 to whoever waits for them, or dropped with the connection.

_KEPT = 64


class ReplyQueue:
    """A short queue. `put` is for any thread, the rest for that of the line."""

    def __init__(self) -> None:
        self._queue: deque[tuple[str, bytes, bytes]] = deque(maxlen=_KEPT)

    def put(self, topic: str, payload: bytes, correlation: bytes) -> None:
        """Take one; of too many, the oldest goes."""
        self._queue.append((topic, payload, correlation))

    def restart(self) -> None:
        """Begin on a new connection: who asked on the last one waits no more."""
        self._queue.clear()

    def send(self, connection: Connection) -> None:
        """Send what waits, unless the network has not taken yet what came before."""
        while self._queue and not connection.is_clogged:
            topic, payload, correlation = self._queue.popleft()
            try:
                if not connection.fits(topic, payload + correlation):
                    raise ValueError(f"{len(payload)} bytes, the broker takes {connection.max_packet}")
                connection.answer(topic, payload, correlation)
            except ValueError as error:
                log.warning("an answer to %.100r cannot be sent: %s", topic, error)


# Messages that are worth something only now: sent once at QoS 0, or dropped.

_SAMPLES_KEPT = 64
"""While the network is slow; of more, the oldest go."""


class TransientQueue:
    """A short queue.

    Attributes:
        dropped: how many were not sent.
    """

    def __init__(self) -> None:
        self.dropped = 0
        self._lock = threading.Lock()
        self._queue: deque[tuple[str, bytes]] = deque()

    def put(self, topic: str, payload: bytes) -> None:
        """Take one. May be called from any thread."""
        with self._lock:
            if len(self._queue) >= _SAMPLES_KEPT:
                self._queue.popleft()
                self.dropped += 1
            self._queue.append((topic, payload))

    def drop(self, count: int = 0) -> None:
        """Count those that were not taken, and drop those that wait."""
        with self._lock:
            self.dropped += count + len(self._queue)
            self._queue.clear()

    def send(self, connection: Connection) -> None:
        """Send what waits, unless the network has not taken yet what came before."""
        while self._queue and not connection.is_clogged:
            with self._lock:
                waiting = list(self._queue)
                self._queue.clear()
            for topic, payload in waiting:
                try:
                    if not connection.fits(topic, payload):
                        raise ValueError
                    connection.publish(topic, payload, qos=0, kind="sample")
                except ValueError:
                    self.drop(1)


# Retained topics: only the newest payload of each counts, and a new connection gets them all.


class RetainedTopics:
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
        """Return True if there are payloads to send."""
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

    def acknowledge(self, acknowledged: PubAck) -> bool:
        """Record an acknowledgement. Return True if it was for a retained topic."""
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
