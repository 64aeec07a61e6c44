from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

import pytest

from agent.config import StorageConfig
from agent.storage.spool import table
from agent.storage.spool.disk import Watermark
from agent.storage.spool.spool import Spool
from agent.types import OpenTrack
from tests.support.publishing import wait_for
from tests.support.spooling import IMPATIENT, TOPIC, bodies, corruption, errors, numbers, reopened

pytestmark = pytest.mark.usefixtures("counts_from_one")


def with_open_tracks(folder: Path) -> Spool:
    """Two things are open; a third was, and has been closed."""
    opened = Spool(folder, StorageConfig())
    for key in ("a", "b", "c"):
        opened.put(TOPIC, b"new " + key.encode(), OpenTrack(key, b"end " + key.encode()))
    opened.put(TOPIC, b"update a", OpenTrack("a", b"end a2"))
    opened.put(TOPIC, b"end c", OpenTrack("c", None))
    assert opened.flush(60.0)
    return opened


def test_crash_ends_are_the_first_events_of_the_next_process_and_hold_once(tmp_path: Path) -> None:
    opened = with_open_tracks(tmp_path)
    assert len(bodies(opened)) == 5
    again = reopened(opened, tmp_path)
    assert again.flush(60.0)
    again.put(TOPIC, b"more")
    assert again.flush(60.0)
    assert bodies(again)[5:] == [b"end a2", b"end b", b"more"]
    assert numbers(again) == list(range(1, 9))
    assert again.crash_ends == 2
    third = reopened(again, tmp_path)
    assert (third.crash_ends, len(bodies(third))) == (0, 8)
    third.close()


def test_crash_ends_outlive_a_corrupt_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    opened = with_open_tracks(tmp_path)
    opened._disk.handle_error(corruption())
    opened.put(TOPIC, b"more")
    assert opened.flush(60.0)
    assert opened.crash_ends == 0, "they are of this process"
    again = reopened(opened, tmp_path)
    assert again.flush(60.0)
    assert again.crash_ends == 2
    again.close()
    assert "set aside" in errors(caplog)[0]


@pytest.mark.parametrize("stale", [False, True])
def test_crash_ends_on_a_disk_that_can_be_opened_only_later_are_put_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stale: bool
) -> None:
    opened = Spool(tmp_path, StorageConfig(), IMPATIENT)
    opened.put(TOPIC, b"new a", OpenTrack("a", b"end a"))
    assert opened.flush(60.0)
    opened.settle([1])
    opened.close()
    if stale:
        Watermark(tmp_path / "spool.seq").mark_stale()
    connect, usable = table.connect, threading.Event()

    def fail(path: Path) -> sqlite3.Connection:
        if not usable.is_set():
            raise sqlite3.OperationalError("unable to open database file")
        return connect(path)

    monkeypatch.setattr(table, "connect", fail)
    again = Spool(tmp_path, StorageConfig(), IMPATIENT)
    assert again.stats().on == "memory"
    again.put(TOPIC, b"x")
    usable.set()
    wait_for(lambda: again.stats().on == "disk")
    expected = [b"x"] if stale else [b"x", b"end a"]
    wait_for(lambda: bodies(again) == expected)
    again.close()
    last = Spool(tmp_path, StorageConfig())
    assert last.flush(60.0)
    assert bodies(last) == expected, "once"
    last.close()
