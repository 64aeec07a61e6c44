from __future__ import annotations

import functools
import sqlite3
import threading
import time
from pathlib import Path

import pytest

from agent.config import StorageConfig
from agent.storage.spool.disk import BLOCK
from agent.storage.spool.pending import Commit, size
from agent.storage.spool.recovery import quarantine
from agent.storage.spool.spool import Spool
from agent.storage.spool.table import SpoolTable, is_corrupt
from agent.types import Stored
from tests.support.publishing import wait_for
from tests.support.spooling import IMPATIENT, TOPIC, corruption, errors, filled, numbers, reopened

pytestmark = pytest.mark.usefixtures("counts_from_one")


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
    assert opened.flush(60.0)
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
        quarantine(tmp_path / "spool.db")
    databases = [file for file in tmp_path.glob("spool.db*") if not file.name.endswith("-wal")]
    kept = sorted(file.read_bytes()[:9] for file in databases)
    assert kept == [b"garbage 3", b"garbage 4"]
    assert len(list(tmp_path.glob("*-wal"))) == 2


def test_corruption_at_work_is_repaired_at_once_but_not_again_and_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = filled(tmp_path, 20, retry_s=IMPATIENT)
    commit, left, usable = SpoolTable.commit, [1], threading.Event()
    usable.set()

    def fail(self: SpoolTable, batch: Commit) -> None:
        if left[0] > 0 or not usable.is_set():
            left[0] -= 1
            raise corruption()
        commit(self, batch)

    monkeypatch.setattr(SpoolTable, "commit", fail)
    opened.settle([1, 2])
    opened.put(TOPIC, b"x")
    assert opened.flush(60.0)
    assert numbers(opened) == list(range(3, 22))
    assert "18 events saved" in errors(caplog)[0] or "20 events saved" in errors(caplog)[0]
    usable.clear()
    opened.put(TOPIC, b"y")
    wait_for(lambda: opened.stats().on == "memory")
    assert numbers(opened)[-1] == 22
    usable.set()
    wait_for(lambda: opened.stats().on == "disk")
    assert numbers(opened) == list(range(3, 23))
    assert len(errors(caplog)) == 2
    opened.close()


def test_a_table_that_fails_its_check_is_corrupt(tmp_path: Path) -> None:
    error = sqlite3.DatabaseError("x")
    assert not is_corrupt(error)
    assert not is_corrupt(OSError(28, "full"))
    error.sqlite_errorcode = sqlite3.SQLITE_NOTADB
    assert is_corrupt(error)
    assert size(Stored(1, "ä", b"123", 0.0)) == 5
