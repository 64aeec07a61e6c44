"""Durations as people write them."""

from __future__ import annotations

import re
import time
from datetime import datetime

import click

_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


def duration(text: str) -> float:
    """Seconds, written `20`, `20s`, `2m`, `3h` or `7d`; more than none.

    Raises:
        click.BadParameter: it is written otherwise.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", text)
    seconds = float(found[1]) * _UNITS[found[2]] if found else 0.0
    if seconds <= 0.0:
        raise click.BadParameter(f"{text!r} is not a duration: write 20s or 2m")
    return seconds


def moment(text: str) -> float:
    """Unix time, s: so long ago, see `duration`, or a date or time of ISO 8601, local where it names no zone.

    Raises:
        click.BadParameter: it is neither.
    """
    try:
        return time.time() - duration(text)
    except click.BadParameter:
        pass
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError, OSError):
        raise click.BadParameter(f"{text!r} is no time: write 2h, 7d, 2026-11-25 or 2026-11-25T08:30") from None
