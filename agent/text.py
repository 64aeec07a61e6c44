"""How times and amounts are written for people. JSON keeps UTC and plain numbers."""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime

TIME_WIDTH = 25
"""Characters of a time as `local_time` writes it."""


def local_time(at: datetime) -> str:
    """Return a time in the zone of this machine, with its offset from UTC: `2026-11-27 10:02:03+01:00`."""
    with suppress(OverflowError, ValueError, OSError):  # the years 1 and 9999 may have no local time
        at = at.astimezone()
    return at.isoformat(" ", "seconds")


def plural(count: int, singular: str, plural: str = "") -> str:
    """Return a count with its noun: `1 device`, `2 devices`.

    Args:
        count: of the things.
        singular: noun for one.
        plural: noun for another number; default: `singular` with an s.
    """
    return f"{count} {singular if count == 1 else plural or f'{singular}s'}"
