"""Events that wait for others to share a sync: none is lost or overtaken, none waits for longer than allowed."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.config import Durability, StorageConfig
from agent.storage.spool.pending import LINGER_S, Commit, PendingRows
from agent.storage.spool.spool import Spool
from agent.storage.spool.table import SpoolTable
from tests.support.publishing import wait_for
from tests.support.spooling import TOPIC, numbers

CLOCK = "agent.storage.spool.pending.time.monotonic"
intervals = st.sampled_from([0.0, 0.1, 0.5, 2.0])
steps = st.lists(
    st.one_of(
        st.just("put"), st.floats(0.0, 1.0), intervals.map(lambda one: ("interval", one)), st.just("failure")
    ),
    max_size=60,
)


class Writer:
    """Writes what is due, as the spool's thread does; a commit takes no time.

    Attributes:
        written: rows by number, with the time of writing.
    """

    def __init__(self, pending: PendingRows) -> None:
        self._pending, self.written, self.fails = pending, dict[int, float](), False

    def run(self, until_s: float, now_s: float) -> float:
        """Write until a time; return the time."""
        while True:
            with patch(CLOCK, return_value=now_s):
                due_s = self._pending.due_at
            if due_s > until_s:
                return until_s
            now_s = max(now_s, due_s)
            with patch(CLOCK, return_value=now_s):
                commit = self._pending.start_commit()
                self._pending.finish_commit(commit, done=not self.fails)
            if self.fails:
                self.fails = False
                continue
            self.written |= {row.seq: now_s for row in commit.insert}


@given(steps)
def test_no_event_is_lost_or_overtaken_and_none_waits_for_longer_than_the_interval(
    steps: Sequence[object],
) -> None:
    pending, now_s, interval_s = PendingRows(StorageConfig(), 0), 100.0, 0.0
    writer, latest = Writer(pending), dict[int, float]()
    for step in steps:
        if step == "put":
            with patch(CLOCK, return_value=now_s):
                pending.put(TOPIC, b"x", None)
            latest[pending.given] = now_s + interval_s
        elif step == "failure":
            writer.fails = True
        elif isinstance(step, tuple):
            longer_s = max(0.0, step[1] - interval_s)
            interval_s = step[1]
            pending.set_sync_interval(interval_s)
            latest = {seq: at + longer_s * (seq not in writer.written) for seq, at in latest.items()}
        elif isinstance(step, float):
            now_s = writer.run(now_s + step, now_s)
        assert pending.ready == max(writer.written, default=0), "what may be sent lies on the disk"
    writer.run(now_s + LINGER_S, now_s)
    assert list(writer.written) == list(range(1, pending.given + 1))
    assert all(at <= latest[seq] + 1e-6 for seq, at in writer.written.items())


def test_a_longer_wait_makes_fewer_syncs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool, commits = Spool(tmp_path, StorageConfig()), list[Commit]()
    real = SpoolTable.commit

    def commit(table: SpoolTable, changes: Commit) -> None:
        commits.append(changes)
        real(table, changes)

    monkeypatch.setattr(SpoolTable, "commit", commit)
    spool.set_sync_interval(2.0)
    for _ in range(20):
        spool.put(TOPIC, b"{}")
        time.sleep(0.01)
    wait_for(lambda: len(numbers(spool)) == 20)
    assert 1 <= sum(bool(one.insert) for one in commits) <= 3
    assert all(one.sync for one in commits if one.insert)
    spool.close()


def test_a_flush_a_shorter_interval_and_the_end_wait_for_nothing(tmp_path: Path) -> None:
    spool = Spool(tmp_path, StorageConfig())
    spool.set_sync_interval(math.inf)
    spool.put(TOPIC, b"{}")
    assert not numbers(spool)
    assert spool.flush(60.0)
    assert len(numbers(spool)) == 1
    spool.put(TOPIC, b"{}")
    spool.set_sync_interval(math.nan)
    wait_for(lambda: len(numbers(spool)) == 2)
    spool.set_sync_interval(LINGER_S)
    spool.put(TOPIC, b"{}")
    spool.close()
    reopened = Spool(tmp_path, StorageConfig())
    assert len(numbers(reopened)) == 3
    reopened.close()


def test_the_load_of_a_disk_is_the_time_of_its_commits_and_the_delay_of_the_oldest_event(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = Spool(tmp_path, StorageConfig())
    assert (spool.load().commit_ms, spool.load().waiting_s) == (None, 0.0)
    hangs, goes_on, real = threading.Event(), threading.Event(), SpoolTable.commit

    def commit(table: SpoolTable, changes: Commit) -> None:
        hangs.set()
        goes_on.wait(60.0)
        real(table, changes)

    monkeypatch.setattr(SpoolTable, "commit", commit)
    spool.put(TOPIC, b"{}")
    assert hangs.wait(60.0)
    wait_for(lambda: spool.load().waiting_s > 0.3)  # since the event came, a moment before its commit began
    goes_on.set()
    wait_for(lambda: spool.load().waiting_s == 0.0)
    assert (spool.load().commit_ms or 0.0) >= 200.0
    spool.close()


@pytest.mark.parametrize("durability", ["event", "batch"])
def test_what_may_wait_and_what_is_only_acknowledged_is_not_late(durability: Durability) -> None:
    pending = PendingRows(StorageConfig(durability=durability), 0)
    pending.set_sync_interval(2.0)
    with patch(CLOCK, return_value=100.0):
        pending.settle(1)
        pending.put(TOPIC, b"x", None)
    may_wait_s = {"event": 2.0, "batch": 2.0 * LINGER_S}[durability]
    assert pending.late_s(100.0 + may_wait_s) == 0.0
    assert pending.late_s(103.0 + may_wait_s) == pytest.approx(3.0)
    with patch(CLOCK, return_value=102.0):
        commit = pending.start_commit()
    assert pending.late_s(105.0) == pytest.approx(3.0), "the disk hangs"
    pending.finish_commit(commit, done=True)
    assert pending.late_s(1000.0) == 0.0
    with patch(CLOCK, return_value=1000.0):
        pending.settle(2)
    assert pending.late_s(2000.0) == 0.0
