"""The heap: gives back to the system what lies free in it, which glibc by itself does at its upper end only.

Starting a stream frees as much as it keeps, such as the file that a model was cut from, and a stream that has
stopped leaves holes. Both are rare, so this is for those moments: it takes milliseconds, and what is used again
has to be had from the system anew. Source: https://man7.org/linux/man-pages/man3/malloc_trim.3.html.
"""

from __future__ import annotations

import ctypes


def trim_heap() -> bool:
    """Give back what is free; whether there was any. False also where the C library is not glibc, as musl."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return trim is not None and bool(trim(ctypes.c_size_t(0)))
