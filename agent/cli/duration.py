"""Durations as people write them."""

from __future__ import annotations

import re

import click


def duration(text: str) -> float:
    """Seconds, written `20`, `20s` or `2m`; more than none.

    Raises:
        click.BadParameter: it is written otherwise.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(s|m)?", text)
    seconds = float(found[1]) * (60 if found[2] == "m" else 1) if found else 0.0
    if seconds <= 0.0:
        raise click.BadParameter(f"{text!r} is not a duration: write 20s or 2m")
    return seconds
