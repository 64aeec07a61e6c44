"""Wakes a thread that waits for a socket."""

from __future__ import annotations

import socket
from contextlib import suppress


class Wake:
    """Something to poll beside the socket. `set` may be called from any thread, and is cheap when it is set."""

    def __init__(self) -> None:
        self._in, self._out = socket.socketpair()
        self._in.setblocking(False)
        self._out.setblocking(False)
        self._is_set = False

    def fileno(self) -> int:
        """What becomes readable."""
        return self._out.fileno()

    def set(self) -> None:
        """Wake the thread, now or when it waits next."""
        if not self._is_set:
            self._is_set = True
            with suppress(OSError):  # closed: nobody waits any more
                self._in.send(b"\0")

    def clear(self) -> None:
        """Be ready for the next; look for work only after this."""
        with suppress(BlockingIOError):
            self._out.recv(4096)
        self._is_set = False

    def close(self) -> None:
        """Give back what it holds."""
        self._in.close()
        self._out.close()
