"""Signals of the daemon from the first moment of its process on: the rooms take most of a second to import."""

from __future__ import annotations

import ctypes
import faulthandler
import fcntl
import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

ENDING = (signal.SIGTERM, signal.SIGINT)

_early: list[int] = []
"""Requests to reload that came before somebody could take them."""


def block_until_ready() -> None:
    """Until `install_handlers`: remember to reload, end well when told to, and tell why when ended badly."""
    signal.signal(signal.SIGHUP, lambda number, _: _early.append(number))
    for number in ENDING:
        # Nothing is open yet; an exception might be swallowed by what is being imported.
        signal.signal(number, lambda *_: os._exit(0))
    if sys.stderr is not None:
        # A process that systemd's watchdog ends with SIGABRT shows what each thread was doing.
        faulthandler.enable(sys.stderr)


def install_handlers(stop: Callable[[], None], reload: Callable[[], None]) -> None:
    """Make requests of signals, also of those held."""
    for number in ENDING:
        signal.signal(number, lambda *_: stop())
    signal.signal(signal.SIGHUP, lambda *_: reload())
    if _early:
        _early.clear()
        reload()


# The heap of the process: how threads share it, and giving back to the system what lies free in it.
#
# glibc gives nearly every thread an arena of its own, and what is free in one no other uses. Threads here come
# and go with streams and compute in libraries, so two arenas do. And it gives back by itself at the upper end
# only. Starting a stream frees as much as it keeps, such as the file that a model was cut from, and a stream that
# has stopped leaves holes. Both are rare, so it is done at those moments: it takes about a millisecond, and what
# is used again has to be had from the system anew. Other C libraries, such as musl, have neither and are left
# alone. Sources: https://man7.org/linux/man-pages/man3/mallopt.3.html and malloc_trim.3.html beside it.

_ARENA_MAX, _ARENAS = -8, 2
"""Parameters of `mallopt`: M_ARENA_MAX as malloc.h defines it, and the number of arenas allowed."""


def limit_malloc_arenas() -> bool:
    """Have all threads share two arenas, unless the environment says how many; whether they will.

    For the time before there are threads: those that have an arena keep it.
    """
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    said = "MALLOC_ARENA_MAX" in os.environ or "glibc.malloc.arena_max" in os.environ.get("GLIBC_TUNABLES", "")
    return set_option is not None and not said and bool(set_option(_ARENA_MAX, _ARENAS))


def trim_heap() -> bool:
    """Give back what is free; whether there was any."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return trim is not None and bool(trim(ctypes.c_size_t(0)))


# File descriptor 2 belongs to the whole process, and native libraries write to it as they please.
#
# Modules that redirect it for a moment hold `STDERR_TURN`: two at the same time would restore each other's
# descriptor, and stderr would stay lost. What Vedette itself says goes to a descriptor of its own, which nobody
# redirects.

STDERR_TURN = threading.Lock()
_LOWEST = 3
"""Descriptors below are stdin, stdout and stderr, also where the process was started without them."""


def separate_stderr() -> None:
    """Make `sys.stderr` write to a duplicate of descriptor 2, which programs that we start do not inherit.

    Logging, tracebacks of threads and faulthandler use `sys.stderr`: nothing of theirs is lost while descriptor 2
    is redirected. Call it before any of them. Does nothing where the process has no stderr, or no descriptor is
    free.
    """
    before = sys.stderr
    if before is None:
        return
    try:
        before.flush()
        own = fcntl.fcntl(before.fileno(), fcntl.F_DUPFD_CLOEXEC, _LOWEST)
    except (OSError, ValueError):
        return
    sys.stderr = os.fdopen(own, "w", buffering=1, encoding=before.encoding, errors=before.errors, closefd=False)


# Names of threads for `top -H` and the like, where Python does not give them by itself: before 3.14.


def show_thread_names() -> None:
    """Give every thread that runs its name in Python, 15 letters of it; the main one keeps the program's."""
    for thread in threading.enumerate():
        if thread is not threading.main_thread():
            with suppress(OSError):  # it has ended
                Path(f"/proc/self/task/{thread.native_id}/comm").write_text(thread.name, encoding="utf-8")
