"""The numbers of one device's messages: which of them have not come, and which were never given out.

A daemon that was cut off begins its next run above every number that it may have given out, and tells with each
message what number its run began with. So a gap before that number is no loss on the way: what lies in it was
never given out, or lay in the device's memory only. See `agent.storage.watermark`.

A device with a new card begins at its clock, above all that it had before, unless the clock is wrong. So a run
that was not heard of yet and begins lower is such a one, and what comes is counted from there.
"""

from __future__ import annotations

from typing import NamedTuple

LARGEST = 1 << 63
"""No number is."""
_MOST = 1000
"""Runs that are known, the newest."""


class Gap(NamedTuple):
    """Numbers that have not come.

    Attributes:
        first, last: of them.
        restart: whether the device began anew behind them; else they were lost on the way.
    """

    first: int
    last: int
    restart: bool


class Numbers:
    """Of one device, as they come.

    Attributes:
        lost: how many were lost on the way, since the first that came.
    """

    def __init__(self) -> None:
        self._run, self.lost = 0, 0
        self._newest: dict[int, int] = {}  # by what a run began with

    def take(self, seq: int, first_seq: int) -> list[Gap]:
        """Take note of a message; gives the gap before it, in two parts where it is of two kinds.

        What comes again, or late, is no news: numbers are sent in their order. A run that begins lower than what
        there was leaves no gap: what was before its first message is not known.

        Args:
            seq: its number.
            first_seq: what its run began with; 0: not known.
        """
        run = first_seq if 0 < first_seq <= seq else self._run
        known = self._newest.get(run)
        if not (known or 0) < seq < LARGEST:
            return []
        expected = (self._newest.get(self._run, 0) if known is None else known) + 1
        self._note(run, seq)
        if expected == 1 or seq < expected:  # nobody knows what was before the first one
            return []
        begins = first_seq if expected < first_seq <= seq else expected
        gaps = [Gap(expected, begins - 1, True), Gap(begins, seq - 1, False)]
        found = [gap for gap in gaps if gap.first <= gap.last]
        self.lost += sum(gap.last - gap.first + 1 for gap in found if not gap.restart)
        return found

    def _note(self, run: int, seq: int) -> None:
        self._newest.pop(run, None)
        self._run, self._newest[run] = run, seq
        if len(self._newest) > _MOST:
            del self._newest[next(iter(self._newest))]
