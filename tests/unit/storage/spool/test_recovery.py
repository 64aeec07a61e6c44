"""Acknowledged messages are kept and read, within bounds, beside a writer."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from agent.config import StorageConfig
from agent.errors import StorageError
from agent.storage.spool.pending import Commit, size
from agent.storage.spool.recovery import History
from agent.storage.spool.spool import Spool
from agent.storage.spool.table import SpoolTable
from agent.types import Stored
from tests.support.publishing import wait_for
from tests.support.spooling import TOPIC, filled, numbers, reopened

pytestmark = pytest.mark.usefixtures("counts_from_one")

ROOT = Path(__file__).parent.parent.parent.parent.parent


def told(folder: Path) -> dict[int, bool]:
    """Return for each number whether it is acknowledged."""
    return {past.stored.seq: past.acknowledged for past in History(folder).after(0)}


def test_what_the_broker_has_is_told_beside_what_waits(tmp_path: Path) -> None:
    opened = filled(tmp_path, 450)
    opened.settle([*range(1, 301), 320])
    assert opened.flush(60.0)
    opened.put(TOPIC, b"new")
    assert opened.flush(60.0)
    expected = {seq: seq <= 300 or seq == 320 for seq in range(1, 452)}
    assert told(tmp_path) == expected
    assert [past.stored.seq for past in History(tmp_path).backwards()] == list(range(451, 0, -1))
    assert next(History(tmp_path).after(450)).stored.body == b"new"
    opened = reopened(opened, tmp_path)
    assert numbers(opened) == [*range(301, 320), *range(321, 452)]
    assert told(tmp_path) == expected
    opened.close()
    assert told(tmp_path) == expected, "without a daemon"


def test_without_a_history_nothing_stays_and_one_from_before_goes(tmp_path: Path) -> None:
    opened = filled(tmp_path, 10)
    opened.settle([1, 2, 3, 7])
    opened = reopened(opened, tmp_path, StorageConfig(history_max_bytes=0))
    assert numbers(opened) == [4, 5, 6, 8, 9, 10]
    opened.settle([4, 9])
    opened = reopened(opened, tmp_path, StorageConfig(history_max_bytes=0))
    assert told(tmp_path) == dict.fromkeys([5, 6, 8, 10], False)
    opened.close()


def rows(first: int, count: int, put_at: float) -> list[Stored]:
    return [Stored(seq, TOPIC, bytes(1000), put_at) for seq in range(first, first + count)]


def kept_sizes(folder: Path) -> list[int]:
    return [size(past.stored) for past in History(folder).after(0) if past.acknowledged]


def test_the_oldest_go_in_pieces_when_there_are_too_many(tmp_path: Path) -> None:
    bound = 100_000
    table = SpoolTable(tmp_path / "spool.db", StorageConfig(history_max_bytes=bound))
    lengths = []
    for seq in range(1, 400):
        table.commit(Commit(rows(seq, 1, time.time()), {seq - 1}, (), seq))
        lengths.append(len(kept_sizes(tmp_path)))
        assert table.counts.kept == sum(kept_sizes(tmp_path)) <= bound
    shorter = [before - after for before, after in itertools.pairwise(lengths) if after < before]
    assert len(shorter) > 10
    assert min(shorter) >= bound // 8 // 1100, "a piece at once"
    table.close()


def test_a_history_that_is_shortened_gives_its_room_to_new_rows(tmp_path: Path) -> None:
    table = SpoolTable(tmp_path / "spool.db", StorageConfig(history_max_bytes=200_000))
    sizes = []
    for seq in range(1, 1500):
        table.commit(Commit(rows(seq, 1, time.time()), {seq - 1}, (), seq))
        if seq % 500 == 499:
            table.empty_journal()
            sizes.append((tmp_path / "spool.db").stat().st_size)
    assert sizes[1] == sizes[2] < 2 * 200_000
    table.close()


@pytest.mark.parametrize("damage", ["header", "page", "garbage", "cut off", "empty"])
def test_a_damaged_database_is_an_error_in_one_line(tmp_path: Path, damage: str) -> None:
    filled(tmp_path, 500).close()
    path = tmp_path / "spool.db"
    content = bytearray(path.read_bytes())
    if damage == "header":
        content[:100] = bytes(100)
    elif damage == "garbage":
        content[:] = b"<html>" * 1000
    elif damage == "page":
        content[512:-512] = b"\xff" * (len(content) - 1024)
    else:
        content = content[: len(content) // 2 if damage == "cut off" else 0]
    path.write_bytes(content)
    with pytest.raises(StorageError) as failed:
        told(tmp_path)
    assert str(path) in str(failed.value)
    assert "\n" not in str(failed.value)
    if damage not in ("empty",):
        assert "damaged" in str(failed.value)


def test_a_missing_database_is_not_created(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no such file"):
        told(tmp_path)
    with pytest.raises(StorageError, match="no such file"):
        told(tmp_path / "gone")
    assert [file.name for file in tmp_path.iterdir()] == ["spool.seq"]


READ = """
import os, sys
from pathlib import Path
from agent.storage.spool.recovery import History
os.setgroups([]); os.setgid(int(sys.argv[2])); os.setuid(65534)
try:
    print(sum(1 for _ in History(Path(sys.argv[1])).after(0)))
except Exception as error:
    print(type(error).__name__, error)
"""


def read_as_nobody(folder: Path, group: int = 65534) -> str:
    done = subprocess.run(
        [sys.executable, "-c", READ, str(folder), str(group)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user needs root")
def test_another_user_may_read_what_it_can_and_is_told_what_it_cannot() -> None:
    folder = Path("/tmp") / f"vedette-history-{os.getpid()}"
    folder.mkdir(mode=0o755)
    try:
        opened = filled(folder, 5)
        before = sorted(folder.iterdir())
        assert "Permission denied; run this as root" in read_as_nobody(folder)
        assert read_as_nobody(folder, os.getegid()) == "5", "one of its group, beside the daemon"
        opened.close()
        assert read_as_nobody(folder, os.getegid()) == "5", "without it"
        assert sorted(folder.iterdir()) == [path for path in before if path.suffix in (".db", ".seq")]
        folder.chmod(0o700)
        assert "Permission denied; run this as root" in read_as_nobody(folder, os.getegid())
    finally:
        shutil.rmtree(folder)


def test_readers_do_not_lock_the_writer_out_nor_keep_its_journal_from_being_emptied(tmp_path: Path) -> None:
    opened = filled(tmp_path, 300)
    reading, over = History(tmp_path).after(0), threading.Event()
    next(reading)

    def read_on() -> None:
        while not over.is_set():
            told(tmp_path)

    reader = threading.Thread(target=read_on)
    reader.start()
    for _ in range(60):
        for _ in range(100):
            opened.put(TOPIC, bytes(1000))
        assert opened.flush(60.0)
        opened.settle(numbers(opened))
    assert opened.stats().on == "disk"
    assert (tmp_path / "spool.db-wal").stat().st_size < 4 << 20
    over.set()
    reader.join()
    assert sum(1 for _ in reading) >= 5000
    opened.close()
    assert not (tmp_path / "spool.db-wal").exists()


def test_after_kill_9_the_history_is_there_before_and_after_the_next_start(tmp_path: Path) -> None:
    opened = filled(tmp_path, 50)
    opened.settle(range(1, 41))
    assert opened.flush(60.0)
    opened.put(TOPIC, b"x")
    assert opened.flush(60.0)
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in tmp_path.glob("spool*"):
        shutil.copy(file, copy / file.name)
    assert told(copy) == {seq: seq <= 40 for seq in range(1, 52)}
    again = Spool(copy, StorageConfig())
    assert numbers(again) == list(range(41, 52))
    wait_for(lambda: told(copy) == {seq: seq <= 40 for seq in range(1, 52)})
    again.close()
    opened.close()


def test_of_a_corrupt_database_only_what_waits_is_saved(tmp_path: Path) -> None:
    opened = filled(tmp_path, 400)
    for first in range(1, 301, 10):
        opened.settle(range(first, first + 10))
        opened.put(TOPIC, b"x" * 700)
        assert opened.flush(60.0)
    opened.close()
    path = tmp_path / "spool.db"
    content = bytearray(path.read_bytes())
    content[-1024:-512] = b"\xff" * 512
    path.write_bytes(content)
    again = Spool(tmp_path, StorageConfig())
    assert again.flush(60.0)
    found = numbers(again)
    assert len(list(tmp_path.glob("spool.db.corrupt-*"))) == 1
    assert 271 <= found[0] <= 301, "what was acknowledged is not sent again, but for what the lost rows knew of"
    assert found[-1] > 400
    again.close()
