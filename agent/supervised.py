"""Supervised: runs in a thread of its own until it ends or is told to, and is started again when it breaks."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from typing import Literal

from agent.errors import BackendError, VedetteError
from agent.text import plural

log = logging.getLogger(__name__)

_RESTART_FIRST_S, _RESTART_LAST_S = 1.0, 60.0
HANGING_MAX = 2
"""Threads of one stream that hang in a library, at most: each holds a model, and a third would hang as well."""
_LOOK_S = 0.2

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
        self._before: Sequence[Supervised] = ()

    def start(self, before: Sequence[Supervised] = ()) -> None:
        """Run in a thread of its own, unless it is disabled or failed.

        Args:
            before: streams that this one replaces and that were left behind. While as many of them hang as
                `_hanging_max` says, it waits.
        """
        if self.state == "starting":
            self.come_round()
            self._before = before
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

    @property
    def _hanging_max(self) -> int:
        """Threads of this stream that may hang before another one begins."""
        return HANGING_MAX

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
        self._wait_for_those_before()
        if self._stop.is_set():
            self._close()  # what was prepared
        else:
            self._attempts()

    def _wait_for_those_before(self) -> None:
        """The watchdog counts this time: what has hung so often may be ended by a restart of the daemon only."""
        while len(self._before) >= self._hanging_max and not self._stop.is_set():
            self.detail = f"waiting for {plural(len(self._before), 'earlier inference')} of this stream to end"
            self._stop.wait(_LOOK_S)
            self._before = [one for one in self._before if not one.join(0.0)]
        self._before = ()
        self.detail = ""

    def _attempts(self) -> None:
        pause_s = _RESTART_FIRST_S
        while True:
            began = time.monotonic()
            self.come_round()
            self._attempt()
            self._close()
            self.come_round()
            if not self._tries_again:
                return
            if time.monotonic() - began > _RESTART_LAST_S:
                pause_s = _RESTART_FIRST_S
            if self._stop.wait(pause_s):
                return
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
