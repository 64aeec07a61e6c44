"""Check the sequence numbers of a device: impossible ones, and missing ones."""

from __future__ import annotations

from collections.abc import Sequence

from rows import EventRow, Gap, RejectedRow

_AHEAD = 100_000
"""Numbers by which a message may be ahead of the newest of its device."""
_FAST_S = 86_400
"""Seconds by which a device's clock may be fast. One that knows nothing of its numbers, as with a new card,
begins at the µs of its clock: what is above that and far ahead is forged or broken, and if it counted, nothing
below it would ever be missed. A forged one that is below is found when the device itself goes on: that is a run
that begins lower."""


def sifted(events: Sequence[EventRow], newest: dict[str, int]) -> tuple[list[EventRow], list[RejectedRow]]:
    """Events whose numbers can be, and the others with the reason.

    Args:
        events: in the order in which they came.
        newest: by device, the highest number that was kept; what is kept here is added.
    """
    kept: list[EventRow] = []
    refused: list[RejectedRow] = []
    for one in events:
        seq = newest.get(one.device, one.seq)
        if one.seq > max(seq + _AHEAD, (one.received_at + _FAST_S) * 1e6):
            why = f"its seq is {one.seq}: too far ahead of {seq}, the highest so far, for any device"
            refused.append(RejectedRow(f"{one.device}/{one.stream}", why, one.received_at, one.body))
            continue
        kept.append(one)
        if one.seq >= seq:
            newest[one.device] = one.seq
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
    """Split a gap into the part before the last run that began in it or right behind it, and the lost part."""
    device, first, last, _ = gap
    begins = max([first, *(run for run in runs if run <= last + 1)])
    both = [Gap(device, first, begins - 1, True), Gap(device, begins, last)]
    return [one for one in both if one.first <= one.last]
