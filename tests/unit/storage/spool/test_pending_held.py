"""Rows in memory against a plain dictionary, whatever comes and goes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agent.storage.spool import pending as module
from agent.storage.spool.pending import MemoryRows, size
from agent.types import Stored

TOPIC, BOUND = "t", 3000
ROOM = BOUND // size(Stored(1, TOPIC, bytes(99), 0.0))


def row(seq: int) -> Stored:
    return Stored(seq, TOPIC, bytes(99), 0.0)


@given(
    st.lists(st.tuples(st.sampled_from(["add", "add", "remove", "restore"]), st.integers(1, 60)), max_size=120)
)
def test_what_is_held_is_in_order_and_within_bounds(steps: list[tuple[str, int]]) -> None:
    held, rows, newest = MemoryRows(BOUND), dict[int, Stored](), 1000
    for what, number in steps:
        if what == "add":
            newest += number  # gaps, as a repair makes them
            rows[newest] = row(newest)
            shed = held.add(rows[newest])
            assert shed == sorted(rows)[: max(0, len(rows) - ROOM)]
            for seq in shed:
                del rows[seq]
        elif what == "remove":
            seq = sorted(rows)[number % len(rows)] if rows else number
            assert held.remove(seq) is (rows.pop(seq, None) is not None)
        elif len(rows) < ROOM and (not rows or number < min(rows)):
            rows = {number: row(number), **rows}
            held.restore([rows[number]])
        assert [r.seq for r in held.all()] == sorted(rows)
        assert held.bytes == sum(map(size, rows.values()))
        for after in (0, number, newest - 1, newest):
            assert [r.seq for r in held.after(after, 5)] == [seq for seq in sorted(rows) if seq > after][:5]


def test_the_index_forgets_what_is_gone() -> None:
    held = MemoryRows(10**9)
    for seq in range(1, 10_000):
        held.add(row(seq))
        held.remove(seq)
    assert len(held._index) <= module._SPARE + 1
