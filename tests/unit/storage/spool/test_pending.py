from __future__ import annotations

import math
import time
from collections.abc import Iterable

import pytest

from agent.config import StorageConfig
from agent.storage.spool.pending import LINGER_S, PendingRows
from agent.types import OpenTrack, Stored
from tests.support.spooling import TOPIC


def pending(config: StorageConfig | None = None) -> PendingRows:
    return PendingRows(config or StorageConfig(), 10)


def seqs(rows: Iterable[Stored]) -> list[int]:
    return [row.seq for row in rows]


def test_a_batch_is_all_that_there_is_and_stays_until_it_is_written() -> None:
    made = pending()
    made.put(TOPIC, b"1", OpenTrack("a", b"end"))
    made.put(TOPIC, b"2", None)
    made.settle(5)
    made.drop(6)
    batch = made.start_commit()
    assert (seqs(batch.insert), batch.settled, batch.delete, batch.given) == ([11, 12], {5}, {6}, 12)
    assert (len(batch.tracks), batch.dropped, batch.sync, batch.final) == (1, {"unsendable": 1}, True, False)
    made.finish_commit(batch, done=False)
    assert made.start_commit() == batch
    made.put(TOPIC, b"3", None)
    made.finish_commit(batch, done=True)
    after = made.start_commit()
    assert (seqs(after.insert), after.settled, after.delete, after.tracks) == ([13], set(), set(), [])
    assert after.dropped == {}


@pytest.mark.parametrize("keeps", [True, False])
def test_what_is_settled_while_it_is_written_is_noted_after(keeps: bool) -> None:
    made = pending(StorageConfig(history_max_bytes=1000 if keeps else 0))
    made.put(TOPIC, b"1", None)
    batch = made.start_commit()
    made.settle(11)
    made.put(TOPIC, b"2", None)
    made.settle(12)
    made.finish_commit(batch, done=True)
    after = made.start_commit()
    assert after.settled == ({11, 12} if keeps else {11}), "without a history 12 need not go to the disk"
    assert seqs(after.insert) == ([12] if keeps else [])


def test_while_the_disk_fails_memory_is_for_what_has_not_been_acknowledged() -> None:
    made = pending()
    for _ in range(3):
        made.put(TOPIC, b"x", None)
    made.settle(12)
    made.finish_commit(made.start_commit(), done=False)
    assert list(made.rows) == [11, 13]
    assert made.start_commit().settled == set()
    assert made.row_delta == 2


def test_rows_that_go_for_the_bounds_are_counted_once() -> None:
    made = pending(StorageConfig(spool_max_bytes=3 * (len(TOPIC) + 1)))
    for _ in range(5):
        made.put(TOPIC, b"x", None)
    batch = made.start_commit()
    assert (seqs(batch.insert), batch.dropped) == ([13, 14, 15], {"bytes": 2})
    made.finish_commit(batch, done=True)
    assert made.start_commit().dropped == {}


def test_rows_that_come_back_from_a_disk_are_those_that_are_not_done_with() -> None:
    made = pending()
    made.settle(3)
    made.put(TOPIC, b"x", None)
    made.restore([Stored(seq, TOPIC, b"x", 0.0) for seq in (2, 3, 4)])
    assert list(made.rows) == [2, 4, 11]


def test_what_must_be_synced_is_due_at_once_and_holds_up_what_comes_after_it() -> None:
    made = pending()
    assert made.due_at == math.inf
    made.put(TOPIC, b"new", None)
    made.put(TOPIC, b"next", None)
    assert (made.due_at, made.ready) == (-math.inf, 10)
    batch = made.start_commit()
    assert (seqs(batch.insert), batch.sync) == ([11, 12], True)
    made.finish_commit(batch, done=False)
    assert (made.ready, made.due_at) == (10, -math.inf)
    batch = made.start_commit()
    made.finish_commit(batch, done=True)
    assert (batch.sync, made.ready, made.due_at) == (True, 12, math.inf)


def test_a_batch_may_be_sent_before_it_is_on_the_disk() -> None:
    made = pending(StorageConfig(durability="batch"))
    before_s = time.monotonic()
    made.put(TOPIC, b"patient", None)
    assert before_s + LINGER_S <= made.due_at <= time.monotonic() + LINGER_S
    assert made.ready == 11
    assert not made.start_commit().sync


def test_many_things_do_not_wait() -> None:
    made = pending(StorageConfig(durability="batch"))
    for _ in range(999):
        made.put(TOPIC, b"x", None)
    assert made.due_at > 0
    made.settle(1)
    assert made.due_at == -math.inf
