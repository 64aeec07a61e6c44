"""Supervised: runs in a thread of its own until it ends or is told to, and is started again when it breaks."""

from __future__ import annotations

import logging
import threading
import time
from typing import Literal

from agent.errors import BackendError, VedetteError

log = logging.getLogger(__name__)

_RESTART_FIRST_S, _RESTART_LAST_S = 1.0, 60.0

State = Literal["starting", "running", "degraded", "lost", "ended", "failed", "disabled"]


class Supervised:
    """What a stream is to those who start and stop it; what it does is in `_run` and `_close`.

    Attributes:
        name: of the stream.
        state: as of itself; while it runs its source may know better.
        detail: why, in a line; empty: nothing is to be said.
    """

    def __init__(self, name: str, state: State) -> None:
        self.name = name
        self.state: State = state
        self.detail = ""
        self._tries_again = False
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._came_round_s = time.monotonic()

    def start(self) -> None:
        """Run in a thread of its own, unless it is disabled or failed."""
        if self.state == "starting":
            self.come_round()
            self._thread = threading.Thread(target=self._supervise, name=f"stream-{self.name}", daemon=True)
            self._thread.start()

    def ask_to_stop(self) -> None:
        """Begin to stop: `join` waits for it."""
        self._stop.set()

    def join(self, timeout_s: float) -> bool:
        """Whether it has stopped in time, with every track ended."""
        if self._thread is not None:
            self._thread.join(timeout_s)
        return self._thread is None or not self._thread.is_alive()

    @property
    def over(self) -> bool:
        """Whether nothing more will come of it."""
        return self.state in ("ended", "failed", "disabled") and not self._tries_again

    @property
    def silent_s(self) -> float:
        """How long its thread has been busy with one and the same thing, s; 0 without one."""
        is_alive = self._thread is not None and self._thread.is_alive()
        return time.monotonic() - self._came_round_s if is_alive else 0.0

    def come_round(self) -> None:
        """For its thread: something is over, the next begins."""
        self._came_round_s = time.monotonic()

    def _run(self) -> None:
        """Run until it ends or `_stop` is set.

        Raises:
            VedetteError: it is broken; after a BackendError it is tried again.
        """
        raise NotImplementedError

    def _close(self) -> None:
        """Give back what a run holds, however that ended."""
        raise NotImplementedError

    def _supervise(self) -> None:
        pause_s = _RESTART_FIRST_S
        while not self._stop.is_set():
            began = time.monotonic()
            self.come_round()
            self._attempt()
            self._close()
            self.come_round()
            if not self._tries_again:
                return
            if time.monotonic() - began > _RESTART_LAST_S:
                pause_s = _RESTART_FIRST_S
            self._stop.wait(pause_s)
            pause_s = min(_RESTART_LAST_S, pause_s * 2)

    def _attempt(self) -> None:
        """Run until the source ends, the stream is told to stop, or something breaks."""
        try:
            self._run()
        except VedetteError as error:
            # Broken input stays broken: a reload or a restart tries it again.
            self._fail(str(error), again=isinstance(error, BackendError))
            log.error("stream %s: %s", self.name, self.detail)
        except Exception as error:
            # A defect in one stream must not take the others with it.
            self._fail(f"{type(error).__name__}: {error}", again=True)
            log.exception("stream %s: a defect in Vedette; starting the stream again", self.name)
        else:
            self._tries_again = False
            self.state, self.detail = "ended", ""

    def _fail(self, detail: str, *, again: bool) -> None:
        self._tries_again = again  # first: a failed stream that does not try again is over
        self.state, self.detail = "failed", detail
