"""A namesake: another device with our name, whose `offline` would count as ours. It is contradicted, and told.

Two boards from one image are the usual case: their client ids differ, so the broker lets both in.

A broker that goes down in order says our own last will before it closes our connection: so it is told only when
the connection still stands a moment later.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from agent.comms.connection import Connection
from agent.comms.subscriptions import Received

log = logging.getLogger(__name__)

_EVERY_S = 2.0
"""Between two contradictions: of two that both insist, none may fill the line."""
_MOMENT_S = 2.0
"""A broker that goes down has closed the connection by then."""


class Namesake:
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

    def _take(self, received: Received) -> None:
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
