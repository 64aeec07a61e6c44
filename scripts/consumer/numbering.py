"""What the numbers of a device tell: which cannot be, and which have not come."""

from __future__ import annotations

from collections.abc import Sequence

from rows import EventRow, Gap, RejectedRow

_AHEAD, _AHEAD_PER_S = 100_000, 10_000
"""Numbers by which a message may be ahead of the newest of its device: so many at once, and so many more for each
second since that came. No device gives out more: it makes some thousand events a second at best, and one that is
cut off again and again goes 10,000 up each time, which takes it longer than a second. What is further ahead is
forged or broken, and if it counted, nothing below it would ever be missed. The bound grows, so that it shuts no
device out for good."""


def sifted(
    events: Sequence[EventRow], newest: dict[str, tuple[int, float]]
) -> tuple[list[EventRow], list[RejectedRow]]:
    """Events whose numbers can be, and the others with the reason.

    Args:
        events: in the order in which they came.
        newest: by device, the highest number that was kept, and when it came; what is kept here is added.
    """
    kept: list[EventRow] = []
    refused: list[RejectedRow] = []
    for one in events:
        seq, at = newest.get(one.device, (one.seq, one.received_at))
        if one.seq - seq > _AHEAD + _AHEAD_PER_S * max(0.0, one.received_at - at):
            why = f"its seq is {one.seq}: too far ahead of {seq}, the highest so far, for any device"
            refused.append(RejectedRow(f"{one.device}/{one.stream}", why, one.received_at, one.body))
            continue
        kept.append(one)
        if one.seq >= seq:
            newest[one.device] = one.seq, one.received_at
    return kept, refused


def walk(
    device: str, mark: int, rows: Sequence[tuple[int, float]], before: float, runs: Sequence[int] = ()
) -> tuple[int, list[Gap]]:
    """How far numbers can be followed from a mark, and the gaps on the way.

    Args:
        device: whose.
        mark: the number to begin after.
        rows: numbers above it with the time of their arrival, in order.
        before: a gap whose end came later than this may still fill, since other consumers have their share of the
            messages: it stops there.
        runs: numbers with which runs of the device began.
    """
    gaps: list[Gap] = []
    for seq, received_at in rows:
        if seq > mark + 1:
            if received_at > before:
                break
            gaps += parts(Gap(device, mark + 1, seq - 1), runs)
        mark = seq
    return mark, gaps


def parts(gap: Gap, runs: Sequence[int]) -> list[Gap]:
    """What of a gap lies before the last run that began in it or right behind it, and what was lost."""
    device, first, last, _ = gap
    begins = max([first, *(run for run in runs if run <= last + 1)])
    both = [Gap(device, first, begins - 1, True), Gap(device, begins, last)]
    return [one for one in both if one.first <= one.last]
