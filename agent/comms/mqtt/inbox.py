"""The inbox: what is listened to at the broker, on one connection after another.

Handlers are called in the thread that keeps the line, so they must be quick: take note, and return. Neither what
is too large reaches them nor more than they can stand: a flood is cut off at the broker, and events go on.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Literal

from msgspec import Struct

from agent.comms.mqtt import reasons
from agent.comms.mqtt.connection import Connection
from agent.comms.mqtt.subscriptions import IncomingMessage, RetainedSubscription

# How much of what comes is taken: a bucket of tokens, and a door that is shut while somebody floods it.

PER_S, BURST = 20.0, 100
"""Messages that are taken: so many a second for ever, and so many at once."""
SHUT_AFTER = 1000
"""Messages dropped in one flood before the door is shut: even dropping costs the time of what is at work."""
_SHUT_FIRST_S, _SHUT_LAST_S = 10.0, 600.0

Verdict = Literal["take", "drop", "shut"]


class RateLimiter:
    """Decides for each message. Times are of a monotonic clock, s.

    Attributes:
        dropped: messages of the flood that is going on; 0: there is none.
    """

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, *, per_s: float = PER_S, burst: int = BURST
    ) -> None:
        """Start calm.

        Args:
            clock: monotonic, s.
            per_s: messages that are taken for ever.
            burst: that are taken at once.
        """
        self._clock, self._per_s, self._burst = clock, per_s, float(burst)
        self._tokens, self._at = self._burst, clock()
        self._pause_s, self._until = _SHUT_FIRST_S, 0.0
        self.dropped = 0

    def allow(self) -> Verdict:
        """Decide on a message that has come now; `shut`: drop it, and let no more come."""
        self._fill()
        if self._tokens >= 1.0:
            self._tokens -= 1.0
            return "take"
        self.dropped += 1
        if self.dropped < SHUT_AFTER or self.is_shut:
            return "drop"
        self._until = self._clock() + self._pause_s
        self._pause_s = min(_SHUT_LAST_S, self._pause_s * 2)
        return "shut"

    def _fill(self) -> None:
        now = self._clock()
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._per_s)
        self._at = now

    @property
    def is_shut(self) -> bool:
        """Return True if no messages are to come now."""
        return self._clock() < self._until

    @property
    def shut_s(self) -> float:
        """How long it stays shut, s."""
        return max(0.0, self._until - self._clock())

    def calm(self) -> int:
        """Messages dropped, when a flood is over since the last call; else 0."""
        if not self.dropped or self.is_shut:
            return 0
        self._fill()
        if self._tokens < self._burst:
            return 0
        dropped, self.dropped = self.dropped, 0
        if dropped < SHUT_AFTER:
            self._pause_s = _SHUT_FIRST_S
        return dropped


log = logging.getLogger(__name__)

LARGEST = 16 * 1024
"""Bytes of a payload that is handed on. A broker of MQTT 5 is told to keep larger packets to itself."""

Handler = Callable[[IncomingMessage], None]


class Subscription(Struct, frozen=True):
    """How a pattern is listened to.

    Attributes:
        handler: gets what comes.
        as_published: see `Subscriptions.add`.
    """

    handler: Handler
    as_published: bool = False


class _Handler:
    """One pattern, and who hears what comes for it."""

    def __init__(self, pattern: str, hearing: Subscription, where: object) -> None:
        self.pattern, self._hearing, self._where = pattern, hearing, where
        self.intake = RateLimiter()
        self.is_subscribed = False
        self._told_refusal = self._told_size = False

    def subscribe(self, connection: Connection) -> None:
        self.is_subscribed = True
        connection.subscriptions.add(
            self.pattern,
            lambda received: self._take(connection, received),
            self._answered,
            qos=1,
            as_published=self._hearing.as_published,
        )

    def _answered(self, code: int) -> None:
        if code < 0x80:
            self._told_refusal = False
        elif not self._told_refusal:
            self._told_refusal = True
            log.warning(
                "broker %s refuses the subscription to %s: %s; what is sent there does not arrive",
                self._where,
                self.pattern,
                reasons.in_words(code),
            )

    def _take(self, connection: Connection, received: IncomingMessage) -> None:
        verdict = self.intake.allow()
        if verdict == "take":
            self._hand_on(received)
            return
        if self.intake.dropped == 1:
            log.warning("%s: more messages come than are taken; the rest is dropped", self.pattern)
        if verdict == "shut":
            self.is_subscribed = False
            connection.subscriptions.remove(self.pattern)
            log.warning("%s: flooded; nothing is taken from there for %.0f s", self.pattern, self.intake.shut_s)

    def _hand_on(self, received: IncomingMessage) -> None:
        if len(received.payload) > LARGEST:
            if not self._told_size:
                self._told_size = True
                size = len(received.payload)
                log.warning("%.100r: dropped: %d bytes, at most %d are taken", received.topic, size, LARGEST)
            return
        try:
            self._hearing.handler(received)
        except Exception:
            # What a stranger sends must not end the line.
            log.exception("%.100r: a defect in Vedette; the message is dropped", received.topic)

    def update(self, connection: Connection) -> None:
        """Subscribe when it is due, and say that a flood is over."""
        if not self.is_subscribed and not self.intake.is_shut:
            self.subscribe(connection)
        if dropped := self.intake.calm():
            log.info("%s: calm again; %d messages were dropped", self.pattern, dropped)


class Inbox:
    """Listeners by pattern. `listen`, `ignore` and `all` are for any thread, the rest for that of the line."""

    def __init__(self, where: object) -> None:
        """Start with none.

        Args:
            where: the broker, for messages.
        """
        self._where = where
        self._lock = threading.Lock()
        self._listeners: dict[str, _Handler] = {}
        self._hearings: dict[str, Subscription] = {}
        self._gone: list[str] = []

    def listen(self, pattern: str, hearing: Subscription) -> None:
        """Hand what comes for a pattern to a handler, on this connection and on every one that follows."""
        with self._lock:
            self._hearings[pattern] = hearing
            self._listeners[pattern] = _Handler(pattern, hearing, self._where)

    def ignore(self, pattern: str) -> None:
        """Listen to a pattern no more."""
        with self._lock:
            if self._hearings.pop(pattern, None) is not None:
                self._gone.append(self._listeners.pop(pattern).pattern)

    def all(self) -> dict[str, Subscription]:
        """Every pattern, and how it is listened to."""
        with self._lock:
            return dict(self._hearings)

    def restart(self, connection: Connection) -> None:
        """Begin on a new connection: the broker knows of no subscription."""
        for listener in self._all():
            listener.is_subscribed = False
        self.update(connection)

    def update(self, connection: Connection) -> None:
        """Subscribe to what is new, or may come again, and end what is ignored."""
        if self._gone:
            with self._lock:
                gone, self._gone = [one for one in self._gone if one not in self._hearings], []
            for pattern in gone:
                connection.subscriptions.remove(pattern)
        for listener in self._all():
            listener.update(connection)

    def _all(self) -> list[_Handler]:
        with self._lock:
            return list(self._listeners.values())


# An inquiry: what does the broker retain under one topic? Asked anew on each connection until it is answered.

Answer = Callable[[bytes], None]

_NOTHING_S = 3.0
"""The broker sends what it retains at once after its answer; a slow line takes a little longer."""


class _Question:
    """One topic, and who wants to know."""

    def __init__(self, topic: str, answer: Answer, clock: Callable[[], float]) -> None:
        self._topic, self._answer, self._clock = topic, answer, clock
        self._look: RetainedSubscription | None = None
        self._until = 0.0

    def begin(self, connection: Connection) -> None:
        self._until, self._look = 0.0, connection.subscribe_retained(self._topic)

    def is_answered(self) -> bool:
        """Look at what has come, and pass it on."""
        if self._look is None or (found := self._look.received()) is None:
            return False
        now = self._clock()
        self._until = self._until or now + _NOTHING_S
        if not found and now < self._until:
            return False
        self._look.end()
        self._answer(found[-1].payload if found else b"")
        return True


class RetainedQuery:
    """Questions that wait for their answers. `ask` is for any thread, the rest for that of the line."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._new: list[_Question] = []
        self._asked: list[_Question] = []

    def ask(self, topic: str, answer: Answer) -> None:
        """Ask what is retained under a topic without wildcards.

        Args:
            topic: that nobody else listens to.
            answer: gets the payload, in the thread of the line; empty: nothing is retained, or we may not know.
        """
        with self._lock:
            self._new.append(_Question(topic, answer, self._clock))

    def restart(self) -> None:
        """Ask again on a new connection what has not been answered."""
        with self._lock:
            self._new, self._asked = [*self._asked, *self._new], []

    def poll(self, connection: Connection) -> None:
        """Ask new questions, and pass on the answers that have arrived."""
        with self._lock:
            new, self._new = self._new, []
        for question in new:
            question.begin(connection)
        self._asked = [question for question in (*self._asked, *new) if not question.is_answered()]
