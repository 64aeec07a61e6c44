"""The numbers of one device's messages: which of them have not come, and which were never given out.

A daemon that was cut off begins its next run above every number that it may have given out, and tells with each
message what number its run began with. So a gap before that number is no loss on the way: what lies in it was
never given out, or lay in the device's memory only. See `agent.storage.watermark`.
"""

from __future__ import annotations

from typing import NamedTuple

LARGEST = 1 << 63
"""No number is."""


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
        self._last, self.lost = 0, 0

    def take(self, seq: int, first_seq: int) -> list[Gap]:
        """Take note of a message; gives the gap before it, in two parts where it is of two kinds.

        What comes again, or late, is no news: numbers are sent in their order.

        Args:
            seq: its number.
            first_seq: what its run began with; 0: not known.
        """
        if not self._last < seq < LARGEST:
            return []
        expected, self._last = self._last + 1, seq
        if expected == 1:  # nobody knows what was before the first one
            return []
        begins = first_seq if expected < first_seq <= seq else expected
        gaps = [Gap(expected, begins - 1, True), Gap(begins, seq - 1, False)]
        found = [gap for gap in gaps if gap.first <= gap.last]
        self.lost += sum(gap.last - gap.first + 1 for gap in found if not gap.restart)
        return found
