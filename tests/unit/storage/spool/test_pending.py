from __future__ import annotations

import math
import time
from collections.abc import Sequence

import pytest

from agent.config.device import DurabilityConfig, StorageConfig
from agent.storage.spool.pending import LINGER_S, PendingRows
from agent.types import Stored, Will
from tests.support.spooling import TOPIC

KINDS = DurabilityConfig("event", "batch", "memory")


def backlog(config: StorageConfig | None = None) -> PendingRows:
    return PendingRows(config or StorageConfig(), 10)


def seqs(rows: Sequence[Stored]) -> list[int]:
    return [row.seq for row in rows]


def test_a_batch_is_all_that_there_is_and_stays_until_it_is_written() -> None:
    made = backlog()
    made.put(TOPIC, b"1", Will("a", b"end"))
    made.put(TOPIC, b"2", None)
    made.settle(5)
    made.drop(6, "unsendable")
    batch = made.take()
    assert (seqs(batch.insert), batch.settled, batch.delete, batch.given) == ([11, 12], {5}, {6}, 12)
    assert (len(batch.wills), batch.dropped, batch.sync, batch.final) == (1, {"unsendable": 1}, True, False)
    made.committed(batch, done=False)
    assert made.take() == batch
    made.put(TOPIC, b"3", None)
    made.committed(batch, done=True)
    after = made.take()
    assert (seqs(after.insert), after.settled, after.delete, after.wills) == ([13], set(), set(), [])
    assert after.dropped == {}


@pytest.mark.parametrize("keeps", [True, False])
def test_what_is_settled_while_it_is_written_is_noted_after(keeps: bool) -> None:
    made = backlog(StorageConfig(history_max_bytes=1000 if keeps else 0))
    made.put(TOPIC, b"1", None)
    batch = made.take()
    made.settle(11)
    made.put(TOPIC, b"2", None)
    made.settle(12)
    made.committed(batch, done=True)
    after = made.take()
    assert after.settled == ({11, 12} if keeps else {11}), "without a history 12 need not go to the disk"
    assert seqs(after.insert) == ([12] if keeps else [])


def test_while_the_disk_fails_memory_is_for_what_has_not_been_acknowledged() -> None:
    made = backlog()
    for _ in range(3):
        made.put(TOPIC, b"x", None)
    made.settle(12)
    made.committed(made.take(), done=False)
    assert seqs(made.held.all()) == [11, 13]
    assert made.take().settled == set()
    assert made.more == 2


def test_rows_that_go_for_the_bounds_are_counted_once() -> None:
    made = backlog(StorageConfig(spool_max_bytes=3 * (len(TOPIC) + 1)))
    for _ in range(5):
        made.put(TOPIC, b"x", None)
    batch = made.take()
    assert (seqs(batch.insert), batch.dropped) == ([13, 14, 15], {"bytes": 2})
    made.committed(batch, done=True)
    assert made.take().dropped == {}


def test_without_a_disk_nothing_is_kept_for_one() -> None:
    made = backlog(StorageConfig(durability="memory"))
    made.put(TOPIC, b"1", Will("a", b"end"))
    made.settle(11)
    made.settle(5)
    assert (len(made.held), len(made.memory), made.settled, len(made.wills)) == (0, 0, set(), 0)


def test_rows_that_come_back_from_a_disk_are_those_that_are_not_done_with() -> None:
    made = backlog()
    made.settle(3)
    made.put(TOPIC, b"x", None)
    made.restore([Stored(seq, TOPIC, b"x", 0.0) for seq in (2, 3, 4)])
    assert seqs(made.held.all()) == [2, 4, 11]


def test_what_must_be_synced_is_due_at_once_and_holds_up_what_comes_after_it() -> None:
    made = backlog(StorageConfig(durability=KINDS))
    assert made.due_at == math.inf
    made.put(TOPIC, b"update", None, "updates")
    assert time.monotonic() < made.due_at <= time.monotonic() + LINGER_S
    assert made.ready == 11, "it may be sent before it lies on the disk"
    made.put(TOPIC, b"new", None)
    made.put(TOPIC, b"frame", None, "detections")
    assert (made.due_at, made.ready) == (-math.inf, 11)
    batch = made.take()
    assert (seqs(batch.insert), batch.sync) == ([11, 12], True)
    made.put(TOPIC, b"end", None)
    assert made.ready == 11
    made.committed(batch, done=True)
    assert made.ready == 13
    made.committed(made.take(), done=False)
    assert (made.ready, made.due_at) == (13, -math.inf)
    batch = made.take()
    made.committed(batch, done=True)
    assert (batch.sync, made.ready, made.due_at) == (True, 14, math.inf)


def test_wills_of_what_lies_in_memory_only_are_not_made_but_withdrawn() -> None:
    made = backlog(StorageConfig(durability=DurabilityConfig("memory", "event", "memory")))
    made.put(TOPIC, b"new", Will("a", b"end"))
    assert len(made.wills) == 0
    made.put(TOPIC, b"end", Will("a", None))
    assert len(made.wills) == 0
    made.put(TOPIC, b"update", Will("b", b"end"), "updates")
    made.put(TOPIC, b"end", Will("b", None))
    assert [(will.key, will.body) for will in made.wills.all()] == [("b", None)]


def test_at_the_end_what_lies_in_memory_only_is_lost_and_counted() -> None:
    made = backlog(StorageConfig(durability=KINDS))
    made.put(TOPIC, b"frame", None, "detections")
    assert made.take().dropped == {}
    assert made.take(final=True).dropped == {"memory": 1}


def test_many_things_do_not_wait() -> None:
    made = backlog(StorageConfig(durability="batch"))
    for _ in range(999):
        made.put(TOPIC, b"x", None)
    assert made.due_at > 0
    made.settle(1)
    assert made.due_at == -math.inf
