"""The spool on a real small filesystem that becomes full, or read-only, and recovers."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.config import StorageConfig
from agent.errors import StorageError, UpdateError
from agent.storage.files import write_atomic
from agent.storage.spool.spool import Spool
from agent.types import OpenTrack, Stored
from agent.update.install.stage import install
from tests.support.mosquitto import Mosquitto
from tests.support.publishing import EVENTS, device, event, events_of, from_one, in_order, wait_for
from tests.support.spooling import IMPATIENT

pytestmark = pytest.mark.board

BODY = bytes(500)


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A filesystem of 2 MiB."""
    if os.geteuid() != 0:
        pytest.skip("a filesystem of its own needs root")
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "vedette-test", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a tmpfs is refused here")
    yield from_one(folder)
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Take every byte that is left."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            pass
    return filler


def remount(folder: Path, how: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{how}", str(folder)], check=True)


def said(caplog: pytest.LogCaptureFixture, level: int) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno == level and r.name.startswith("agent.storage")]


def numbers(rows: list[Stored]) -> list[int]:
    return [row.seq for row in rows]


def test_a_full_disk_is_said_once_and_nothing_is_lost(small: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    spool = Spool(small, StorageConfig(), IMPATIENT)
    spool.put(EVENTS, BODY)
    assert spool.flush(5.0)
    filler = fill(small)
    for _ in range(300):
        spool.put(EVENTS, BODY)
        time.sleep(0.001)
    wait_for(lambda: spool.stats().on == "memory")
    wait_for(lambda: numbers(spool.peek(0, 1000)) == list(range(1, 302)))
    assert not spool.flush(1.0)
    time.sleep(0.5)
    (line,) = said(caplog, logging.ERROR)
    assert str(small / "spool.db") in line
    assert "make room" in line

    spool.settle(range(1, 101))
    assert numbers(spool.peek(0, 1000)) == list(range(101, 302))
    filler.unlink()
    wait_for(lambda: spool.stats().on == "disk")
    assert spool.flush(5.0)
    spool.put(EVENTS, BODY)
    assert spool.flush(5.0)
    assert numbers(spool.peek(0, 1000)) == list(range(101, 303))
    assert len([line for line in said(caplog, logging.INFO) if "back on the disk" in line]) == 1
    spool.close()

    again = Spool(small, StorageConfig(), IMPATIENT)
    assert numbers(again.peek(0, 1000)) == list(range(101, 303))
    again.put(EVENTS, BODY)
    assert again.flush(5.0)
    assert again.peek(0, 1000)[-1].seq == 303, "no gap"
    again.close()


def put(spool: Spool, body: bytes, key: str, crash_end: bytes | None) -> int:
    """Put an event with its crash end, let it be acknowledged, and return its number."""
    spool.put(EVENTS, body, OpenTrack(key, crash_end))
    wait_for(lambda: any(row.body == body for row in spool.peek(0, 1000)))
    seq = next(row.seq for row in spool.peek(0, 1000) if row.body == body)
    spool.settle([seq])
    return seq


def left(folder: Path) -> list[bytes]:
    """Return the rows that the next process publishes."""
    spool = Spool(folder, StorageConfig())
    spool.flush(5.0)
    time.sleep(0.1)
    said = [row.body for row in spool.peek(0, 1000) if b"restart" in row.body]
    spool.close()
    return said


@pytest.mark.parametrize("freed", [True, False])
def test_an_end_that_was_told_on_a_full_disk_is_not_told_again(small: Path, freed: bool) -> None:
    spool = Spool(small, StorageConfig(), IMPATIENT)
    put(spool, b"new a", "a", b"end a restart")
    assert spool.flush(5.0)
    filler = fill(small)
    for number in range(300):
        spool.put(EVENTS, b"%d" % number + BODY)
    wait_for(lambda: spool.stats().on == "memory")
    put(spool, b"end a", "a", None)
    if freed:
        filler.unlink()
        wait_for(lambda: spool.stats().on == "disk")
    else:  # and everything else was delivered, too
        spool.settle(numbers(spool.peek(0, 1000)))
    spool.close()
    filler.unlink(missing_ok=True)
    assert left(small) == []
    assert left(small) == []


def test_an_end_that_a_full_disk_takes_with_it_is_told_by_its_will(small: Path) -> None:
    spool = Spool(small, StorageConfig(), IMPATIENT)
    put(spool, b"new a", "a", b"end a restart")
    assert spool.flush(5.0)
    filler = fill(small)
    for number in range(300):
        spool.put(EVENTS, b"%d" % number + BODY)
    wait_for(lambda: spool.stats().on == "memory")
    spool.put(EVENTS, b"end a", OpenTrack("a", None))  # the broker is away
    spool.close()
    filler.unlink()
    assert left(small) == [b"end a restart"]


def copied(folder: Path, name: str) -> Path:
    """As if the process had been killed now: nothing more is written."""
    copy = folder.parent / name
    copy.mkdir()
    for file in folder.glob("spool*"):
        (copy / file.name).write_bytes(file.read_bytes())
    return copy


def test_an_end_that_a_full_disk_could_not_note_is_not_told_again_after_a_kill(small: Path) -> None:
    spool = Spool(small, StorageConfig(), IMPATIENT)
    put(spool, b"new a", "a", b"end a restart")
    assert spool.flush(5.0)
    filler = fill(small)
    for number in range(300):
        spool.put(EVENTS, b"%d" % number + BODY)
    wait_for(lambda: spool.stats().on == "memory")
    spool.put(EVENTS, b"end a", OpenTrack("a", None))
    time.sleep(0.5)
    before = copied(small, "before")
    assert left(before) == [b"end a restart"], "it was not delivered yet"
    wait_for(lambda: spool.peek(0, 1000)[-1].body == b"end a")
    spool.settle(numbers(spool.peek(0, 1000)))
    put(spool, b"new b", "b", b"end b restart")
    wait_for(lambda: "void" in (small / "spool.seq").read_text())
    assert left(copied(small, "after")) == []
    filler.unlink()
    wait_for(lambda: spool.stats().on == "disk")
    assert spool.flush(5.0)
    assert left(copied(small, "back")) == [b"end b restart"]
    spool.close()


def test_what_began_on_a_full_disk_has_its_will_when_there_is_room(small: Path) -> None:
    spool = Spool(small, StorageConfig(), IMPATIENT)
    filler = fill(small)
    for number in range(300):
        spool.put(EVENTS, b"%d" % number + BODY)
    wait_for(lambda: spool.stats().on == "memory")
    put(spool, b"new a", "a", b"end a restart")
    filler.unlink()
    wait_for(lambda: spool.stats().on == "disk")
    assert spool.flush(5.0)
    copy = small.parent / "after"
    copy.mkdir()
    for file in small.glob("spool*"):
        (copy / file.name).write_bytes(file.read_bytes())
    spool.close()
    assert left(copy) == [b"end a restart"]
    assert left(copy) == [b"end a restart"], "it waits to be sent"


def test_numbers_given_out_on_a_full_disk_are_never_given_again(small: Path) -> None:
    spool = Spool(small, StorageConfig(), IMPATIENT)
    spool.put(EVENTS, BODY)
    assert spool.flush(5.0)
    fill(small)
    for _ in range(200):
        spool.put(EVENTS, BODY)
    wait_for(lambda: spool.stats().on == "memory" and len(spool.peek(0, 1000)) == 201)
    # As if the power had gone now: nothing more is written, and those in memory have been delivered.
    copy = small.parent / "after"
    copy.mkdir()
    for file in small.glob("spool*"):
        (copy / file.name).write_bytes(file.read_bytes())
    after = Spool(copy, StorageConfig())
    after.put(EVENTS, BODY)
    assert after.flush(5.0)
    rows = numbers(after.peek(0, 1000))
    assert rows[0] == 1
    assert rows[-1] > 201
    after.close()
    spool.close()


def test_a_disk_that_is_full_at_the_start_is_used_when_it_is_not(
    small: Path, caplog: pytest.LogCaptureFixture
) -> None:
    filler = fill(small)
    spool = Spool(small, StorageConfig(), IMPATIENT)
    for _ in range(50):
        spool.put(EVENTS, BODY)
    wait_for(lambda: len(spool.peek(0, 100)) == 50)
    assert spool.stats().on == "memory"
    filler.unlink()
    wait_for(lambda: spool.flush(1.0))
    rows = numbers(spool.peek(0, 100))
    assert rows == list(range(rows[0], rows[0] + 50))
    assert len(said(caplog, logging.ERROR)) == 1
    spool.close()


def first_number(folder: Path) -> int:
    """Return the first number of a start whose events are delivered from memory, and that stops."""
    spool = Spool(folder, StorageConfig())
    spool.put(EVENTS, BODY)
    wait_for(lambda: spool.peek(0, 10))
    spool.settle(numbers(spool.peek(0, 10)))
    spool.close()
    return spool.first_seq


def test_starts_on_a_full_disk_give_out_each_number_once(small: Path, caplog: pytest.LogCaptureFixture) -> None:
    spool = Spool(small, StorageConfig(), IMPATIENT)
    spool.put(EVENTS, BODY)
    assert spool.flush(5.0)
    spool.close()
    filler = fill(small)
    first = [first_number(small) for _ in range(4)]
    assert 2 < first[0] < first[1] < first[2] < first[3]
    assert all("make room" in line for line in said(caplog, logging.ERROR) if "spool.db" in line)
    filler.unlink()
    assert first_number(small) > first[3]


def test_starts_without_a_database_give_out_each_number_once(tmp_path: Path) -> None:
    (tmp_path / "spool.db").mkdir()
    (tmp_path / "spool.seq").write_text("00000000000000010006 disk\n")
    first = [first_number(tmp_path) for _ in range(3)]
    assert 10_006 < first[0] < first[1] < first[2]


def test_numbers_beyond_the_mark_are_reserved_while_the_spool_cannot_be_opened(tmp_path: Path) -> None:
    (tmp_path / "spool.db").mkdir()
    spool = Spool(tmp_path, StorageConfig())
    for _ in range(4):
        for _ in range(4000):
            spool.put(EVENTS, b"")
        wait_for(lambda: spool.peek(0, 100_000)[-1].seq < int((tmp_path / "spool.seq").read_text().split()[0]))
    assert len(spool.peek(0, 100_000)) == 16_000
    spool.close()


def test_a_start_that_can_write_nothing_takes_its_numbers_from_the_clock(small: Path) -> None:
    spool = Spool(small, StorageConfig(), IMPATIENT)
    spool.put(EVENTS, BODY)
    assert spool.flush(5.0)
    spool.close()
    remount(small, "ro")
    first = [first_number(small) for _ in range(3)]
    remount(small, "rw")
    assert 1_700_000_000_000_000 < first[0] < first[1] < first[2]


def test_a_disk_that_becomes_read_only(small: Path, caplog: pytest.LogCaptureFixture) -> None:
    spool = Spool(small, StorageConfig(), IMPATIENT)
    spool.put(EVENTS, BODY)
    assert spool.flush(5.0)
    spool.close()
    remount(small, "ro")
    spool = Spool(small, StorageConfig(), IMPATIENT)
    spool.put(EVENTS, BODY)
    wait_for(lambda: len(spool.peek(0, 10)) == 1)
    assert spool.peek(0, 10)[0].seq > 1
    assert len(said(caplog, logging.ERROR)) == 1
    remount(small, "rw")
    wait_for(lambda: spool.stats().on == "disk")
    assert len(spool.peek(0, 10)) == 2
    spool.close()


def test_a_connection_that_was_opened_on_a_read_only_disk_is_opened_again(small: Path) -> None:
    """It stays read-only when the disk takes writes again."""
    spool = Spool(small, StorageConfig(), IMPATIENT)
    spool.put(EVENTS, BODY)
    assert spool.flush(5.0)
    table = spool._disk._table
    assert table is not None
    table._writer.execute("PRAGMA query_only = ON")  # what such a connection says to a write
    spool.put(EVENTS, BODY)
    assert not spool.flush(5.0)
    wait_for(lambda: spool.stats().on == "disk")
    assert len(spool.peek(0, 10)) == 2
    spool.close()


def test_what_cannot_be_kept_is_said_at_the_end(small: Path, caplog: pytest.LogCaptureFixture) -> None:
    spool = Spool(small, StorageConfig(), IMPATIENT)
    fill(small)
    for _ in range(100):
        spool.put(EVENTS, BODY)
    wait_for(lambda: spool.stats().on == "memory")
    spool.close()
    assert "100 events" in said(caplog, logging.ERROR)[-1]


def test_an_atomic_write_on_a_full_disk_keeps_the_old_file(small: Path) -> None:
    path = small / "state"
    write_atomic(path, b"old")
    fill(small)
    with pytest.raises(StorageError, match="No space left"):
        write_atomic(path, bytes(100_000))
    assert path.read_bytes() == b"old"
    assert not list(small.glob(".*"))


def test_events_reach_the_broker_in_order_through_a_full_disk(small: Path) -> None:
    with Mosquitto(small.parent) as broker:
        messages = broker.subscribe("vedette/#")
        with device(small, broker.config()) as (spool, _):
            for step in range(3):
                for _ in range(200):
                    spool.put(EVENTS, event())
                    time.sleep(0.0005)
                if step == 0:
                    filler = fill(small)
                if step == 1:
                    filler.unlink()
            messages.wait(lambda m: len(m.of(EVENTS)) >= 600)
            wait_for(lambda: spool.stats().waiting == 0 and spool.stats().on == "disk")
    assert [e.seq for e in in_order(events_of(messages.of(EVENTS)))] == list(range(1, 601))


def test_a_disk_that_gets_full_while_a_version_is_installed_is_named(small: Path) -> None:
    with pytest.raises(
        UpdateError, match=f"cannot be created.*: No space left on the disk of {small}: make room"
    ):
        install(sys.executable, small / "venv", [])
