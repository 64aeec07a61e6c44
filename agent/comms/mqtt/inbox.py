"""The inbox: what is listened to at the broker, on one connection after another.

Handlers are called in the thread that keeps the line, so they must be quick: take note, and return. Neither what
is too large reaches them nor more than they can stand: a flood is cut off at the broker, and events go on.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from msgspec import Struct

from agent.comms import reasons
from agent.comms.connection import Connection
from agent.comms.intake import BURST, Intake
from agent.comms.subscriptions import Received as Received

log = logging.getLogger(__name__)

LARGEST = 16 * 1024
"""Bytes of a payload that is handed on. A broker of MQTT 5 is told to keep larger packets to itself."""

Handler = Callable[[Received], None]


class Hearing(Struct, frozen=True):
    """How a pattern is listened to.

    Attributes:
        handler: gets what comes.
        as_published, no_local: see `Subscriptions.add`.
        largest: bytes of a payload that is handed on.
        burst: messages that are taken at once.
    """

    handler: Handler
    as_published: bool = False
    no_local: bool = False
    largest: int = LARGEST
    burst: int = BURST


class _Listener:
    """One pattern, and who hears what comes for it."""

    def __init__(self, pattern: str, hearing: Hearing, where: object) -> None:
        self.pattern, self._hearing, self._where = pattern, hearing, where
        self.intake = Intake(burst=hearing.burst)
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
            no_local=self._hearing.no_local,
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

    def _take(self, connection: Connection, received: Received) -> None:
        verdict = self.intake.judge()
        if verdict == "take":
            self._hand_on(received)
            return
        if self.intake.dropped == 1:
            log.warning("%s: more messages come than are taken; the rest is dropped", self.pattern)
        if verdict == "shut":
            self.is_subscribed = False
            connection.subscriptions.remove(self.pattern)
            log.warning("%s: flooded; nothing is taken from there for %.0f s", self.pattern, self.intake.shut_s)

    def _hand_on(self, received: Received) -> None:
        if len(received.payload) > self._hearing.largest:
            if not self._told_size:
                self._told_size = True
                size, most = len(received.payload), self._hearing.largest
                log.warning("%.100r: dropped: %d bytes, at most %d are taken", received.topic, size, most)
            return
        try:
            self._hearing.handler(received)
        except Exception:
            # What a stranger sends must not end the line.
            log.exception("%.100r: a defect in Vedette; the message is dropped", received.topic)

    def look(self, connection: Connection) -> None:
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
        self._listeners: dict[str, _Listener] = {}
        self._hearings: dict[str, Hearing] = {}
        self._gone: list[str] = []

    def listen(self, pattern: str, hearing: Hearing) -> None:
        """Hand what comes for a pattern to a handler, on this connection and on every one that follows."""
        with self._lock:
            self._hearings[pattern] = hearing
            self._listeners[pattern] = _Listener(pattern, hearing, self._where)

    def ignore(self, pattern: str) -> None:
        """Listen to a pattern no more."""
        with self._lock:
            if self._hearings.pop(pattern, None) is not None:
                self._gone.append(self._listeners.pop(pattern).pattern)

    def all(self) -> dict[str, Hearing]:
        """Every pattern, and how it is listened to."""
        with self._lock:
            return dict(self._hearings)

    def restart(self, connection: Connection) -> None:
        """Begin on a new connection: the broker knows of no subscription."""
        for listener in self._all():
            listener.is_subscribed = False
        self.look(connection)

    def look(self, connection: Connection) -> None:
        """Subscribe to what is new, or may come again, and end what is ignored."""
        if self._gone:
            with self._lock:
                gone, self._gone = [one for one in self._gone if one not in self._hearings], []
            for pattern in gone:
                connection.subscriptions.remove(pattern)
        for listener in self._all():
            listener.look(connection)

    def _all(self) -> list[_Listener]:
        with self._lock:
            return list(self._listeners.values())
