"""Receive the notifications of a daemon to systemd, on a real socket, as `NOTIFY_SOCKET` names it."""

from __future__ import annotations

import socket
import time
from types import TracebackType
from typing import Self

from tests.support.publishing import wait_for


class Notified:
    """Keeps every line that is sent, and when it came, s (monotonic)."""

    def __init__(self, address: str) -> None:
        """Listen.

        Args:
            address: a path, or `@` and a name for an abstract one.
        """
        self.address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self._socket.setblocking(False)
        self._heard: list[tuple[float, str]] = []

    @property
    def lines(self) -> list[str]:
        """All that was heard, in its order."""
        return [line for _, line in self.heard]

    @property
    def heard(self) -> list[tuple[float, str]]:
        """Return the messages with their times."""
        while True:
            try:
                datagram = self._socket.recv(65536)
            except BlockingIOError:
                return self._heard
            self._heard += [(time.monotonic(), line) for line in datagram.decode().splitlines()]

    def wait(self, line: str, count: int = 1) -> None:
        """Wait until a line has been heard so many times."""
        wait_for(lambda: self.lines.count(line) >= count)

    def wait_status(self, words: str) -> None:
        """Wait until the newest STATUS has these words."""
        wait_for(lambda: words in next((x for x in reversed(self.lines) if x.startswith("STATUS=")), ""))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()
