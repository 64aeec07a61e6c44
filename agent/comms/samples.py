"""Messages that are worth something only now: sent once at QoS 0, or dropped."""

from __future__ import annotations

import threading
from collections import deque

from agent.comms.connection import Connection

_KEPT = 64
"""While the network is slow; of more, the oldest go."""


class Samples:
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
            if len(self._queue) >= _KEPT:
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
