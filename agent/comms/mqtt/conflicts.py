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

from agent.comms.client import LARGEST_WANTED
from agent.comms.commands import shown_payload
from agent.comms.connection import Connection
from agent.comms.inbox import Hearing, Inbox
from agent.comms.intake import Intake
from agent.comms.states import States
from agent.comms.subscriptions import Received
from agent.comms.topics import Topics

log = logging.getLogger(__name__)

_SETTLE_S = 1.0
"""What we have said ourselves has come back by then."""
_PER_S, _BURST = 1.0 / 60.0, 20
"""Contradictions, in the long run and at once."""
_MOST, _TOLD = 1000, 20
"""Topics that are kept in mind or deleted, at most, and of those told: no device had more."""


class Intruder:
    """For the thread of the line.

    Attributes:
        count: messages that were put right since the start; may be read by any thread.
    """

    def __init__(
        self, states: States, topics: Topics, where: object, clock: Callable[[], float] = time.monotonic
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
        hearing = Hearing(self._take, no_local=True, largest=LARGEST_WANTED, burst=_MOST)
        self._inbox.listen(topics.state("+", "#"), hearing)
        self._intake = Intake(clock, per_s=_PER_S, burst=_BURST)
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
            if self._intake.judge() != "take":
                return
            del self._suspects[topic]
            self._contradict(topic, payload)

    def _take(self, received: Received) -> None:
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
