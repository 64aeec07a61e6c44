"""The sweep: what a run before has left at the broker, and nobody keeps any more, is put right.

A process that was killed, or that ended while the broker was away, leaves counts. Once in the life of a publisher
the broker is asked for all of them which it retains of this device; what no stream of ours has set becomes 0. Of
a stream that there is no more they are deleted, and before them its snapshot: nobody is to see what it saw last.
What is left of `state/…` is deleted by `agent.comms.intruder`, and under a former name by `agent.comms.eraser`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from agent.comms.commands import shown_payload
from agent.comms.connection import Connection
from agent.comms.retained import Look
from agent.comms.states import States
from agent.comms.subscriptions import Received
from agent.comms.topics import Topics

log = logging.getLogger(__name__)

_LOOK_S = 3.0
"""The broker sends what it retains at once after its answer; a slow line takes a little longer."""
_MOST, _TOLD = 1000, 20
"""Topics that are put right, at most, and of those told: no device had more, whatever a broker says."""


class Sweep:
    """Done once; begun anew with each connection until it is."""

    def __init__(self, states: States, topics: Topics, has: Callable[[str], bool]) -> None:
        """Prepare.

        Args:
            states: what our own streams have set, and what is to be set.
            topics: of the device.
            has: whether there is a stream of this name.
        """
        self._states, self._topics, self._has = states, topics, has
        self._done, self._until = False, 0.0
        self._looks: list[Look] = []
        self._count = 0

    def begin(self, connection: Connection) -> None:
        """Ask, on a new connection."""
        self._until = 0.0
        if not self._done:
            self._looks = [connection.look(pattern) for pattern in self._topics.counts]

    def go_on(self) -> None:
        """Look at what has come."""
        if not self._looks:
            return
        found = [look.found() for look in self._looks]
        for some in found:
            for one in some or ():
                self._put_right(one)
        if any(some is None for some in found):  # the broker has not answered all of it
            return
        now = time.monotonic()
        self._until = self._until or now + _LOOK_S
        if now >= self._until:
            self._done = True
            for look in self._looks:
                look.end()
            self._looks = []

    def _put_right(self, one: Received) -> None:
        stream = self._topics.stream_of(one.topic)
        right = b"0" if self._has(stream) else b""
        if one.payload in (b"", right) or self._count >= _MOST:
            return
        if not right:
            self._states.set_if_new(self._topics.snapshot(stream), b"")
        if self._states.set_if_new(one.topic, right):
            self._count += 1
            log.log(
                logging.INFO if self._count <= _TOLD else logging.DEBUG,
                "%.100r: %s, an earlier run left it at %s",
                one.topic,
                f"set to {right.decode()}" if right else f"deleted, since there is no stream {stream:.60}",
                shown_payload(one.payload),
            )
