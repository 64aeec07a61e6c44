"""Corrects the counts and states that an earlier run of this device left retained at a broker.

A process that was killed, or that ended while the broker was away, leaves them. `vedette cleanup` deletes what a
device left under a former name.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from agent.comms.commands import shown_payload
from agent.comms.mqtt.connection import Connection
from agent.comms.mqtt.outbox import RetainedTopics
from agent.comms.mqtt.subscriptions import IncomingMessage, RetainedSubscription
from agent.comms.topics import Topics

log = logging.getLogger(__name__)

_SETTLE_S = 3.0
"""The broker sends what it retains right after its answer; a slow network takes a little longer."""
_MOST, _LOGGED = 1000, 20
"""Topics that are corrected, and of those logged, at most: no device has more, whatever a broker sends."""


class StaleTopics:
    """Corrects stale topics at one broker, once in the life of a publisher.

    A count that no stream of this run has set becomes 0. Counts of a stream that no longer exists are deleted,
    and its snapshot before them; a state that this run has not set is deleted.
    """

    def __init__(self, states: RetainedTopics, topics: Topics, has_stream: Callable[[str], bool]) -> None:
        """Prepare.

        Args:
            states: what this run has set; gets the corrections.
            topics: of the device.
            has_stream: True if there is a stream of this name.
        """
        self._states, self._topics, self._has_stream = states, topics, has_stream
        self._is_done, self._until = False, 0.0
        self._subscriptions: list[RetainedSubscription] = []
        self._corrected = 0

    def restart(self, connection: Connection) -> None:
        """Subscribe on a new connection, unless the corrections are done."""
        self._until = 0.0
        if not self._is_done:
            patterns = (*self._topics.counts, self._topics.state("+", "#"))
            self._subscriptions = [connection.subscribe_retained(pattern) for pattern in patterns]

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
            self._is_done = True
            for subscription in self._subscriptions:
                subscription.end()
            self._subscriptions = []

    def _correct(self, message: IncomingMessage) -> None:
        topic, stream = message.topic, self._topics.stream_of(message.topic)
        if self._topics.addressed(topic) is not None:
            return  # a request `cmd/state`: `#` matches the parent level too
        exists = self._has_stream(stream)
        is_state = topic.startswith(self._topics.state(stream, ""))
        correct = b"0" if exists and not is_state else b""
        if message.payload in (b"", correct) or self._corrected >= _MOST:
            return
        if not exists:
            self._states.set_if_new(self._topics.snapshot(stream), b"")
        if self._states.set_if_new(topic, correct):
            self._corrected += 1
            what = "deleted" if exists else f"deleted, since there is no stream {stream:.60}"
            log.log(
                logging.INFO if self._corrected <= _LOGGED else logging.DEBUG,
                "%.100r: %s, an earlier run left it at %s",
                topic,
                "set to 0" if correct else what,
                shown_payload(message.payload),
            )
