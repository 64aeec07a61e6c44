"""Catch what native libraries write to file descriptor 2, and log it."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from agent.stderr import STDERR_TURN

_kept = threading.Event()
_TURN_S = 1.0
"""Longest wait for another thread that redirects descriptor 2, s: PortAudio may hang while it does."""


def keep_stderr() -> None:
    """From now on leave descriptor 2 where it is: for a process whose descriptor 2 is a log of its own."""
    _kept.set()


@contextmanager
def native_stderr(log: logging.Logger) -> Iterator[None]:
    """Send what is written to descriptor 2 to `log` at debug level, until the context ends.

    Where another thread redirects descriptor 2 for longer than `_TURN_S`, leave it alone and catch nothing.
    What Vedette logs meanwhile is not caught: see `agent.stderr.separate_stderr`.
    """
    if _kept.is_set() or not STDERR_TURN.acquire(timeout=_TURN_S):
        yield
        return
    try:
        with _redirected(log):
            yield
    finally:
        STDERR_TURN.release()


@contextmanager
def _redirected(log: logging.Logger) -> Iterator[None]:
    with tempfile.TemporaryFile() as caught:
        if sys.stderr is not None:
            sys.stderr.flush()
        saved = os.dup(2)
        os.dup2(caught.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            caught.seek(0)
            for line in caught.read().decode(errors="replace").splitlines():
                log.debug("%s", line)
