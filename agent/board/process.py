"""This process: signals before the daemon is ready, the heap, stderr, and names of threads.

Sources: https://man7.org/linux/man-pages/man3/mallopt.3.html and malloc_trim.3.html beside it.
"""

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
"""Requests to reload that came before `install_handlers`."""


def block_until_ready() -> None:
    """Handle signals until `install_handlers`: remember a reload, and exit on SIGTERM and SIGINT.

    Also print what each thread was doing if the process is aborted.
    """
    signal.signal(signal.SIGHUP, lambda number, _: _early.append(number))
    for number in ENDING:
        # Nothing is open yet; an exception might be swallowed by what is being imported.
        signal.signal(number, lambda *_: os._exit(0))
    if sys.stderr is not None:
        # A process that systemd's watchdog ends with SIGABRT shows what each thread was doing.
        faulthandler.enable(sys.stderr)


def install_handlers(stop: Callable[[], None], reload: Callable[[], None]) -> None:
    """Install the daemon's handlers, and reload if that was requested before."""
    for number in ENDING:
        signal.signal(number, lambda *_: stop())
    signal.signal(signal.SIGHUP, lambda *_: reload())
    if _early:
        _early.clear()
        reload()


_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
"""Parameters of `mallopt`, as malloc.h defines them."""
_ARENAS = 2
_LARGE_BYTES, _FREE_BYTES = 128 * 1024, 1024 * 1024
"""Blocks of so many bytes are large, as when a program starts; so many free ones may stay at the end of the heap.
A decoder of 1080p that comes and goes has a dozen blocks of 128 to 256 KiB, which would leave holes of 2 MB."""


def limit_malloc_arenas() -> bool:
    """Make all threads share two arenas, unless the environment sets the number. Return True if that worked.

    By default glibc gives nearly every thread an arena, whose free memory no other thread uses. Call this before
    threads start: a thread keeps its arena. Does nothing with other C libraries, such as musl.
    """
    is_set = "MALLOC_ARENA_MAX" in os.environ or _has_tunable("arena_max")
    return not is_set and _set_malloc(_ARENA_MAX, _ARENAS)


def return_large_blocks() -> bool:
    """Have glibc return large blocks to the system when they are freed. Return True if that worked.

    By default it keeps blocks of up to 32 MB in the heap once some have been freed: pictures of eight cameras
    that come and go then leave holes of 140 MB. A large block that is needed again and again should be kept by
    its user: new memory costs a page fault for each 4 KiB. Does nothing where the environment sets the limit.
    """
    is_set = "MALLOC_MMAP_THRESHOLD_" in os.environ or _has_tunable("mmap_threshold")
    if is_set or not _set_malloc(_MMAP_THRESHOLD, _LARGE_BYTES):
        return False
    return _set_malloc(_TRIM_THRESHOLD, _FREE_BYTES)


def _has_tunable(name: str) -> bool:
    return f"glibc.malloc.{name}" in os.environ.get("GLIBC_TUNABLES", "")


def _set_malloc(parameter: int, value: int) -> bool:
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    return set_option is not None and bool(set_option(parameter, value))


def trim_heap() -> bool:
    """Return free memory to the system; return True if there was any. Takes about a millisecond.

    By itself glibc only returns memory at the upper end of the heap. Starting and stopping a stream leaves holes.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return trim is not None and bool(trim(ctypes.c_size_t(0)))


STDERR_TURN = threading.Lock()
"""Lock to hold while file descriptor 2 is redirected: the whole process shares it, and two redirections at once
would restore each other's descriptor."""
_LOWEST = 3
"""Lowest descriptor that is not stdin, stdout or stderr."""


def separate_stderr() -> None:
    """Make `sys.stderr` write to a duplicate of descriptor 2, so that no log is lost while that is redirected.

    Call it before logging or faulthandler use `sys.stderr`. Child processes do not inherit the duplicate. Does
    nothing if the process has no stderr, or no descriptor is free.
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


def show_thread_names() -> None:
    """Show the name of each running thread but the main one in `top -H`; Python does so from 3.14 on."""
    for thread in threading.enumerate():
        if thread is not threading.main_thread():
            with suppress(OSError):  # it has ended
                Path(f"/proc/self/task/{thread.native_id}/comm").write_text(thread.name, encoding="utf-8")


def resident_mb() -> float:
    """Return the resident memory of this process, MB (2^20 bytes).

    Raises:
        OSError: it cannot be read, such as when this process may open no more files.
    """
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0
