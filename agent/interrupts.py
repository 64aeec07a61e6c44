"""Ctrl-C that Python loses: what a signal raises in a destructor is printed and dropped.

The command line and the processes that it starts are ended by a `KeyboardInterrupt`, by which they put their work
back. In a module of its own, since both need it before anything else is imported.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import CodeType
from typing import Any

_AGAIN_S = 0.01
"""Time after which Ctrl-C that was lost is repeated."""


@contextmanager
def repeated_interrupts() -> Iterator[None]:
    """Repeat a Ctrl-C that Python has lost, as in a destructor or in the callback of a weak reference."""
    before, timers = sys.unraisablehook, list[threading.Timer]()

    def repeat(lost: Any) -> None:
        if not issubclass(lost.exc_type, KeyboardInterrupt):
            before(lost)
            return
        timers.append(threading.Timer(_AGAIN_S, interrupt))
        timers[-1].start()

    def interrupt() -> None:
        main = threading.main_thread().ident
        assert main is not None
        while repeat.__code__ in _running(main):  # what is raised in it is lost again
            time.sleep(_AGAIN_S)
        signal.pthread_kill(main, _raising())

    sys.unraisablehook = repeat
    try:
        yield
    finally:
        sys.unraisablehook = before
        for timer in timers:
            timer.cancel()


def _running(thread: int) -> Iterator[CodeType]:
    """Yield the code that a thread is running, innermost first."""
    frame = sys._current_frames().get(thread)
    while frame is not None:
        yield frame.f_code
        frame = frame.f_back


def _raising() -> signal.Signals:
    """Return the signal that raises a KeyboardInterrupt: a job in the background ignores SIGINT."""
    handler = signal.default_int_handler
    is_ended_by_term = signal.getsignal(signal.SIGINT) is not handler is signal.getsignal(signal.SIGTERM)
    return signal.SIGTERM if is_ended_by_term else signal.SIGINT
