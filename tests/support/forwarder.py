"""A line between two programs on the loopback that can be cut: a port that passes everything on to another."""

from __future__ import annotations

import select
import socket
import threading
from contextlib import suppress
from types import TracebackType
from typing import Self

from tests.support.mosquitto import HOST


class Forwarder:
    """Listens on `port`, in a thread of its own, until its `with` ends.

    Attributes:
        port: to connect to, instead of the target's.
    """

    def __init__(self, target: int) -> None:
        self._target = target
        self._listener = socket.create_server((HOST, 0))
        self.port: int = self._listener.getsockname()[1]
        self._pairs: dict[socket.socket, socket.socket] = {}
        self._whole, self._over = threading.Event(), threading.Event()
        self._whole.set()
        self._thread = threading.Thread(target=self._run, name="forwarder", daemon=True)

    def cut(self) -> None:
        """Nothing passes any more, and nobody is told: connections stay open and silent."""
        self._whole.clear()

    def mend(self) -> None:
        """New connections pass. Those from before are closed, as by a router that has forgotten them."""
        self._whole.set()

    def _run(self) -> None:
        was_cut = False
        while not self._over.is_set():
            if not self._whole.wait(0.05):
                was_cut = True
                continue
            if was_cut:
                was_cut = False
                for sock in list(self._pairs):
                    self._close(sock)
            ready, _, _ = select.select([self._listener, *self._pairs], [], [], 0.05)
            for sock in ready:
                self._accept() if sock is self._listener else self._pass_on(sock)

    def _accept(self) -> None:
        ours, _ = self._listener.accept()
        try:
            theirs = socket.create_connection((HOST, self._target), 1.0)
        except OSError:
            ours.close()
            return
        self._pairs |= {ours: theirs, theirs: ours}

    def _pass_on(self, sock: socket.socket) -> None:
        if sock not in self._pairs:
            return
        try:
            if data := sock.recv(65536):
                self._pairs[sock].sendall(data)
                return
        except OSError:
            pass
        self._close(sock)

    def _close(self, sock: socket.socket) -> None:
        other = self._pairs.pop(sock, None)
        for one in (sock, other):
            if one is not None:
                self._pairs.pop(one, None)
                with suppress(OSError):
                    one.close()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._whole.set()
        self._thread.join(60)
        for sock in list(self._pairs):
            self._close(sock)
        self._listener.close()
