"""Receives from the broker, over one connection after another: messages for handlers, and retained topics.

Handlers are called in the connection's thread, so they must return quickly. Neither payloads that are too large
reach them nor more messages than they can process: a flood is cut off at the broker, and events continue.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Literal

from agent.comms.commands import quoted
from agent.comms.mqtt import reasons
from agent.comms.mqtt.connection import Connection
from agent.comms.mqtt.paho_client import IncomingMessage, OnMessage, Subscriptions
from agent.comms.mqtt.retained import RetainedTopics
from agent.comms.topics import Topics
from agent.config import StreamConfig

log = logging.getLogger(__name__)

PER_S, BURST = 20.0, 200
"""Messages that are accepted: each second in the long run, and at once."""
SHUT_AFTER, SHUT_S = 1000, 2.0
"""Messages dropped in one flood before the subscription is ended for some seconds, again and again: even dropping
them costs time."""

Admission = Literal["take", "drop", "shut"]


class RateLimiter:
    """A token bucket that asks for an end of the subscription during a flood.

    Attributes:
        dropped: messages of the flood that is going on; 0: there is none.
    """

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, *, per_s: float = PER_S, burst: int = BURST
    ) -> None:
        self._clock, self._per_s, self._burst = clock, per_s, float(burst)
        self._tokens, self._at = self._burst, clock()
        self._by_topic: dict[str, int] = {}
        self._until = self._dropped_at = 0.0
        self.dropped = 0

    def allow(self, topic: str = "") -> Admission:
        """Decide on a message that arrives now; `shut`: drop it, and unsubscribe for `SHUT_S`.

        One topic gets at most half of the bucket, so that a flood of it leaves room for the others.
        """
        self._fill()
        taken = self._by_topic.get(topic, 0)
        if self._tokens >= 1.0 and (not topic or taken < self._burst / 2):
            self._tokens -= 1.0
            self._by_topic[topic] = taken + 1
            return "take"
        self.dropped += 1
        self._dropped_at = self._at
        if self.dropped < SHUT_AFTER or self.is_shut:
            return "drop"
        self._until = self._dropped_at = self._at + SHUT_S
        return "shut"

    def _fill(self) -> None:
        now = self._clock()
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._per_s)
        self._at = now
        if self._tokens >= self._burst or len(self._by_topic) > self._burst:
            self._by_topic.clear()

    @property
    def is_shut(self) -> bool:
        return self._clock() < self._until

    def end_flood(self) -> int:
        """Return how many messages were dropped if a flood has ended since the last call; else 0."""
        if self._clock() - self._dropped_at < self._burst / self._per_s:
            return 0
        dropped, self.dropped = self.dropped, 0
        return dropped


LARGEST = 16 * 1024
"""Maximum payload that is passed to a handler, bytes."""


class _Handler:
    """The handler of one pattern."""

    def __init__(self, pattern: str, on_message: OnMessage, as_published: bool, where: object) -> None:
        self.pattern, self._on_message, self._as_published, self._where = pattern, on_message, as_published, where
        self._limiter = RateLimiter()
        self.is_subscribed = False
        self._refusal_logged = self._size_logged = False

    def subscribe(self, connection: Connection) -> None:
        self.is_subscribed = True
        connection.subscriptions.add(
            self.pattern,
            lambda received: self._receive(connection, received),
            self._on_subscribed,
            qos=1,
            as_published=self._as_published,
        )

    def _on_subscribed(self, code: int) -> None:
        if code < 0x80:
            self._refusal_logged = False
        elif not self._refusal_logged:
            self._refusal_logged = True
            log.warning(
                "broker %s refuses the subscription to %s: %s; what is sent there does not arrive",
                self._where,
                self.pattern,
                reasons.in_words(code),
            )

    def _receive(self, connection: Connection, received: IncomingMessage) -> None:
        verdict = self._limiter.allow(received.topic)
        if verdict == "take":
            self._process(received)
            return
        if self._limiter.dropped == 1:
            log.warning("%s: too many messages; some are dropped", self.pattern)
        if verdict == "shut":
            self.is_subscribed = False
            connection.subscriptions.remove(self.pattern)
            if self._limiter.dropped == SHUT_AFTER:
                log.warning("%s: flooded; unsubscribed for %.0f s at a time", self.pattern, SHUT_S)

    def _process(self, received: IncomingMessage) -> None:
        if len(received.payload) > LARGEST:
            if not self._size_logged:
                self._size_logged = True
                size = len(received.payload)
                log.warning("%.100r: dropped: %d bytes, the limit is %d", received.topic, size, LARGEST)
            return
        try:
            self._on_message(received)
        except Exception:  # a stranger's message must not end the connection
            log.exception("%.100r: internal error (please report); the message is dropped", received.topic)

    def update(self, connection: Connection) -> None:
        if not self.is_subscribed and not self._limiter.is_shut:
            self.subscribe(connection)
        if dropped := self._limiter.end_flood():
            log.info("%s: no longer flooded; %d messages were dropped", self.pattern, dropped)


_SETTLE_S = 3.0
"""The broker sends what it retains right after its answer; a slow network takes a little longer."""
_MAX_RETAINED_BYTES = 1024 * 1024
"""Topics and payloads that are read for one subscription: retained topics of one device are never larger."""


class RetainedSubscription:
    """A subscription to retained messages only. For the thread that turns the connection."""

    def __init__(self, subscriptions: Subscriptions, pattern: str) -> None:
        self._subscriptions, self._pattern = subscriptions, pattern
        self._is_answered, self._bytes = False, 0
        self._found: list[IncomingMessage] = []
        subscriptions.add(pattern, self._on_message, self._on_subscribed, qos=0)

    def received(self) -> list[IncomingMessage] | None:
        """Return the messages since the last call; None until the broker has answered the subscription."""
        if not self._is_answered:
            return None
        found, self._found = self._found, []
        return found

    def end(self) -> None:
        self._subscriptions.remove(self._pattern, self._on_message)

    def _on_subscribed(self, code: int) -> None:
        self._is_answered = True

    def _on_message(self, received: IncomingMessage) -> None:
        self._bytes += len(received.topic) + len(received.payload)
        if self._bytes > _MAX_RETAINED_BYTES:
            self.end()
        elif received.retained:  # else it is published now, for example by this device
            self._found.append(received)


Answer = Callable[[bytes], None]


class _Question:
    """A question for the payload that is retained under one topic."""

    def __init__(self, topic: str, answer: Answer) -> None:
        self._topic, self._answer = topic, answer
        self._subscription: RetainedSubscription | None = None
        self._until = 0.0

    def ask(self, connection: Connection) -> None:
        self._until, self._subscription = 0.0, RetainedSubscription(connection.subscriptions, self._topic)

    def is_answered(self) -> bool:
        if self._subscription is None or (found := self._subscription.received()) is None:
            return False
        now = time.monotonic()
        self._until = self._until or now + _SETTLE_S
        if not found and now < self._until:
            return False
        self._subscription.end()
        self._answer(found[-1].payload if found else b"")
        return True


class Inbox:
    """Handlers by pattern, and questions. Any thread may call `listen`, `ignore` and `ask`."""

    def __init__(self, where: object) -> None:
        self._where = where
        self._lock = threading.Lock()
        self._handlers: dict[str, _Handler] = {}
        self._removed: list[str] = []
        self._new: list[_Question] = []
        self._asked: list[_Question] = []

    def listen(self, pattern: str, on_message: OnMessage, *, as_published: bool = False) -> None:
        """Subscribe a handler on this connection and on each later one, see `Publisher.listen`."""
        with self._lock:
            self._handlers[pattern] = _Handler(pattern, on_message, as_published, self._where)

    def ignore(self, pattern: str) -> None:
        with self._lock:
            if self._handlers.pop(pattern, None) is not None:
                self._removed.append(pattern)

    def ask(self, topic: str, answer: Answer) -> None:
        """Ask for the payload that is retained under a topic, on each connection until it is answered.

        Args:
            topic: without wildcards.
            answer: called with the payload in the connection's thread; empty: nothing is retained, or the broker
                refuses the subscription.
        """
        with self._lock:
            self._new.append(_Question(topic, answer))

    def restart(self, connection: Connection) -> None:
        """Begin on a new connection: the broker knows no subscription."""
        with self._lock:
            self._new, self._asked = [*self._asked, *self._new], []
        for handler in self._all():
            handler.is_subscribed = False
        self.update(connection)

    def update(self, connection: Connection) -> None:
        """Subscribe to what is new or may arrive again, unsubscribe from what is ignored, pass answers on."""
        with self._lock:
            removed, self._removed = [one for one in self._removed if one not in self._handlers], []
            new, self._new = self._new, []
        for pattern in removed:
            connection.subscriptions.remove(pattern)
        for handler in self._all():
            handler.update(connection)
        for question in new:
            question.ask(connection)
        self._asked = [question for question in (*self._asked, *new) if not question.is_answered()]

    def _all(self) -> list[_Handler]:
        with self._lock:
            return list(self._handlers.values())


StreamConfigs = Callable[[], Mapping[str, StreamConfig]]
"""Returns the configured streams by name. Any thread may call it."""
_MAX_CORRECTED, _MAX_LOGGED = 1000, 20
"""Stale topics that are corrected, and of those logged: no device has more, whatever a broker sends."""


class StaleTopics:
    """Corrects the counts and states that an earlier run of this device left retained, once at each broker.

    A run that was killed, or that ended while the broker was away, leaves them. A count that no stream of this
    run has set becomes 0. Counts of a stream that no longer exists are deleted, and its snapshot before them. A
    setting or a sensor that this run has not set is deleted, and so is what is told of lines and zones that are
    not configured: the others are published when their stream runs.
    """

    def __init__(
        self, states: RetainedTopics, topics: Topics, has_stream: Callable[[str], bool], streams: StreamConfigs
    ) -> None:
        self._states, self._topics, self._has_stream, self._streams = states, topics, has_stream, streams
        self._done: set[str] = set()
        self._where, self._until, self._corrected = "", 0.0, 0
        self._subscriptions: list[RetainedSubscription] = []

    def restart(self, connection: Connection, where: str) -> None:
        """Subscribe on a new connection, unless the corrections at that broker are done."""
        self._until, self._where, self._subscriptions = 0.0, where, []
        if where not in self._done:
            topics = self._topics
            patterns = (*topics.counts, topics.state("+", "#"), topics.sensor("+", "+"), topics.line("+", "+"))
            self._subscriptions = [RetainedSubscription(connection.subscriptions, one) for one in patterns]

    def poll(self) -> None:
        """Correct what has arrived since the last call."""
        if not self._subscriptions:
            return
        arrived = [subscription.received() for subscription in self._subscriptions]
        for messages in arrived:
            for message in messages or ():
                self._correct(message)
        if any(messages is None for messages in arrived):  # a subscription is not acknowledged yet
            return
        now = time.monotonic()
        self._until = self._until or now + _SETTLE_S
        if now >= self._until:
            self._done.add(self._where)
            for subscription in self._subscriptions:
                subscription.end()
            self._subscriptions = []

    def _correct(self, message: IncomingMessage) -> None:
        topic, stream = message.topic, self._topics.stream_of(message.topic)
        if self._topics.addressed(topic) is not None:
            return  # a request `cmd/state`: `#` matches the parent level too
        exists = self._has_stream(stream)
        others = self._topics.state(stream, ""), self._topics.sensor(stream, ""), self._topics.line(stream, "")
        config = self._streams().get(stream)
        if config is not None and config.publish.counts and topic in self._lines_of(stream, config):
            return
        is_gone = config is not None and self._topics.is_of_other_zone(
            stream, {zone.name for zone in config.zones}, topic
        )
        correct = b"0" if exists and not is_gone and not topic.startswith(others) else b""
        if message.payload in (b"", correct) or self._corrected >= _MAX_CORRECTED:
            return
        if not exists:
            self._states.set_if_new(self._topics.snapshot(stream), b"")
        if self._states.set_if_new(topic, correct):
            self._corrected += 1
            what = "deleted" if exists else f"deleted, since there is no stream {stream:.60}"
            log.log(
                logging.INFO if self._corrected <= _MAX_LOGGED else logging.DEBUG,
                "%.100r: %s, an earlier run left it at %s",
                topic,
                "set to 0" if correct else what,
                quoted(message.payload.decode(errors="replace")),
            )

    def _lines_of(self, stream: str, config: StreamConfig) -> set[str]:
        return {self._topics.line(stream, line.name) for line in config.lines}
