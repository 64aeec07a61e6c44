"""Answers to requests: sent at once at QoS 0 to whoever waits for them, or dropped with the connection."""

from __future__ import annotations

import logging
from collections import deque

from agent.comms.connection import Connection

log = logging.getLogger(__name__)

_KEPT = 64


class Answers:
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
