"""Whether the clock is right: TLS refuses certificates by a wrong one, and a Pi forgets it without power.

Sources: https://man7.org/linux/man-pages/man2/adjtimex.2.html, and systemd-timesyncd.service(8) for its file.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path

from msgspec import Struct

_TIME_ERROR = 5
"""What adjtimex returns of a clock that nobody has set by another."""
_TIMEX = 512
"""Bytes, more than any `struct timex` has: all zero asks, and changes nothing."""


class Clock(Struct, frozen=True):
    """The clock.

    Attributes:
        synchronised: with a time server or the like; None: the kernel does not tell.
        keeps: whether a clock of the hardware goes on without power.
    """

    synchronised: bool | None
    keeps: bool


def ask_kernel() -> int:
    """State of the kernel's clock, as adjtimex returns it; negative: it may not be asked."""
    try:
        return int(ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(_TIMEX)))
    except (OSError, AttributeError):
        return -1


def read_clock(root: Path = Path("/"), ask: Callable[[], int] = ask_kernel) -> Clock:
    """The clock now.

    Args:
        root: of the file system.
        ask: see `ask_kernel`.
    """
    keeps = any(root.glob("sys/class/rtc/rtc*"))
    if (root / "run/systemd/timesync/synchronized").exists():
        return Clock(True, keeps)
    state = ask()
    return Clock(None if state < 0 else state != _TIME_ERROR, keeps)
