"""Queues of what is published: events at QoS 1, retained topics, and messages that are of use only now.

On a slow network events go first. A message that is being written cannot be overtaken: so samples are handed on
a few at a time, and large payloads, such as snapshots, one by one, when no event waits, and for a part of the
time only.

Events are sent in the order of their numbers, and settled when the broker has acknowledged them. After a lost
connection all that are not acknowledged are sent again, oldest first. Events of a topic that the broker refuses
wait, and those of other topics continue. From time to time the oldest of them alone tests whether the refusal
lasts, so that none overtakes it. (Of several that were in flight when the broker began to refuse, it may have
accepted the later ones.)
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Protocol

import msgspec

from agent import spans
from agent.comms.messages import complete_spooled
from agent.comms.mqtt.connection import Connection, PubAck
from agent.comms.mqtt.endpoint import in_words
from agent.types import Stored

log = logging.getLogger(__name__)


class EventSource(Protocol):
    """Store of events, in the order of their numbers, until they are acknowledged. The spool is one."""

    def peek(self, after_seq: int, limit: int) -> list[Stored]:
        """Return the first events above a number that are not settled, at most `limit`."""
        ...

    def settle(self, seqs: Iterable[int]) -> None:
        """Delete events that have been acknowledged."""
        ...

    def drop(self, seq: int) -> None:
        """Delete an event that can never be sent."""
        ...

    def on_stored(self, hook: Callable[[], None] | None) -> None:
        """Call `hook`, in place of the one before, from any thread whenever there is more to peek."""
        ...


_AHEAD = 256
"""Events read at once."""
_SCAN = 2000
"""Events searched at once for one that can be sent: the network must not wait for a search."""
_REREAD_S = 60.0
"""Interval at which older events are searched for: after a failure of the disk they come back late."""

OnSent = Callable[[str, float], None]
"""Called with the topic of an event, and how long it has waited in the source, s; it must be quick."""


class EventSender:
    """Sends events over one connection after another. For one thread, except `more`.

    Attributes:
        sent, acknowledged: counts since the start.
        retry_s: pause before a refused topic is tried again, s.
        on_sent: see `OnSent`; None: nobody wants to know.
    """

    def __init__(self, source: EventSource, where: object, retry_s: float) -> None:
        self._source, self._where, self.retry_s = source, where, retry_s
        self.sent = self.acknowledged = 0
        self.on_sent: OnSent | None = None
        self._began = time.monotonic()
        self._flight: dict[int, tuple[Stored, float]] = {}  # with the time of sending
        self._flying: set[int] = set()
        self._settled: list[int] = []
        # Topics that the broker refuses, with the time of the next attempt; 0: now, infinite: it is in flight.
        self._holds: dict[str, float] = {}
        self.restart()

    def restart(self) -> None:
        """Begin on a new connection: send again everything that has not been acknowledged."""
        self._flight.clear()
        self._flying.clear()
        self._holds = dict.fromkeys(self._holds, 0.0)
        self._rewind()

    def _rewind(self) -> None:
        self.settle()  # or settled events would be read again
        self._ahead: deque[Stored] = deque()
        self._after, self._more = 0, True
        self._reread_at = time.monotonic() + _REREAD_S

    def more(self) -> None:
        """Record that there is more to peek. May be called from any thread."""
        self._more = True

    @property
    def in_flight(self) -> int:
        return len(self._flight)

    @property
    def oldest_s(self) -> float:
        """Age of the oldest event in flight, s; 0: there is none. Any thread may read it."""
        now = time.monotonic()
        return max((now - sent_at for _, sent_at in list(self._flight.values())), default=0.0)

    @property
    def is_waiting(self) -> bool:
        """True if an event could be sent now, or there may be one to read."""
        return bool(self._ahead) or self._more

    @property
    def has_unsettled(self) -> bool:
        """True if the source holds an event that is not settled."""
        return bool(self._source.peek(0, 1))

    def retry_in(self) -> float:
        """Return the time until a refused topic is tried again, s."""
        now = time.monotonic()
        return max(0.0, min((until - now for until in self._holds.values() if until), default=_REREAD_S))

    def send(self, connection: Connection, room: int) -> None:
        """Send at most `room` events."""
        self._rewind_if_due()
        while room > 0 and (stored := self._next()) is not None:
            try:
                body = complete_spooled(stored)
                connection.check_size(stored.topic, body)
                with spans.span("send"):
                    mid = connection.publish(stored.topic, body, qos=1, kind="event")
            except (msgspec.MsgspecError, ValueError, RecursionError) as error:
                # It can never be sent, and would block all that follow.
                log.error("event %d on %s cannot be sent and is dropped: %s", stored.seq, stored.topic, error)
                self._source.drop(stored.seq)
                continue
            self._flight[mid] = stored, time.monotonic()
            self._flying.add(stored.seq)
            if stored.topic in self._holds:
                self._holds[stored.topic] = math.inf
            self.sent += 1
            room -= 1
            # Unless it began to wait before this run, or the clock was set since.
            waited_s = time.time() - stored.put_at
            if self.on_sent is not None and 0.0 <= waited_s <= time.monotonic() - self._began:
                self.on_sent(stored.topic, waited_s)

    def _rewind_if_due(self) -> None:
        now = time.monotonic()
        due = [topic for topic, until in self._holds.items() if 0 < until <= now]
        for topic in due:
            self._holds[topic] = 0.0
        if due or (not self._flight and now >= self._reread_at):
            self._rewind()

    def _next(self) -> Stored | None:
        """Return the next event that may be sent, if there is one."""
        for _ in range(_SCAN):
            if not self._ahead and not self._read():
                return None
            stored = self._ahead.popleft()
            if stored.seq not in self._flying and not self._holds.get(stored.topic):
                return stored
        return None

    def _read(self) -> bool:
        if not self._more:
            return False
        self._more = False  # before reading: an event that is stored meanwhile sets it again
        rows = self._source.peek(self._after, _AHEAD)
        if len(rows) == _AHEAD:
            self._more = True
        if rows:
            self._after = rows[-1].seq
            self._ahead.extend(rows)
        return bool(rows)

    def acknowledge(self, acknowledged: PubAck) -> bool:
        """Record an acknowledgement. Return True if it was for an event."""
        stored, _ = self._flight.pop(acknowledged.mid, (None, 0.0))
        if stored is None:
            return False
        self._flying.discard(stored.seq)
        if acknowledged.is_refusal:
            if stored.topic not in self._holds:
                text = "broker %s refuses %s: %s; its events wait in the spool"
                log.warning(text, self._where, stored.topic, in_words(acknowledged.code))
            self._holds[stored.topic] = time.monotonic() + self.retry_s
            return True
        self._settled.append(stored.seq)
        self.acknowledged += 1
        if self._holds.pop(stored.topic, None) is not None:
            self._rewind()  # the events that waited have lower numbers
            log.info("broker %s accepts %s again", self._where, stored.topic)
        return True

    def settle(self) -> None:
        if self._settled:
            settled, self._settled = self._settled, []
            self._source.settle(settled)


_KEPT = 64
"""Samples, and replies, that wait while the network is slow; of more, the oldest are dropped."""
_SAMPLE_AGE_S = 1.0
"""Age from which a sample is dropped instead of sent: it is of use only now."""


class TransientQueue:
    """Samples and replies to requests: sent once at QoS 0, or dropped. Any thread may add.

    Attributes:
        dropped: samples that were not sent.
        bytes: of the samples that wait.
    """

    def __init__(self) -> None:
        self.dropped = self.bytes = 0
        self._lock = threading.Lock()
        self._samples: deque[tuple[float, str, bytes]] = deque()
        self._replies: deque[tuple[str, bytes, bytes]] = deque(maxlen=_KEPT)

    def put(self, topic: str, payload: bytes) -> None:
        with self._lock:
            if len(self._samples) >= _KEPT:
                self._pop()
                self.dropped += 1
            self._samples.append((time.monotonic(), topic, payload))
            self.bytes += len(payload)

    def _pop(self) -> tuple[float, str, bytes]:
        sample = self._samples.popleft()
        self.bytes -= len(sample[2])
        return sample

    def reply(self, topic: str, payload: bytes, correlation: bytes) -> None:
        self._replies.append((topic, payload, correlation))

    def restart(self) -> None:
        """Begin on a new connection: drop the replies to requests of the last one."""
        self._replies.clear()

    def drop(self, count: int = 0) -> None:
        """Drop the waiting samples, and count them and `count` others."""
        with self._lock:
            self.dropped += count + len(self._samples)
            self._samples.clear()
            self.bytes = 0

    @property
    def is_waiting(self) -> bool:
        return bool(self._samples or self._replies)

    def send(self, connection: Connection, room: int) -> None:
        """Send all replies, and then samples, about `room` bytes; what has waited for too long is dropped."""
        while self._replies:
            topic, payload, correlation = self._replies.popleft()
            try:
                connection.check_size(topic, payload + correlation)
                connection.answer(topic, payload, correlation)
            except ValueError as error:
                log.warning("the reply on %.100r cannot be sent: %s", topic, error)
        while room > 0 and (sample := self._next()) is not None:
            room -= len(sample[1])
            try:
                connection.check_size(*sample)
                connection.publish(*sample, qos=0, kind="sample")
            except ValueError:
                with self._lock:
                    self.dropped += 1

    def _next(self) -> tuple[str, bytes] | None:
        with self._lock:
            while self._samples:
                at_s, topic, payload = self._pop()
                if time.monotonic() - at_s <= _SAMPLE_AGE_S:
                    return topic, payload
                self.dropped += 1
        return None


_LARGE = 8192
"""Payloads of retained topics above this size wait until the network has nothing better to do, bytes."""
_LARGE_PAUSE, _LARGE_PAUSE_MAX_S = 3.0, 30.0
"""Pause after a large payload, as a multiple of the time until its acknowledgement, and the longest, s: so they
take a quarter of a slow network, and an event seldom comes while one is being written."""


class RetainedTopics:
    """Newest payload by topic. Each connection gets them all. Any thread may call `set…`, `repeat` and `all`."""

    def __init__(self, where: object) -> None:
        self._where = where
        self._lock = threading.Lock()
        self._payloads: dict[str, bytes] = {}
        self._due: dict[str, None] = {}  # topics that wait, in their order
        self._flight: dict[int, str] = {}
        self._large = 0  # number of the one large payload in flight; 0: there is none
        self._large_at = 0.0  # when it was sent; or when the next one may be sent
        self._complained: set[str] = set()

    def set(self, topic: str, payload: bytes) -> bool:
        """Set a topic. Return True if its payload changes."""
        with self._lock:
            if self._payloads.get(topic) == payload:
                return False
            self._payloads[topic] = payload
            self._due[topic] = None
            return True

    def set_if_new(self, topic: str, payload: bytes) -> bool:
        """Set a topic unless it is set. Return True if it was not."""
        with self._lock:
            is_new = topic not in self._payloads
            if is_new:
                self._payloads[topic], self._due[topic] = payload, None
            return is_new

    def repeat(self, topic: str) -> bool:
        """Send a topic again. Return False if it is not set."""
        with self._lock:
            is_set = topic in self._payloads
            if is_set:
                self._due[topic] = None
            return is_set

    def all(self) -> dict[str, bytes]:
        with self._lock:
            return dict(self._payloads)

    def restart(self) -> None:
        """Begin on a new connection: the broker may have lost everything."""
        with self._lock:
            self._flight.clear()
            self._large, self._large_at = 0, 0.0
            self._due = dict.fromkeys(self._payloads)

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
    def wants_large(self) -> bool:
        """True if a large payload waits and may be sent."""
        with self._lock:
            return self._next_large() is not None

    def send(self, connection: Connection, room: int) -> None:
        """Send at most `room` payloads, large ones not among them."""
        while room > 0 and (due := self._next()) is not None:
            self._publish(connection, *due)
            room -= 1

    def send_large(self, connection: Connection) -> None:
        """Send the large payload that has waited for longest, unless one is in flight or was just now."""
        with self._lock:
            if (topic := self._next_large()) is None:
                return
            del self._due[topic]
            payload = self._payloads[topic]
        self._large_at = time.monotonic()
        self._large = self._publish(connection, topic, payload)

    def _publish(self, connection: Connection, topic: str, payload: bytes) -> int:
        """Return the number of the message; 0: it cannot be sent."""
        try:
            connection.check_size(topic, payload)
            mid = connection.publish(topic, payload, qos=1, retain=True)
        except ValueError as error:
            self._complain(topic, f"cannot be sent: {error}")
            return 0
        self._flight[mid] = topic
        return mid

    def _next(self) -> tuple[str, bytes] | None:
        with self._lock:
            for topic in self._due:
                payload = self._payloads[topic]
                if len(payload) <= _LARGE:
                    del self._due[topic]
                    return topic, payload
            return None

    def _next_large(self) -> str | None:
        """Return the topic of the large payload that may be sent now. Call it with the lock held."""
        if self._large or time.monotonic() < self._large_at:
            return None
        return next((topic for topic in self._due if len(self._payloads[topic]) > _LARGE), None)

    def acknowledge(self, acknowledged: PubAck) -> bool:
        """Record an acknowledgement. Return True if it was for a retained topic."""
        topic = self._flight.pop(acknowledged.mid, None)
        if topic is None:
            return False
        if acknowledged.mid == self._large:
            now_s = time.monotonic()
            pause_s = min(_LARGE_PAUSE_MAX_S, _LARGE_PAUSE * (now_s - self._large_at))
            self._large, self._large_at = 0, now_s + pause_s
        if acknowledged.is_refusal:
            self._complain(topic, f"is refused: {in_words(acknowledged.code)}")
        else:
            self._complained.discard(topic)
            self._forget_deleted(topic)
        return True

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
