"""Waits for the network, or for the wake: whichever comes first."""

from __future__ import annotations

import select
from typing import Any

from agent.comms.wake import Wake


class Waiter:
    """For one thread."""

    def __init__(self, wake: Wake) -> None:
        """Prepare.

        Args:
            wake: ends a wait.
        """
        self._wake, self._poll = wake, select.poll()
        self._poll.register(wake, select.POLLIN)

    def wait(self, sock: Any, timeout_s: float, *, to_write: bool) -> bool:
        """Wait; whether there is something to read, be it the end. The wake is clear afterwards.

        Args:
            sock: of the connection.
            timeout_s: at most.
            to_write: whether its taking more is waited for too.
        """
        self._poll.register(sock, select.POLLIN | (select.POLLOUT if to_write else 0))
        found = dict(self._poll.poll(max(0, round(timeout_s * 1e3))))
        if self._wake.fileno() in found:
            self._wake.clear()
        return bool(found.get(sock.fileno(), 0) & ~select.POLLOUT)

    def is_readable(self, sock: Any) -> bool:
        """Whether there is something to read now."""
        self._poll.register(sock, select.POLLIN)
        return sock.fileno() in dict(self._poll.poll(0))
