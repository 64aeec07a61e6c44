from __future__ import annotations

import errno
import functools
import shutil
import sqlite3
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from agent.config import Durability, StorageConfig
from agent.storage.spool import disk, pending
from agent.storage.spool.pending import Commit, Reason
from agent.storage.spool.recovery import History
from agent.storage.spool.spool import Spool, SpoolStats
from agent.storage.spool.table import Counts, SpoolTable
from agent.types import Stored
from tests.support.publishing import from_one, wait_for
from tests.support.spooling import IMPATIENT, TOPIC, errors, filled, numbers, reopened

pytestmark = pytest.mark.usefixtures("counts_from_one")


def test_what_was_put_is_there_in_order_and_after_a_restart(tmp_path: Path) -> None:
    before = time.time()
    opened = filled(tmp_path, 10)
    rows = opened.peek(0, 100)
    assert [(row.seq, row.topic, row.body) for row in rows] == [(n + 1, TOPIC, b"%d" % n) for n in range(10)]
    assert before <= rows[0].put_at <= time.time()
    assert numbers(opened, 3, 4) == [4, 5, 6, 7]
    opened.settle([1, 3, 99])
    assert numbers(opened) == [2, 4, 5, 6, 7, 8, 9, 10]
    again = reopened(opened, tmp_path)
    assert numbers(again) == [2, 4, 5, 6, 7, 8, 9, 10]
    assert again.stats() == SpoolStats(8, 8 * len(TOPIC) + 8, 0, "disk", {})
    again.close()


def test_numbers_go_on_when_everything_was_delivered(tmp_path: Path) -> None:
    opened = filled(tmp_path, 5)
    opened.settle(range(1, 6))
    opened = reopened(opened, tmp_path)
    assert opened.stats().waiting == 0
    opened.put(TOPIC, b"x")
    assert opened.flush(60.0)
    assert numbers(opened) == [6]
    opened.close()


def test_a_put_waits_for_no_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = filled(tmp_path, 1)
    stuck, commit = threading.Event(), SpoolTable.commit

    def slow(self: SpoolTable, batch: Commit) -> None:
        stuck.wait(60.0)
        commit(self, batch)

    monkeypatch.setattr(SpoolTable, "commit", slow)
    for _ in range(1000):
        opened.put(TOPIC, b"x")
    assert not stuck.is_set()
    assert not opened.flush(0.05)
    assert numbers(opened) == [1], "what is not committed is not shown"
    stuck.set()
    assert opened.flush(60.0)
    assert numbers(opened) == list(range(1, 1002))
    opened.close()


def test_puts_that_come_together_share_a_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commits: list[int] = []
    commit = SpoolTable.commit

    def count(self: SpoolTable, batch: Commit) -> None:
        commits.append(len(batch.insert))
        commit(self, batch)

    monkeypatch.setattr(SpoolTable, "commit", count)
    opened = filled(tmp_path, 2000)
    assert len(commits) < 200
    count_before = len(commits)
    for number in range(1, 500):
        opened.settle([number])
    time.sleep(0.1)
    assert len(commits) == count_before, "acknowledgements wait for company"
    opened.put(TOPIC, b"x")
    assert opened.flush(60.0)
    assert len(commits) == count_before + 1
    opened.settle(range(500, 1600))
    wait_for(lambda: len(commits) == count_before + 2)
    opened.settle([1600])
    wait_for(lambda: len(commits) == count_before + 3)
    opened.close()


@pytest.mark.parametrize(("durability", "level"), [("event", 2), ("batch", 1)])
def test_events_are_synced_as_configured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, durability: Durability, level: int
) -> None:
    seen: list[int] = []
    note = SpoolTable._write_counters

    def look(self: SpoolTable, tally: Counts, given: int, dropped: Mapping[Reason, int]) -> Counts:
        seen.append(self._writer.execute("PRAGMA synchronous").fetchone()[0])
        return note(self, tally, given, dropped)

    monkeypatch.setattr(SpoolTable, "_write_counters", look)
    opened = filled(tmp_path, 1, StorageConfig(durability=durability))
    assert seen == [level]
    opened.close()


def test_a_batch_is_sent_before_it_is_written_and_what_was_delivered_by_then_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pending, "LINGER_S", 0.3)
    written: list[Commit] = []
    commit = SpoolTable.commit

    def note(self: SpoolTable, batch: Commit) -> None:
        written.append(batch)
        commit(self, batch)

    monkeypatch.setattr(SpoolTable, "commit", note)
    opened = Spool(tmp_path, StorageConfig(durability="batch", history_max_bytes=0))
    seen: list[int] = []
    opened.on_stored(lambda: seen.extend(numbers(opened)))
    opened.put(TOPIC, b"delivered")
    wait_for(lambda: seen)
    assert written == []
    opened.settle(seen)
    opened.put(TOPIC, b"waits")
    wait_for(lambda: written)
    assert [[row.body for row in batch.insert] for batch in written] == [[b"waits"]]
    assert not written[0].sync
    opened.close()


def test_a_drop_is_told_when_it_begins_and_when_it_is_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Spool(tmp_path, StorageConfig(spool_max_bytes=65536))
    for _ in range(3):
        for _ in range(100):
            opened.put(TOPIC, bytes(1000))
        assert opened.flush(60.0)
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 1
    assert "spool_max_bytes" in told[0]
    dropped = opened.stats().dropped_by
    assert dropped == {"bytes": opened.stats().dropped}
    opened.close()
    (_, over) = [record.getMessage() for record in caplog.records]
    assert over.startswith(f"spool: {dropped['bytes']} events were dropped in ")
    caplog.clear()
    opened = Spool(tmp_path, StorageConfig(spool_max_bytes=65536))
    opened.settle(numbers(opened))
    opened.close()
    assert caplog.records == [], "what runs before have dropped is no news"


def test_what_no_broker_takes_is_counted(tmp_path: Path) -> None:
    opened = filled(tmp_path, 3)
    opened.drop(2)
    assert numbers(opened) == [1, 3]
    opened = reopened(opened, tmp_path)
    assert numbers(opened) == [1, 3]
    assert opened.stats().dropped_by == {"unsendable": 1}
    opened.close()


def test_the_hook_is_called_when_there_is_more_to_peek(tmp_path: Path) -> None:
    modes: tuple[Durability, ...] = ("event", "batch")
    for durability in modes:
        opened = Spool(tmp_path, StorageConfig(durability=durability))
        seen: list[list[int]] = []
        opened.on_stored(functools.partial(lambda s, o: s.append(numbers(o)), seen, opened))
        opened.put(TOPIC, b"x")
        wait_for(functools.partial(lambda s: s and len(s[-1]) == 1, seen))
        opened.on_stored(None)
        opened.put(TOPIC, b"y")
        assert opened.flush(60.0)
        opened.settle(numbers(opened))
        opened.close()
        assert len(seen) == 1


def test_older_events_are_shown_first_when_a_deleted_spool_cannot_be_made_again_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, shown = tmp_path / "state", list[Stored]()
    folder.mkdir()
    opened = filled(folder, 2)
    opening, refusals = disk.SpoolDisk._open, iter(range(3))

    def refuse(self: disk.SpoolDisk) -> SpoolTable:
        if next(refusals, None) is not None:
            raise OSError(errno.ENOSPC, "No space left on device")
        return opening(self)

    def show() -> None:
        shown.extend(opened.peek(shown[-1].seq if shown else 0, 10))

    monkeypatch.setattr(disk.SpoolDisk, "_open", refuse)
    shutil.rmtree(folder)
    folder.mkdir()
    opened.on_stored(show)
    opened.put(TOPIC, b"new")
    opened.move()
    wait_for(lambda: shown and shown[-1].body == b"new")
    assert [row.body for row in shown] == [b"0", b"1", b"new"]
    opened.close()


def test_deleted_files_count_as_gone_until_new_ones_are_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, gone = tmp_path / "state", list[bool]()
    folder.mkdir()
    opened = filled(folder, 2)
    opening = disk.SpoolDisk._open

    def look(self: disk.SpoolDisk) -> SpoolTable:
        gone.append(opened.is_gone)
        return opening(self)

    monkeypatch.setattr(disk.SpoolDisk, "_open", look)
    shutil.rmtree(folder)
    folder.mkdir()
    opened.move()
    wait_for(lambda: not opened.is_gone)
    assert gone == [True]
    opened.close()


def test_a_hook_that_fails_stops_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> None:
        raise RuntimeError("a defect")

    opened = Spool(tmp_path, StorageConfig())
    opened.on_stored(fail)
    opened.put(TOPIC, b"x")
    assert opened.flush(60.0)
    wait_for(lambda: errors(caplog))
    opened.put(TOPIC, b"y")
    assert opened.flush(60.0)
    opened.close()


def test_the_oldest_go_first_when_there_are_too_many(tmp_path: Path) -> None:
    config = StorageConfig(spool_max_bytes=65536)
    opened = Spool(tmp_path, config)
    for _ in range(200):
        opened.put(TOPIC, bytes(1000))
        time.sleep(0.0002)
    assert opened.flush(60.0)
    kept = 65536 // (1000 + len(TOPIC))
    assert numbers(opened) == list(range(201 - kept, 201))
    assert opened.stats().dropped == 200 - kept
    assert opened.stats().bytes <= 65536
    opened = reopened(opened, tmp_path, config)
    assert opened.stats().dropped == 200 - kept
    assert numbers(opened) == list(range(201 - kept, 201))
    opened.close()


def test_a_burst_larger_than_the_spool_is_bounded_before_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = filled(tmp_path, 1, StorageConfig(spool_max_bytes=65536))
    stuck, entered, commit = threading.Event(), threading.Event(), SpoolTable.commit

    def slow(self: SpoolTable, batch: Commit) -> None:
        entered.set()
        stuck.wait(60.0)
        commit(self, batch)

    monkeypatch.setattr(SpoolTable, "commit", slow)
    opened.put(TOPIC, bytes(1000))
    assert entered.wait(60.0)
    for _ in range(200):
        opened.put(TOPIC, bytes(1000))
    assert opened.stats().bytes < 2 * 65536
    stuck.set()
    assert opened.flush(60.0)
    rows = numbers(opened)
    assert rows[-1] == 202
    assert rows[1:] == list(range(rows[1], 203))
    wait_for(lambda: opened.stats().dropped == 202 - len(rows))
    opened.close()


def test_a_clock_that_is_set_drops_nothing_waiting_or_delivered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now - 400 * 86400)
    opened = filled(tmp_path, 3)
    monkeypatch.setattr(time, "time", lambda: now)
    opened.settle([2])
    opened.put(TOPIC, b"x")
    assert opened.flush(60.0)
    opened = reopened(opened, tmp_path)
    assert (numbers(opened), opened.stats().dropped) == ([1, 3, 4], 0)
    assert [entry.stored.seq for entry in History(tmp_path).after(0) if entry.acknowledged] == [2]
    opened.close()


def test_corruption_that_a_peek_meets_is_handed_to_the_writer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    opened = filled(tmp_path, 5, retry_s=IMPATIENT)
    read, left = SpoolTable.read, [1]

    def fail(self: SpoolTable, after: int, limit: int) -> list[Stored]:
        if left[0] > 0:
            left[0] -= 1
            raise sqlite3.OperationalError("disk I/O error")
        return read(self, after, limit)

    monkeypatch.setattr(SpoolTable, "read", fail)
    assert numbers(opened) == []
    wait_for(lambda: errors(caplog))
    assert "disk I/O error" in errors(caplog)[0]
    wait_for(lambda: opened.stats().on == "disk")
    assert numbers(opened) == [1, 2, 3, 4, 5]
    opened.close()


def test_a_commit_that_failed_and_yet_reached_the_disk_is_not_doubled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = filled(tmp_path, 1, retry_s=IMPATIENT)
    commit, usable = SpoolTable.commit, threading.Event()

    def fail(self: SpoolTable, batch: Commit) -> None:
        commit(self, batch)
        if not usable.is_set():
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(SpoolTable, "commit", fail)
    opened.put(TOPIC, b"x")
    wait_for(lambda: opened.stats().on == "memory")
    assert numbers(opened) == [1, 2]
    usable.set()
    wait_for(lambda: opened.stats().on == "disk")
    assert numbers(opened) == [1, 2]
    assert opened.stats().waiting == 2
    opened.close()


def test_a_defect_does_not_end_the_writer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    opened = filled(tmp_path, 1)
    left, write = [1], disk.SpoolDisk.write

    def fail(self: disk.SpoolDisk, batch: Commit) -> bool:
        if left[0] > 0:
            left[0] -= 1
            raise RuntimeError("a defect")
        return write(self, batch)

    monkeypatch.setattr(disk.SpoolDisk, "write", fail)
    opened.put(TOPIC, b"x")
    assert opened.flush(60.0)
    assert numbers(opened) == [1, 2]
    assert "internal error" in errors(caplog)[0]
    opened.close()


def test_another_program_that_holds_the_database_is_waited_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    opened = filled(tmp_path, 2, retry_s=IMPATIENT)
    other = sqlite3.connect(tmp_path / "spool.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    opened.put(TOPIC, b"x")
    wait_for(lambda: opened.stats().on == "memory")
    assert numbers(opened) == [1, 2, 3]
    assert "database is locked" in errors(caplog)[0]
    other.execute("COMMIT")
    other.close()
    wait_for(lambda: opened.stats().on == "disk")
    assert numbers(opened) == [1, 2, 3]
    opened.close()


def test_what_could_be_peeked_can_be_peeked_while_a_disk_that_is_back_takes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = filled(tmp_path, 1, retry_s=IMPATIENT)
    commit, broken, back, seen = SpoolTable.commit, threading.Event(), threading.Event(), list[list[int]]()

    def fail(self: SpoolTable, batch: Commit) -> None:
        if not broken.is_set():
            raise OSError(5, "Input/output error")
        commit(self, batch)

    write = disk.SpoolDisk.write

    def slow(self: disk.SpoolDisk, batch: Commit) -> bool:
        done = write(self, batch)
        if done and not back.is_set():
            seen.append(numbers(opened))
            back.set()
        return done

    monkeypatch.setattr(SpoolTable, "commit", fail)
    monkeypatch.setattr(disk.SpoolDisk, "write", slow)
    opened.put(TOPIC, b"x")
    wait_for(lambda: numbers(opened) == [1, 2])
    wait_for(lambda: opened.stats().on == "memory")
    broken.set()
    assert back.wait(60.0)
    assert seen == [[1, 2]]
    opened.close()


def test_new_bounds_count_after_a_restart(tmp_path: Path) -> None:
    opened = Spool(tmp_path, StorageConfig())
    for _ in range(100):
        opened.put(TOPIC, bytes(1000))
    assert opened.flush(60.0)
    opened.settle(range(1, 11))
    opened = reopened(opened, tmp_path, StorageConfig(spool_max_bytes=65536, history_max_bytes=0))
    opened.put(TOPIC, b"")
    assert opened.flush(60.0)
    assert opened.stats().bytes <= 65536
    assert opened.stats().dropped == 91 - len(numbers(opened))
    assert numbers(opened)[-1] == 101
    assert all(not past.acknowledged for past in History(tmp_path).after(0))
    opened = reopened(opened, tmp_path, StorageConfig(history_max_bytes=1 << 20))
    opened.put(TOPIC, b"x")
    assert opened.flush(60.0)
    opened.settle([*numbers(opened)])
    opened.close()
    assert [past.stored.body for past in History(tmp_path).after(101)] == [b"x"], "there is a history again"


@pytest.mark.parametrize("settled", [False, True])
def test_a_batch_that_was_sent_gives_no_number_twice_after_a_power_cut(tmp_path: Path, settled: bool) -> None:
    left = tmp_path / "left"
    running = from_one(tmp_path / "running")
    filled(running, 3).close()
    opened = Spool(running, StorageConfig(durability="batch"))
    opened.put(TOPIC, b"sent at once")
    wait_for(lambda: numbers(opened) == [1, 2, 3, 4])
    if settled:
        opened.settle([4])
    shutil.copytree(running, left)  # as the power cut leaves it
    opened.close()
    after = Spool(left, StorageConfig())
    after.put(TOPIC, b"next")
    assert after.flush(60.0)
    assert numbers(after)[:-1] == [1, 2, 3]
    assert numbers(after)[-1] > 4
    after.close()


def test_what_becomes_safe_leaves_no_gap_any_more(tmp_path: Path) -> None:
    left = tmp_path / "left"
    running = from_one(tmp_path / "running")
    opened = Spool(running, StorageConfig(durability="batch"))
    opened.put(TOPIC, b"patient")
    opened = reopened(opened, running)
    opened.put(TOPIC, b"safe")
    assert opened.flush(60.0)
    shutil.copytree(running, left)
    opened.close()
    after = Spool(left, StorageConfig())
    after.put(TOPIC, b"next")
    assert after.flush(60.0)
    assert numbers(after) == [1, 2, 3]
    after.close()


def test_a_new_card_goes_on_above_all_that_the_old_one_has_counted(tmp_path: Path) -> None:
    last = 0
    for card in ("old", "new", "newest"):
        (tmp_path / card).mkdir()
        opened = filled(tmp_path / card, 3)
        assert opened.first_seq == numbers(opened)[0] > last
        last = numbers(opened)[-1]
        opened.close()
        again = filled(tmp_path / card, 1)
        assert numbers(again)[-1] == last + 1, "and on one card there is no gap"
        last = last + 1
        again.close()


def test_each_message_tells_what_the_run_began_with_that_put_it_also_when_a_later_run_sends_it(
    tmp_path: Path,
) -> None:
    opened = filled(tmp_path, 2)
    assert opened.first_seq == 1
    opened = reopened(opened, tmp_path)
    opened.put(TOPIC, b"later")
    assert opened.flush(60.0)
    assert opened.first_seq == 3
    assert [row.first_seq for row in opened.peek(0, 9)] == [1, 1, 3]
    assert [past.stored.first_seq for past in History(tmp_path).after(0)] == [1, 1, 3]
    opened.close()
