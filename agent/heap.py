"""The heap of the process: how threads share it, and giving back to the system what lies free in it.

glibc gives nearly every thread an arena of its own, and what is free in one no other uses. Threads here come and
go with streams and compute in libraries, so two arenas do. And it gives back by itself at the upper end only.
Starting a stream frees as much as it keeps, such as the file that a model was cut from, and a stream that has
stopped leaves holes. Both are rare, so it is done at those moments: it takes about a millisecond, and what is
used again has to be had from the system anew. Other C libraries, such as musl, have neither and are left alone.
Sources: https://man7.org/linux/man-pages/man3/mallopt.3.html and malloc_trim.3.html beside it.
"""

from __future__ import annotations

import ctypes
import os

_ARENA_MAX, _ARENAS = -8, 2
"""Of `mallopt`: M_ARENA_MAX, which malloc.h defines; and how many there may be."""


def share_arenas() -> bool:
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
