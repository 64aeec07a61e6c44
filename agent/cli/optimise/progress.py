"""Show what a command is doing and how long that still takes: on one line of a terminal, or in a log."""

from __future__ import annotations

import math
import re
import sys
import time

import click

from agent.text import plain

_SILENT_S = 10.0
"""Longest time without a line in a log."""
_told_at = [time.monotonic()]
_COUNTED = re.compile(r"(?P<done>\d+(?:\.\d+)?) (?:of (?P<total>\d+(?:\.\d+)?)|%)")
_OF_A_PART = re.compile(r" of \d+:? [a-z]* ?\d")
"""A count of a count, such as `part 1 of 2 9 %` or `graph 1 of 3: batch 7`: parts may differ in length."""
_EARLY_S = 5.0
"""Time after which what is left is estimated."""


class _Left:
    """Estimates how long a task still takes, from its lines."""

    def __init__(self) -> None:
        self._task, self._done, self._began = "", math.inf, (0.0, 0.0)

    def told(self, what: str, now: float) -> str:
        """Return the time that is left; empty: it is too early, or the line has no count of the whole."""
        counted = _COUNTED.search(what)
        if counted is None or _OF_A_PART.search(what):
            return ""
        task, done = what[: counted.start()].rstrip("[#.] "), float(counted["done"])
        if task != self._task or done < self._done:
            self._began = now, done
        self._task, self._done = task, done
        since, first = self._began
        if done <= first or now - since < _EARLY_S:
            return ""
        seconds = (now - since) * (float(counted["total"] or 100) - done) / (done - first)
        amount = f"{seconds / 60:.0f} min" if seconds >= 180 else f"{seconds:.0f} s"
        return f", about {amount} left" if seconds else ""


_left = _Left()


def show_progress(what: str) -> None:
    """Show on one terminal line what is being done, and how long that still takes; an empty text clears it.

    In a log there is a line where nothing was told for 10 s.
    """
    now = time.monotonic()
    told = plain(what) + _left.told(what, now)
    if sys.stderr.isatty():
        click.echo(f"\r\x1b[K{f'{told} …' if what else ''}", err=True, nl=False)
        return
    is_due = bool(what) and now - _told_at[0] >= _SILENT_S
    if is_due:
        click.echo(f"{told} …", err=True)
    if is_due or not what:
        _told_at[0] = now


def tell(line: str) -> None:
    """Print a line to stderr, in place of the progress."""
    show_progress("")
    click.echo(plain(line), err=True)
