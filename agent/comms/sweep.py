"""The sweep: counts at the broker that nobody keeps any more are set to 0.

They are those of a process that was killed, or that ended while the broker was away: the broker retains what it
heard last. Once in the life of a publisher it is asked for every count of this device, and those that no stream
of ours has set are put right.
"""

from __future__ import annotations

import logging
import time

from agent.comms.connection import Connection
from agent.comms.retained import Look
from agent.comms.states import States

log = logging.getLogger(__name__)

_LOOK_S = 3.0
"""The broker sends what it retains at once after its answer; a slow line takes a little longer."""
_RIGHT = (b"", b"0")


class Sweep:
    """Done once; begun anew with each connection until it is."""

    def __init__(self, states: States, pattern: str) -> None:
        """Prepare.

        Args:
            states: what our own streams have set, and what is to be set.
            pattern: of all counts of this device.
        """
        self._states, self._pattern = states, pattern
        self._done, self._until = False, 0.0
        self._look: Look | None = None

    def begin(self, connection: Connection) -> None:
        """Ask, on a new connection."""
        self._until = 0.0
        if not self._done:
            self._look = connection.look(self._pattern)

    def go_on(self) -> None:
        """Look at what has come."""
        if self._look is None or (found := self._look.found()) is None:
            return
        now = time.monotonic()
        self._until = self._until or now + _LOOK_S
        for one in found:
            if one.payload not in _RIGHT and self._states.set_if_new(one.topic, b"0"):
                before = one.payload.decode(errors="replace")
                log.info("%s was left at %s by a run before: set to 0", one.topic, before)
        if now >= self._until:
            self._done = True
            self._look.end()
            self._look = None
