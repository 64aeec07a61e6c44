from __future__ import annotations

import functools
import logging
import sqlite3
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from agent.config import Durability, StorageConfig
from agent.messages import Stored, Will
from agent.storage import disk, repair, spool, table
from agent.storage.spool import Spool
from agent.storage.stats import SpoolStats
from agent.storage.table import Table
from agent.storage.watermark import BLOCK, Watermark
from tests.support.publishing import wait_for

TOPIC = "vedette/porch/front/events"


def filled(folder: Path, count: int, config: StorageConfig | None = None) -> Spool:
    opened = Spool(folder, config or StorageConfig())
    for number in range(count):
        opened.put(TOPIC, b"%d" % number)
    assert opened.flush(10.0)
    return opened


def numbers(opened: Spool, after: int = 0, limit: int = 10_000) -> list[int]:
    return [row.seq for row in opened.peek(after, limit)]


def reopened(opened: Spool, folder: Path, config: StorageConfig | None = None) -> Spool:
    opened.close()
    return Spool(folder, config or StorageConfig())


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]


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
    assert again.stats() == SpoolStats(8, 8 * len(TOPIC) + 8, 0, "disk")
    again.close()


def test_numbers_go_on_when_everything_was_delivered(tmp_path: Path) -> None:
    opened = filled(tmp_path, 5)
    opened.settle(range(1, 6))
    opened = reopened(opened, tmp_path)
    assert opened.stats().waiting == 0
    opened.put(TOPIC, b"x")
    assert opened.flush(5.0)
    assert numbers(opened) == [6]
    opened.close()


def test_a_put_waits_for_no_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = filled(tmp_path, 1)
    stuck, commit = threading.Event(), Table.commit

    def slow(self: Table, insert: list[Stored], delete: set[int], given: int, *more: Any) -> None:
        stuck.wait(10.0)
        commit(self, insert, delete, given, *more)

    monkeypatch.setattr(Table, "commit", slow)
    began = time.perf_counter()
    for _ in range(1000):
        opened.put(TOPIC, b"x")
    assert (time.perf_counter() - began) / 1000 < 1e-4
    assert not opened.flush(0.05)
    assert numbers(opened) == [1], "what is not committed is not shown"
    stuck.set()
    assert opened.flush(5.0)
    assert numbers(opened) == list(range(1, 1002))
    opened.close()


def test_puts_that_come_together_share_a_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commits: list[int] = []
    commit = Table.commit

    def count(self: Table, insert: list[Stored], *rest: object) -> None:
        commits.append(len(insert))
        commit(self, insert, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Table, "commit", count)
    opened = filled(tmp_path, 2000)
    assert len(commits) < 200
    count_before = len(commits)
    for number in range(1, 500):
        opened.settle([number])
    time.sleep(0.1)
    assert len(commits) == count_before, "deletions wait for company"
    opened.put(TOPIC, b"x")
    assert opened.flush(5.0)
    assert len(commits) == count_before + 1
    opened.settle(range(500, 1600))
    wait_for(lambda: len(commits) == count_before + 2, 1.0)
    opened.settle([1600])
    wait_for(lambda: len(commits) == count_before + 3, 5.0)
    opened.close()


@pytest.mark.parametrize(("durability", "level"), [("event", 2), ("batch", 1)])
def test_events_are_synced_as_configured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, durability: str, level: int
) -> None:
    seen: list[int] = []
    delete = Table._delete

    def look(self: Table, seqs: set[int]) -> tuple[int, int]:
        seen.append(self._writer.execute("PRAGMA synchronous").fetchone()[0])
        return delete(self, seqs)

    monkeypatch.setattr(Table, "_delete", look)
    opened = filled(tmp_path, 1, StorageConfig(durability=durability))  # type: ignore[arg-type]
    assert seen == [level]
    opened.close()


def test_memory_writes_nothing_and_numbers_never_go_backwards(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = StorageConfig(durability="memory")
    opened = filled(tmp_path, 10, config)
    rows = numbers(opened)
    assert rows == list(range(rows[0], rows[0] + 10))
    opened.settle(rows[:4])
    assert numbers(opened) == rows[4:]
    assert opened.stats().on == "memory"
    opened.close()
    assert not list(tmp_path.iterdir())
    assert "6 events lay in memory only" in errors(caplog)[0]
    again = filled(tmp_path, 1, config)
    assert numbers(again)[0] > rows[-1]
    again.settle(numbers(again))
    again.close()


def test_the_hook_is_called_when_there_is_more_to_peek(tmp_path: Path) -> None:
    modes: tuple[Durability, ...] = ("event", "memory")
    for durability in modes:
        opened = Spool(tmp_path, StorageConfig(durability=durability))
        seen: list[list[int]] = []
        opened.on_stored(functools.partial(lambda s, o: s.append(numbers(o)), seen, opened))
        opened.put(TOPIC, b"x")
        wait_for(functools.partial(lambda s: s and len(s[-1]) == 1, seen))
        opened.on_stored(None)
        opened.put(TOPIC, b"y")
        assert opened.flush(5.0)
        opened.settle(numbers(opened))
        opened.close()
        assert len(seen) == 1


def test_a_hook_that_fails_stops_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    opened = Spool(tmp_path, StorageConfig())
    opened.on_stored(lambda: 1 / 0)  # type: ignore[arg-type]
    opened.put(TOPIC, b"x")
    assert opened.flush(5.0)
    wait_for(lambda: errors(caplog))
    opened.put(TOPIC, b"y")
    assert opened.flush(5.0)
    opened.close()


def test_the_oldest_go_first_when_there_are_too_many(tmp_path: Path) -> None:
    config = StorageConfig(spool_max_bytes=65536)
    opened = Spool(tmp_path, config)
    for _ in range(200):
        opened.put(TOPIC, bytes(1000))
        time.sleep(0.0002)
    assert opened.flush(5.0)
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
    stuck, entered, commit = threading.Event(), threading.Event(), Table.commit

    def slow(self: Table, *args: object) -> None:
        entered.set()
        stuck.wait(10.0)
        commit(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(Table, "commit", slow)
    opened.put(TOPIC, bytes(1000))
    assert entered.wait(5.0)
    for _ in range(200):
        opened.put(TOPIC, bytes(1000))
    assert opened.stats().bytes < 2 * 65536
    stuck.set()
    assert opened.flush(5.0)
    rows = numbers(opened)
    assert rows[-1] == 202
    assert rows[1:] == list(range(rows[1], 203))
    wait_for(lambda: opened.stats().dropped == 202 - len(rows))
    opened.close()


def test_what_is_too_old_goes_and_what_has_no_age_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool, "_LOOK_S", 0.1)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now - 10 * 86400)
    opened = filled(tmp_path, 3)
    monkeypatch.setattr(time, "time", lambda: now)
    wait_for(lambda: opened.stats().waiting == 0)
    assert opened.stats().dropped == 3
    monkeypatch.setattr(time, "time", lambda: 12.0)  # a board without a clock, before it has been told the time
    opened.put(TOPIC, b"x")
    assert opened.flush(5.0)
    monkeypatch.setattr(time, "time", lambda: now)
    time.sleep(0.5)
    assert numbers(opened) == [4]
    opened.close()


def test_in_memory_what_is_too_old_goes_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool, "_LOOK_S", 0.1)
    opened = Spool(tmp_path, StorageConfig(durability="memory", spool_max_age_s=0.2))
    opened.put(TOPIC, b"x")
    wait_for(lambda: opened.stats().dropped == 1)
    assert numbers(opened) == []
    opened.close()


@pytest.mark.parametrize("damage", ["header", "page", "garbage", "empty journal"])
def test_a_corrupt_database_is_set_aside_and_numbers_do_not_go_backwards(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    filled(tmp_path, 500).close()
    path = tmp_path / "spool.db"
    content = bytearray(path.read_bytes())
    if damage == "header":
        content[:100] = bytes(100)
    elif damage == "garbage":
        content[:] = b"<html>" * 1000
    elif damage == "page":
        content[-8192:-4096] = b"\xff" * 4096
    else:
        content = content[: len(content) // 2]
    path.write_bytes(content)
    opened = Spool(tmp_path, StorageConfig())
    (line,) = errors(caplog)
    (aside,) = tmp_path.glob("spool.db.corrupt-*")
    assert aside.name in line
    opened.put(TOPIC, b"new")
    assert opened.flush(5.0)
    rows = numbers(opened)
    assert rows == sorted(set(rows))
    assert 500 < rows[-1] <= 500 + 2 * BLOCK
    if damage == "page":
        assert len(rows) > 1, "what could be read was saved"
    opened = reopened(opened, tmp_path)
    assert numbers(opened) == rows
    opened.close()


def test_only_the_newest_corrupt_databases_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(5):
        monkeypatch.setattr(time, "gmtime", functools.partial(time.localtime, 1e9 + number))
        (tmp_path / "spool.db").write_bytes(b"garbage %d" % number * 100)
        (tmp_path / "spool.db-wal").write_bytes(b"x")
        repair.set_aside(tmp_path / "spool.db")
    kept = sorted(file.read_bytes()[:9] for file in tmp_path.iterdir() if not file.name.endswith("-wal"))
    assert kept == [b"garbage 3", b"garbage 4"]
    assert len(list(tmp_path.glob("*-wal"))) == 2


def test_corruption_at_work_is_repaired_at_once_but_not_again_and_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool, "_RETRY_S", 0.1)
    opened = filled(tmp_path, 20)
    broken = sqlite3.DatabaseError("database disk image is malformed")
    broken.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
    commit, left = Table.commit, [1]

    def fail(self: Table, *args: object) -> None:
        if left[0] > 0:
            left[0] -= 1
            raise broken
        commit(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(Table, "commit", fail)
    opened.settle([1, 2])
    opened.put(TOPIC, b"x")
    assert opened.flush(5.0)
    assert numbers(opened) == list(range(3, 22))
    assert "18 events saved" in errors(caplog)[0] or "20 events saved" in errors(caplog)[0]
    left[0] = 2
    opened.put(TOPIC, b"y")
    wait_for(lambda: opened.stats().on == "memory")
    assert numbers(opened)[-1] == 22
    wait_for(lambda: opened.stats().on == "disk")
    assert numbers(opened) == list(range(3, 23))
    assert len(errors(caplog)) == 2
    opened.close()


def test_corruption_that_a_peek_meets_is_handed_to_the_writer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(spool, "_RETRY_S", 0.1)
    opened = filled(tmp_path, 5)
    read, left = Table.read, [1]

    def fail(self: Table, after: int, limit: int) -> list[Stored]:
        if left[0] > 0:
            left[0] -= 1
            raise sqlite3.OperationalError("disk I/O error")
        return read(self, after, limit)

    monkeypatch.setattr(Table, "read", fail)
    assert numbers(opened) == []
    wait_for(lambda: errors(caplog))
    assert "disk I/O error" in errors(caplog)[0]
    wait_for(lambda: opened.stats().on == "disk")
    assert numbers(opened) == [1, 2, 3, 4, 5]
    opened.close()


def test_a_commit_that_failed_and_yet_reached_the_disk_is_not_doubled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool, "_RETRY_S", 0.1)
    opened = filled(tmp_path, 1)
    commit, left = Table.commit, [1]

    def fail(self: Table, *args: object) -> None:
        commit(self, *args)  # type: ignore[arg-type]
        if left[0] > 0:
            left[0] -= 1
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(Table, "commit", fail)
    opened.put(TOPIC, b"x")
    wait_for(lambda: opened.stats().on == "memory")
    assert numbers(opened) == [1, 2]
    wait_for(lambda: opened.stats().on == "disk")
    assert numbers(opened) == [1, 2]
    assert opened.stats().waiting == 2
    opened.close()


def test_a_defect_does_not_end_the_writer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    opened = filled(tmp_path, 1)
    left, write = [1], disk.Disk.write

    def fail(self: disk.Disk, *args: object) -> bool:
        if left[0] > 0:
            left[0] -= 1
            raise RuntimeError("a defect")
        return write(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(disk.Disk, "write", fail)
    opened.put(TOPIC, b"x")
    assert opened.flush(5.0)
    assert numbers(opened) == [1, 2]
    assert "a defect in Vedette" in errors(caplog)[0]
    opened.close()


def test_another_program_that_holds_the_database_is_waited_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(spool, "_RETRY_S", 0.1)
    opened = filled(tmp_path, 2)
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


@pytest.mark.parametrize(
    ("text", "value", "trusted"),
    [("00000000000000000042 disk\n", 42, True), ("00000000000000000042 lost\n", 42, False), ("42 what", 0, True)],
)
def test_the_watermark_reads_what_it_wrote_and_nothing_else(
    tmp_path: Path, text: str, value: int, trusted: bool
) -> None:
    path = tmp_path / "spool.seq"
    path.write_text(text)
    mark = Watermark(path)
    assert (mark.value, mark.trusted) == (value, trusted)
    mark.reserve(value + 1)
    mark.trust(False)
    again = Watermark(path)
    assert (again.value, again.trusted) == (value + 1 + BLOCK, False)
    assert again.after() == value + 2 + BLOCK


def test_without_a_watermark_a_number_comes_from_the_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Watermark(tmp_path / "none").after() > 1_700_000_000_000_000
    monkeypatch.setattr(time, "time", lambda: 5.0)
    assert Watermark(tmp_path / "none").after() == 1_700_000_000_000_000


def test_a_table_that_fails_its_check_is_corrupt(tmp_path: Path) -> None:
    error = sqlite3.DatabaseError("x")
    assert not repair.is_corrupt(error)
    assert not repair.is_corrupt(OSError(28, "full"))
    error.sqlite_errorcode = sqlite3.SQLITE_NOTADB
    assert repair.is_corrupt(error)
    assert table.size(Stored(1, "ä", b"123", 0.0)) == 5


def bodies(opened: Spool) -> list[bytes]:
    return [row.body for row in opened.peek(0, 100)]


def with_wills(folder: Path) -> Spool:
    """Two things are open; a third was, and has been closed."""
    opened = Spool(folder, StorageConfig())
    for key in ("a", "b", "c"):
        opened.put(TOPIC, b"new " + key.encode(), Will(key, b"end " + key.encode()))
    opened.put(TOPIC, b"update a", Will("a", b"end a2"))
    opened.put(TOPIC, b"end c", Will("c", None))
    assert opened.flush(10.0)
    return opened


def test_wills_are_the_first_events_of_the_next_process_and_hold_once(tmp_path: Path) -> None:
    opened = with_wills(tmp_path)
    assert len(bodies(opened)) == 5
    again = reopened(opened, tmp_path)
    assert again.flush(10.0)
    again.put(TOPIC, b"more")
    assert again.flush(10.0)
    assert bodies(again)[5:] == [b"end a2", b"end b", b"more"]
    assert numbers(again) == list(range(1, 9))
    assert again.executed == 2
    third = reopened(again, tmp_path)
    assert (third.executed, len(bodies(third))) == (0, 8)
    third.close()


def test_wills_outlive_a_corrupt_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    opened = with_wills(tmp_path)
    opened._disk.lost(_corruption())  # type: ignore[union-attr]
    opened.put(TOPIC, b"more")
    assert opened.flush(10.0)
    assert opened.executed == 0, "they are of this process"
    again = reopened(opened, tmp_path)
    assert again.flush(10.0)
    assert again.executed == 2
    again.close()
    assert "set aside" in errors(caplog)[0]


def _corruption() -> sqlite3.DatabaseError:
    error = sqlite3.DatabaseError("database disk image is malformed")
    error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
    return error
