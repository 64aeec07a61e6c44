"""A namesake: another device with our name, whose `offline` would count as ours. It is contradicted, and told.

Two boards from one image are the usual case: their client ids differ, so the broker lets both in.
"""

from __future__ import annotations

import logging
import time

from agent.comms.connection import Connection
from agent.comms.subscriptions import Received

log = logging.getLogger(__name__)

_EVERY_S = 2.0
"""Between two contradictions: of two that both insist, none may fill the line."""


class Namesake:
    """Listens to our own status over one connection after another."""

    def __init__(self, status: str, online: bytes) -> None:
        """Prepare.

        Args:
            status: topic of ours.
            online: what it says while we are there.
        """
        self._status, self._online = status, online
        self._is_heard = self._is_told = self._is_over = False
        self._said_at = 0.0

    def begin(self, connection: Connection) -> None:
        """Listen, on a new connection. A broker that refuses that has its reasons: then nothing is noticed."""
        self._is_heard = self._is_over = False
        connection.subscriptions.add(self._status, self._take, lambda _: None, qos=1)

    def end(self) -> None:
        """What is said from now on is ours."""
        self._is_over = True

    def is_due(self) -> bool:
        """Whether to say again that we are here; that is taken as done."""
        if not self._is_heard or time.monotonic() - self._said_at < _EVERY_S:
            return False
        self._is_heard, self._said_at = False, time.monotonic()
        return True

    def _take(self, received: Received) -> None:
        # What was retained is how we, or a run before, left.
        if self._is_over or received.retained or received.payload == self._online:
            return
        self._is_heard = True
        if not self._is_told:
            self._is_told = True
            log.warning(
                "somebody else says %r on %s: is there another device with this name? set [device] name",
                received.payload[:20].decode(errors="replace"),
                self._status,
            )
