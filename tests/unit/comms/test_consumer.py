"""Gaps in the numbers of a device, and which of them are losses."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.comms.consumer import SEQ_END, SequenceGap, SequenceTracker


@pytest.mark.parametrize(
    ("came", "gaps", "lost"),
    [
        ([(7, 1), (8, 1), (9, 1)], [], 0),
        ([(7, 1), (9, 1)], [SequenceGap(8, 8, False)], 1),
        ([(7, 1), (10_001, 10_001)], [SequenceGap(8, 10_000, True)], 0),
        ([(7, 1), (10_003, 10_001)], [SequenceGap(8, 10_000, True), SequenceGap(10_001, 10_002, False)], 2),
        ([(7, 1), (9, 0)], [SequenceGap(8, 8, False)], 1),
        ([(7, 1), (8, 8), (10, 8)], [SequenceGap(9, 9, False)], 1),
        ([(7, 1), (8, 1), (7, 1), (8, 1), (9, 1)], [], 0),
        ([(7, 1), (SEQ_END, 1), (-3, 0), (8, 1)], [], 0),
        ([(7, 1), (9, 99)], [SequenceGap(8, 8, False)], 1),
        ([(70, 60), (71, 60), (10, 9), (12, 9), (70, 60), (13, 9)], [SequenceGap(11, 11, False)], 1),
    ],
    ids=[
        "none",
        "lost",
        "restart",
        "both",
        "not known",
        "later",
        "again",
        "made up",
        "begun later than it came",
        "begun anew below",
    ],
)
def test_a_gap_is_a_loss_unless_a_run_begins_behind_it(
    came: list[tuple[int, int]], gaps: list[SequenceGap], lost: int
) -> None:
    numbers = SequenceTracker()
    assert [gap for one in came for gap in numbers.record(*one)] == gaps
    assert numbers.lost == lost


@given(st.lists(st.tuples(st.integers(0, 5), st.lists(st.booleans(), min_size=1, max_size=5)), max_size=6))
def test_of_many_runs_exactly_what_did_not_come_is_lost(runs: list[tuple[int, list[bool]]]) -> None:
    """Each run begins some numbers above the one before, and each of its messages comes or not."""
    numbers, seq, lost, came = SequenceTracker(), 1, 0, False
    assert numbers.record(1, 1) == []
    for jump, messages in runs:
        first = seq + jump + 1
        missing, came = 0, False
        for offset, comes in enumerate(messages):
            seq = first + offset
            if not comes:
                missing += 1
                continue
            gaps = numbers.record(seq, first)
            assert sum(gap.last - gap.first + 1 for gap in gaps if not gap.restart) == missing
            lost, missing, came = lost + missing, 0, True
        assert came == any(messages)
    assert numbers.lost == lost
