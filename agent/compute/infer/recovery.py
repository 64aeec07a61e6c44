"""Opens a device that something else stands in for, again and again in a thread of its own, until it is right."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable

from agent.compute.infer.worker import WorkerSession
from agent.errors import BackendError, VedetteError, reason_of

log = logging.getLogger(__name__)

_LAST_S = 300.0
_STABLE_S = 60.0
"""A device that answered for so long is tried again soon; one that fails before that, later each time."""


class Recovery:
    """One device. For one thread at a time, but for its own.

    Attributes:
        reason: why it is not there; empty: it is, or will be with the next `take`.
    """

    def __init__(self, opens: Callable[[], WorkerSession], name: str, retry_s: float) -> None:
        """Nothing is opened before `begin`.

        Args:
            opens: gives the device when its answers are right; raises else.
            name: of the device.
            retry_s: pause before it is tried again for the first time, s.
        """
        self.reason = f"{name} is being opened"
        self._opens, self._name, self._retry_s = opens, name, retry_s
        self._ready: WorkerSession | None = None
        self._left: list[WorkerSession] = []
        self._lock, self._closed, self._tried = threading.Lock(), threading.Event(), threading.Event()
        self._pause_s, self._since = 0.0, time.monotonic()

    def begin(self, wait_s: float) -> None:
        """Open it for the first time.

        Args:
            wait_s: how long to wait whether it succeeds, s.
        """
        self._start()
        self._tried.wait(wait_s)

    def lost(self, session: WorkerSession | None, reason: str) -> None:
        """It has failed: try it again some time, and close what is left of it.

        Args:
            session: what is left.
            reason: why.
        """
        if session is not None:
            self._left.append(session)
        stable = time.monotonic() - self._since > _STABLE_S
        self._pause_s = self._retry_s if stable else self._longer()
        self._tell(reason)
        self._start()

    @property
    def has_any(self) -> bool:
        """Whether `take` would give it. Costs nothing."""
        return self._ready is not None

    def take(self) -> WorkerSession | None:
        """The device, once; None: it is not there yet."""
        with self._lock:
            session, self._ready = self._ready, None
        if session is not None:
            log.info("%s %s", self._name, "is back" if self._pause_s else "answers")
            self.reason, self._since = "", time.monotonic()
        return session

    def close(self) -> None:
        """Try no more."""
        with self._lock:
            self._closed.set()
            session, self._ready = self._ready, None
        if session is not None:
            session.close()
        self._drain()
        self._opens = _closed  # whoever refers to this is referred to by it, and large

    def _start(self) -> None:
        threading.Thread(target=self._try, name="recovery", daemon=True).start()

    def _try(self) -> None:
        while not self._closed.wait(self._pause_s):
            self._drain()
            try:
                session = self._opens()
            except Exception as error:
                self._failed(error)
            else:
                self._hand_over(session)
                return

    def _failed(self, error: Exception) -> None:
        """Say it the first time; only `close` may end the trying."""
        if not isinstance(error, VedetteError | OSError):
            log.error("%s: a defect in Vedette", self._name, exc_info=error)
        if self._pause_s:
            self.reason = reason_of(error)
        else:
            self._tell(reason_of(error))
        self._pause_s = self._longer()
        self._tried.set()

    def _tell(self, reason: str) -> None:
        self.reason = reason
        log.warning("%s; the CPU answers until it comes back", reason)

    def _longer(self) -> float:
        return min(_LAST_S, max(self._retry_s, self._pause_s * 2.0))

    def _hand_over(self, session: WorkerSession) -> None:
        with self._lock:
            if not self._closed.is_set():
                self._ready = session
                self._tried.set()
                return
        session.close()

    def _drain(self) -> None:
        """Close what was left, each by one thread only."""
        with contextlib.suppress(IndexError):
            while True:
                self._left.pop().close()


def _closed() -> WorkerSession:
    raise BackendError("closed")
