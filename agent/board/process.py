"""Signals of the daemon from the first moment of its process on: the rooms take most of a second to import."""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
from collections.abc import Callable

ENDING = (signal.SIGTERM, signal.SIGINT)

_early: list[int] = []
"""Requests to reload that came before somebody could take them."""


def hold() -> None:
    """Until `pass_on`: remember to reload, and end well when told to; from now on, tell why when ended badly."""
    signal.signal(signal.SIGHUP, lambda number, _: _early.append(number))
    for number in ENDING:
        # Nothing is open yet; an exception might be swallowed by what is being imported.
        signal.signal(number, lambda *_: os._exit(0))
    if sys.stderr is not None:
        # A process that systemd's watchdog ends with SIGABRT shows what each thread was doing.
        faulthandler.enable(sys.stderr)


def pass_on(stop: Callable[[], None], reload: Callable[[], None]) -> None:
    """Make requests of signals, also of those held."""
    for number in ENDING:
        signal.signal(number, lambda *_: stop())
    signal.signal(signal.SIGHUP, lambda *_: reload())
    if _early:
        _early.clear()
        reload()
