from __future__ import annotations

from collections.abc import Sequence

from agent.messages import Stored, Will
from agent.storage.backlog import Backlog
from tests.support.spooling import TOPIC


def backlog(*, has_disk: bool = True, max_bytes: int = 10_000) -> Backlog:
    return Backlog(max_bytes, 10, has_disk=has_disk)


def seqs(rows: Sequence[Stored]) -> list[int]:
    return [row.seq for row in rows]


def test_a_batch_is_all_that_there_is_and_stays_until_it_is_written() -> None:
    made = backlog()
    made.add(TOPIC, b"1", Will("a", b"end"))
    made.add(TOPIC, b"2", None)
    made.settle(5)
    batch = made.take()
    assert (seqs(batch.insert), batch.delete, batch.given, len(batch.wills)) == ([11, 12], {5}, 12, 1)
    made.wrote(batch, done=False)
    assert made.take() == batch
    made.add(TOPIC, b"3", None)
    made.wrote(batch, done=True)
    after = made.take()
    assert (seqs(after.insert), after.delete, after.given, after.wills) == ([13], set(), 13, [])


def test_what_is_settled_while_it_is_written_is_deleted_after() -> None:
    made = backlog()
    made.add(TOPIC, b"1", None)
    batch = made.take()
    made.settle(11)
    made.add(TOPIC, b"2", None)
    made.settle(12)
    made.wrote(batch, done=True)
    assert made.deletions.all() == {11}, "12 has not been on the disk"


def test_rows_that_go_for_the_bounds_are_counted_once() -> None:
    made = backlog(max_bytes=3 * (len(TOPIC) + 1))
    for _ in range(5):
        made.add(TOPIC, b"x", None)
    batch = made.take()
    assert (seqs(batch.insert), batch.dropped) == ([13, 14, 15], 2)
    made.wrote(batch, done=True)
    assert made.dropped == 0


def test_without_a_disk_nothing_is_kept_for_one() -> None:
    made = backlog(has_disk=False)
    made.add(TOPIC, b"1", Will("a", b"end"))
    made.settle(11)
    made.settle(5)
    assert (len(made.held), len(made.deletions), bool(made.wills)) == (0, 0, False)


def test_rows_that_come_back_from_a_disk_are_those_that_are_not_done_with() -> None:
    made = backlog()
    made.settle(3)
    made.add(TOPIC, b"x", None)
    made.restore([Stored(seq, TOPIC, b"x", 0.0) for seq in (2, 3, 4)])
    assert seqs(made.held.all()) == [2, 4, 11]
