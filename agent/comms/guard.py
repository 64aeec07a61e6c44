"""A guard over the handshakes of a connection: they end in time, whatever still drips in byte by byte."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from types import TracebackType
from typing import Self


class Guard:
    """Cuts a connection when its time is over.

    Attributes:
        has_struck: whether it had to.
    """

    def __init__(self, connected: socket.socket, after_s: float) -> None:
        """Begin to watch.

        Args:
            connected: that is to be cut.
            after_s: when, s.
        """
        self._socket = connected.dup()  # TLS takes the other one over
        self.has_struck = False
        self._timer = threading.Timer(after_s, self._strike)
        self._timer.name, self._timer.daemon = "mqtt-guard", True
        self._timer.start()

    def _strike(self) -> None:
        self.has_struck = True
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def end(self) -> None:
        """The handshakes are over."""
        self._timer.cancel()
        self._timer.join()
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()
