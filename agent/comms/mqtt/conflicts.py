"""The intruder: somebody else who publishes on `state/…` of this device. That is put right, and told.

We listen to our own states over one connection after another. Under MQTT 5 the broker keeps our own messages to
itself; under 3.1.1 they come back. So what counts is the newest that has come, a moment after it came: if it is
not what we say, another one said it. Two devices with one name contradict each other, so that has bounds.

What lies at the broker when we come is no intrusion: it is sent anew anyway, and what is left of a stream or a
zone that is gone is deleted.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from agent.comms.commands import shown_payload
from agent.comms.mqtt.connection import Connection
from agent.comms.mqtt.inbox import Inbox, RateLimiter, Subscription
from agent.comms.mqtt.outbox import RetainedTopics
from agent.comms.mqtt.paho_client import LARGEST_WANTED
from agent.comms.mqtt.subscriptions import IncomingMessage
from agent.comms.topics import Topics

log = logging.getLogger(__name__)

_SETTLE_S = 1.0
"""What we have said ourselves has come back by then."""
_PER_S, _BURST = 1.0 / 60.0, 20
"""Contradictions, in the long run and at once."""
_MOST, _TOLD = 1000, 20
"""Topics that are kept in mind or deleted, at most, and of those told: no device had more."""


class StateConflicts:
    """For the thread of the line.

    Attributes:
        count: messages that were put right since the start; may be read by any thread.
    """

    def __init__(
        self, states: RetainedTopics, topics: Topics, where: object, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Prepare.

        Args:
            states: what we say ourselves.
            topics: of the device.
            where: the broker, for messages.
            clock: monotonic, s.
        """
        self._states, self._topics, self._clock = states, topics, clock
        self._inbox = Inbox(where)
        hearing = Subscription(self._take, no_local=True, largest=LARGEST_WANTED, burst=_MOST)
        self._inbox.listen(topics.state("+", "#"), hearing)
        self._intake = RateLimiter(clock, per_s=_PER_S, burst=_BURST)
        self._suspects: dict[str, tuple[float, bytes]] = {}
        self._deleted = 0
        self.count = 0

    def begin(self, connection: Connection) -> None:
        """Listen, on a new connection."""
        self._suspects.clear()
        self._inbox.restart(connection)

    def go_on(self, connection: Connection) -> None:
        """Put right what has been wrong for a moment."""
        self._inbox.look(connection)
        now = self._clock()
        for topic, (since, payload) in list(self._suspects.items()):
            if now - since < _SETTLE_S or self._states.is_under_way(topic):
                continue
            if payload == (self._states.payload(topic) or b""):  # it has become right
                del self._suspects[topic]
                continue
            if self._intake.allow() != "take":
                return
            del self._suspects[topic]
            self._contradict(topic, payload)

    def _take(self, received: IncomingMessage) -> None:
        topic, payload = received.topic, received.payload
        if self._topics.addressed(topic) is not None:
            return  # a request `cmd/state`: `#` stands also for nothing
        ours = self._states.payload(topic)
        if received.retained:
            if ours is None and payload:
                self._delete(topic, payload)
        elif payload == (ours or b""):
            self._suspects.pop(topic, None)
        elif topic in self._suspects or len(self._suspects) < _MOST:
            self._suspects[topic] = self._suspects.get(topic, (self._clock(), b""))[0], payload

    def _delete(self, topic: str, payload: bytes) -> None:
        if self._deleted < _MOST and self._states.set_if_new(topic, b""):
            self._deleted += 1
            level = logging.INFO if self._deleted <= _TOLD else logging.DEBUG
            log.log(level, "%.100r: deleted, an earlier run left it at %s", topic, shown_payload(payload))

    def _contradict(self, topic: str, payload: bytes) -> None:
        if not self._states.repeat(topic):
            self._states.set_if_new(topic, b"")
        self.count += 1
        if self.count == 1:
            log.warning(
                "another client overwrote %.100r with %s: value restored; health counts how often that happens; "
                "an access list of the broker can prevent it",
                topic,
                shown_payload(payload),
            )


# A namesake: another device with our name, whose `offline` would count as ours. It is contradicted, and told.
#
# Two boards from one image are the usual case: their client ids differ, so the broker lets both in.
#
# A broker that goes down in order says our own last will before it closes our connection: so it is told only when
# the connection still stands a moment later.

_EVERY_S = 2.0
"""Between two contradictions: of two that both insist, none may fill the line."""
_MOMENT_S = 2.0
"""A broker that goes down has closed the connection by then."""


class DuplicateDevice:
    """Listens to our own status over one connection after another."""

    def __init__(self, status: str, online: bytes, clock: Callable[[], float] = time.monotonic) -> None:
        """Prepare.

        Args:
            status: topic of ours.
            online: what it says while we are there.
            clock: monotonic, s.
        """
        self._status, self._online, self._clock = status, online, clock
        self._is_heard = self._is_told = self._is_over = False
        self._said_at = -_EVERY_S
        self._suspect: tuple[float, bytes] | None = None

    def begin(self, connection: Connection) -> None:
        """Listen, on a new connection. A broker that refuses that has its reasons: then nothing is noticed."""
        self._is_heard, self._is_over, self._suspect = False, False, None
        connection.subscriptions.add(self._status, self._take, lambda _: None, qos=1)

    def end(self) -> None:
        """What is said from now on is ours."""
        self._is_over = True

    def is_due(self) -> bool:
        """Whether to say again that we are here; that is taken as done. For as long as the connection stands."""
        self._tell()
        if not self._is_heard or self._clock() - self._said_at < _EVERY_S:
            return False
        self._is_heard, self._said_at = False, self._clock()
        return True

    def _take(self, received: IncomingMessage) -> None:
        # What was retained is how we, or a run before, left.
        if self._is_over or received.retained or received.payload == self._online:
            return
        self._is_heard = True
        if self._suspect is None:
            self._suspect = self._clock(), received.payload

    def _tell(self) -> None:
        if self._is_told or self._suspect is None or self._clock() - self._suspect[0] < _MOMENT_S:
            return
        self._is_told = True
        log.warning(
            "somebody else says %r on %s: is there another device with this name? set [device] name",
            self._suspect[1][:20].decode(errors="replace"),
            self._status,
        )
