"""Receives from the broker, over one connection after another: messages for handlers, and retained topics.

Handlers are called in the connection's thread, so they must return quickly. Neither payloads that are too large
reach them nor more messages than they can process, so events continue during a flood.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import paho.mqtt.client as paho
from msgspec import Struct
from paho.mqtt.subscribeoptions import SubscribeOptions

from agent.comms.mqtt.endpoint import REFUSED, in_words
from agent.comms.topics import Topics
from agent.config import StreamConfig

log = logging.getLogger(__name__)


class IncomingMessage(Struct, frozen=True, gc=False):
    """A message from the broker.

    Attributes:
        topic, payload: as received.
        retained: it lay at the broker, and was not sent just now. In a subscription `as_published`: it was sent
            to be retained, now or before.
        response_topic: where its sender waits for a reply (MQTT 5); empty: none was named.
        correlation: data that the reply must carry (MQTT 5).
    """

    topic: str
    payload: bytes
    retained: bool = False
    response_topic: str = ""
    correlation: bytes = b""


OnMessage = Callable[[IncomingMessage], None]
OnSubscribed = Callable[[int], None]
"""Called with the broker's reason code."""
_MAX_UNMATCHED = 10_000
"""Messages since the last change that match no subscription: some may be on their way when one ends."""


class Subscriptions:
    """The subscriptions of one connection. Everything happens in the thread that turns the connection."""

    def __init__(self, client: paho.Client, *, mqtt_5: bool = True) -> None:
        """Take over the callbacks of a client, with which nothing else may subscribe."""
        self._client, self._is_5 = client, mqtt_5
        self._subscribers: dict[str, tuple[OnMessage, OnSubscribed]] = {}
        self._pending: dict[int, str] = {}
        self._unmatched = 0
        client.on_subscribe, client.on_message = self._on_subscribe, self._on_message

    def add(
        self,
        pattern: str,
        on_message: OnMessage,
        on_subscribed: OnSubscribed = lambda _: None,
        *,
        qos: int,
        as_published: bool = False,
    ) -> None:
        """Subscribe.

        Args:
            pattern: of topics; a later call replaces the former. Where different ones overlap, the broker may
                send a message twice.
            on_message: called with each message.
            on_subscribed: see `OnSubscribed`.
            qos: maximum QoS of the messages.
            as_published: mark messages that are sent to be retained, also while they pass. Under MQTT 3.1.1 only
                messages that the broker already retains are marked.

        Raises:
            ValueError: the pattern is not valid.
        """
        self._unmatched = 0
        if self._is_5:
            options = SubscribeOptions(qos, retainAsPublished=as_published)
            _, mid = self._client.subscribe(pattern, options=options)
        else:
            _, mid = self._client.subscribe(pattern, qos)
        self._subscribers[pattern] = on_message, on_subscribed
        if mid is not None:  # else the connection is gone, and there will be no answer
            self._pending[mid] = pattern

    def remove(self, pattern: str) -> None:
        """Unsubscribe from a pattern. Messages on their way are ignored."""
        if self._subscribers.pop(pattern, None) is not None:
            self._unmatched = 0
            self._client.unsubscribe(pattern)

    @property
    def is_flooded(self) -> bool:
        """True if the broker keeps sending messages that match no subscription."""
        return self._unmatched > _MAX_UNMATCHED

    def _on_subscribe(self, client: Any, userdata: Any, mid: int, reasons: Any, properties: Any) -> None:
        subscriber = self._subscribers.get(self._pending.pop(mid, ""))
        if subscriber is not None and reasons:
            subscriber[1](int(reasons[0].value))

    def _on_message(self, client: Any, userdata: Any, message: Any) -> None:
        try:
            topic = message.topic
        except UnicodeDecodeError:  # not a topic (MQTT 5.0, 1.5.4), though the broker let it through
            self._unmatched += 1
            return
        received = IncomingMessage(
            topic,
            bytes(message.payload),
            bool(message.retain),
            getattr(message.properties, "ResponseTopic", ""),
            getattr(message.properties, "CorrelationData", b""),
        )
        patterns = [pattern for pattern in self._subscribers if paho.topic_matches_sub(pattern, topic)]
        self._unmatched += not patterns
        for pattern in patterns:
            self._subscribers[pattern][0](received)


PER_S, BURST = 20.0, 200
"""Messages of a pattern that are accepted: each second in the long run, and at once."""
LARGEST = 16 * 1024
"""Maximum payload that is passed to a handler, bytes."""


class RateLimiter:
    """A token bucket."""

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, *, per_s: float = PER_S, burst: int = BURST
    ) -> None:
        self._clock, self._per_s, self._burst = clock, per_s, float(burst)
        self._tokens, self._at = self._burst, clock()

    def allow(self) -> bool:
        """Return True if a message that arrives now is taken."""
        now = self._clock()
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._per_s)
        self._at = now
        is_allowed = self._tokens >= 1.0
        self._tokens -= is_allowed
        return is_allowed


class _Handler:
    """The handler of one pattern."""

    def __init__(self, where: object, pattern: str, on_message: OnMessage, as_published: bool) -> None:
        self._where, self.pattern, self._on_message, self._as_published = where, pattern, on_message, as_published
        self._limiter = RateLimiter()
        self.is_subscribed = False
        self._logged: set[str] = set()

    def subscribe(self, subscriptions: Subscriptions) -> None:
        to, answered = self._receive, self._on_subscribed
        subscriptions.add(self.pattern, to, answered, qos=1, as_published=self._as_published)
        self.is_subscribed = True

    def _warn_once(self, what: str, text: str, *args: object) -> None:
        if what not in self._logged:
            self._logged.add(what)
            log.warning(text, *args)

    def _on_subscribed(self, code: int) -> None:
        if code < REFUSED:
            self._logged.discard("refusal")
            return
        text = "broker %s refuses the subscription to %s: %s; what is sent there does not arrive"
        self._warn_once("refusal", text, self._where, self.pattern, in_words(code))

    def _receive(self, received: IncomingMessage) -> None:
        if not self._limiter.allow():
            self._warn_once("flood", "%s: too many messages; some are dropped", self.pattern)
            return
        size = len(received.payload)
        if size > LARGEST:
            text = "%.100r: dropped: %d bytes, the limit is %d"
            self._warn_once("size", text, received.topic, size, LARGEST)
            return
        try:
            self._on_message(received)
        except Exception:  # a stranger's message must not end the connection
            log.exception("%.100r: internal error (please report); the message is dropped", received.topic)


_SETTLE_S = 3.0
"""The broker sends what it retains right after its answer; a slow network takes a little longer."""
_MAX_RETAINED_BYTES = 1024 * 1024
"""Topics and payloads that are read for one subscription: retained topics of one device are never larger."""


class RetainedSubscription:
    """A subscription to retained messages only, until all should have come.

    For the thread that turns the connection.
    """

    def __init__(self, subscriptions: Subscriptions, pattern: str) -> None:
        self._subscriptions, self._pattern = subscriptions, pattern
        self._until, self._bytes = 0.0, 0
        self._found: list[IncomingMessage] = []
        subscriptions.add(pattern, self._on_message, self._on_subscribed, qos=0)

    def received(self) -> list[IncomingMessage]:
        """Return the messages since the last call; none before the broker has answered the subscription."""
        if not self._until:
            return []
        found, self._found = self._found, []
        return found

    @property
    def is_settled(self) -> bool:
        """True some seconds after the broker has answered the subscription."""
        return 0.0 < self._until <= time.monotonic()

    def end(self) -> None:
        self._subscriptions.remove(self._pattern)

    def _on_subscribed(self, code: int) -> None:
        self._until = time.monotonic() + _SETTLE_S

    def _on_message(self, received: IncomingMessage) -> None:
        self._bytes += len(received.topic) + len(received.payload)
        if self._bytes > _MAX_RETAINED_BYTES:
            self.end()
        elif received.retained:  # else it is published now, for example by this device
            self._found.append(received)


Answer = Callable[[bytes], None]
_Question = tuple[Answer, RetainedSubscription | None]


class Inbox:
    """Handlers by pattern, and questions. Any thread may call `listen`, `ignore` and `ask`.

    Attributes:
        is_changed: True if `update` may have something to do.
    """

    def __init__(self, where: object) -> None:
        """Name the broker, for messages."""
        self._where, self.is_changed = where, False
        self._lock = threading.Lock()
        self._handlers: dict[str, _Handler] = {}
        self._removed: list[str] = []
        self._questions: dict[str, _Question] = {}

    def listen(self, pattern: str, on_message: OnMessage, *, as_published: bool = False) -> None:
        """Subscribe a handler on this connection and on each later one, see `Publisher.listen`."""
        with self._lock:
            self._handlers[pattern] = _Handler(self._where, pattern, on_message, as_published)
            self.is_changed = True

    def ignore(self, pattern: str) -> None:
        with self._lock:
            if self._handlers.pop(pattern, None) is not None:
                self._removed.append(pattern)
                self.is_changed = True

    def ask(self, topic: str, answer: Answer) -> None:
        """Ask for the payload that is retained under a topic, on each connection until it is answered.

        Args:
            topic: without wildcards; a later question about it replaces the former.
            answer: called with the payload in the connection's thread; empty: nothing is retained, or the broker
                refuses the subscription.
        """
        with self._lock:
            self._questions[topic] = answer, None
            self.is_changed = True

    def restart(self, subscriptions: Subscriptions) -> None:
        """Begin on a new connection: the broker knows no subscription."""
        with self._lock:
            self._questions = {topic: (answer, None) for topic, (answer, _) in self._questions.items()}
            for handler in self._handlers.values():
                handler.is_subscribed = False
        self.update(subscriptions)

    def update(self, subscriptions: Subscriptions) -> None:
        """Subscribe to what is new, unsubscribe from what is ignored, pass answers on."""
        with self._lock:
            removed, self._removed = [one for one in self._removed if one not in self._handlers], []
            handlers, questions = list(self._handlers.values()), list(self._questions.items())
            self.is_changed = bool(questions)
        for pattern in removed:
            subscriptions.remove(pattern)
        for handler in handlers:
            if not handler.is_subscribed:
                handler.subscribe(subscriptions)
        for topic, question in questions:
            answer, asked = question
            if asked is None:
                self._replace(topic, question, (answer, RetainedSubscription(subscriptions, topic)))
            elif (found := asked.received()) or asked.is_settled:
                asked.end()
                self._replace(topic, question, None)
                answer(found[-1].payload if found else b"")

    def _replace(self, topic: str, question: _Question, newer: _Question | None) -> None:
        """Replace a question, or remove it, unless a later one has replaced it meanwhile."""
        with self._lock:
            if self._questions.get(topic) is question:
                del self._questions[topic]
                if newer is not None:
                    self._questions[topic] = newer


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

    Attributes:
        is_done: True if there is nothing to correct any more at the broker in use.
    """

    def __init__(
        self,
        set_if_new: Callable[[str, bytes], bool],
        topics: Topics,
        has_stream: Callable[[str], bool],
        streams: StreamConfigs,
    ) -> None:
        self._set_if_new, self._topics, self._has_stream, self._streams = set_if_new, topics, has_stream, streams
        self._done: set[str] = set()
        self._where, self._corrected, self.is_done = "", 0, True
        self._subscriptions: list[RetainedSubscription] = []

    def restart(self, subscriptions: Subscriptions, where: str) -> None:
        """Subscribe on a new connection, unless the corrections at that broker are done."""
        self._where, self.is_done = where, where in self._done
        topics = self._topics
        patterns = (*topics.counts, topics.state("+", "#"), topics.sensor("+", "+"), topics.line("+", "+"))
        self._subscriptions = [
            RetainedSubscription(subscriptions, pattern) for pattern in patterns if not self.is_done
        ]

    def poll(self) -> None:
        """Correct what has arrived since the last call."""
        for subscription in self._subscriptions:
            for message in subscription.received():
                self._correct(message)
        if all(subscription.is_settled for subscription in self._subscriptions):
            self._done.add(self._where)
            for subscription in self._subscriptions:
                subscription.end()
            self._subscriptions, self.is_done = [], True

    def _correct(self, message: IncomingMessage) -> None:
        topic, stream = message.topic, self._topics.stream_of(message.topic)
        correct = self._correction(topic, stream)
        if correct is None or message.payload in (b"", correct) or self._corrected >= _MAX_CORRECTED:
            return
        if not self._has_stream(stream):
            self._set_if_new(self._topics.snapshot(stream), b"")
        if self._set_if_new(topic, correct):
            self._corrected += 1
            level = logging.INFO if self._corrected <= _MAX_LOGGED else logging.DEBUG
            log.log(level, "%.100r: %s, an earlier run left it", topic, "set to 0" if correct else "deleted")

    def _correction(self, topic: str, stream: str) -> bytes | None:
        """Return what a topic should hold that this run has not set; None: it stays."""
        topics, config = self._topics, self._streams().get(stream)
        if topics.addressed(topic) is not None:
            return None  # a request `cmd/state`: `#` matches the parent level too
        is_of_other_zone = False
        if config is not None:
            lines = {topics.line(stream, line.name) for line in config.lines}
            if config.publish.counts and topic in lines:
                return None
            is_of_other_zone = topics.is_of_other_zone(stream, {zone.name for zone in config.zones}, topic)
        others = topics.state(stream, ""), topics.sensor(stream, ""), topics.line(stream, "")
        is_count = self._has_stream(stream) and not is_of_other_zone and not topic.startswith(others)
        return b"0" if is_count else b""
