"""A slow line between two programs on the loopback: a port that passes a bounded rate on to another."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress
from types import TracebackType
from typing import Self

_HOST = "127.0.0.1"
_BUFFER = 2048
"""Bytes that the line holds itself: what waits, waits at its sender."""
_PIECES_PER_S = 20


class SlowLink:
    """Listens on `port`, in threads of its own, until its `with` ends.

    Attributes:
        port: to connect to, instead of the target's.
        bytes_per_s: in each direction of each connection; may be changed at any time.
    """

    def __init__(self, target: int, bytes_per_s: float) -> None:
        self._target, self.bytes_per_s = target, bytes_per_s
        self._listener = socket.socket()
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
        self._listener.bind((_HOST, 0))
        self._listener.listen()
        self.port: int = self._listener.getsockname()[1]
        self._sockets: list[socket.socket] = []

    def _accept(self) -> None:
        while True:
            try:
                ours, _ = self._listener.accept()
                theirs = socket.create_connection((_HOST, self._target), 1.0)
            except OSError:
                return
            theirs.settimeout(None)
            for sock in (ours, theirs):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._sockets += [ours, theirs]
            for one, other in ((ours, theirs), (theirs, ours)):
                threading.Thread(target=self._pass_on, args=(one, other), name="slow-link", daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket) -> None:
        free_at = time.monotonic()
        with suppress(OSError):
            while data := source.recv(max(1, round(self.bytes_per_s / _PIECES_PER_S))):
                free_at = max(free_at, time.monotonic()) + len(data) / self.bytes_per_s
                time.sleep(max(0.0, free_at - time.monotonic()))
                target.sendall(data)
        for sock in (source, target):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, name="slow-link-accept", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for sock in (self._listener, *self._sockets):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()
