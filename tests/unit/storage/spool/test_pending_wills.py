from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from agent.config.device import StorageConfig
from agent.storage.spool import table, writer
from agent.storage.spool.pending import OpenTracks, StoredOpenTrack
from agent.storage.spool.spool import Spool
from agent.storage.spool.watermark import Watermark
from agent.types import Will
from tests.support.publishing import wait_for
from tests.support.spooling import TOPIC, bodies, corruption, errors, numbers, reopened

pytestmark = pytest.mark.usefixtures("counts_from_one")


def test_a_will_that_changes_while_it_is_written_is_written_again() -> None:
    wills = OpenTracks()
    wills.set(TOPIC, Will("a", b"1"))
    wills.set(TOPIC, Will("b", b"1"))
    taken = wills.all()
    wills.set(TOPIC, Will("a", b"2"))
    wills.written(taken)
    assert wills.all() == [StoredOpenTrack("a", TOPIC, b"2")]
    wills.written(wills.all())
    assert not wills


def test_a_will_is_open_until_it_is_withdrawn_whatever_the_disk_knows() -> None:
    wills = OpenTracks()
    wills.set(TOPIC, Will("a", b"1"))
    wills.written(wills.all())
    assert wills.any_open
    wills.set(TOPIC, Will("a", None))
    assert (wills.any_open, bool(wills)) == (False, True)


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
    assert opened._writer.disk is not None
    opened._writer.disk.lost(corruption())
    opened.put(TOPIC, b"more")
    assert opened.flush(10.0)
    assert opened.executed == 0, "they are of this process"
    again = reopened(opened, tmp_path)
    assert again.flush(10.0)
    assert again.executed == 2
    again.close()
    assert "set aside" in errors(caplog)[0]


@pytest.mark.parametrize("void", [False, True])
def test_wills_on_a_disk_that_can_be_opened_only_later_are_executed_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, void: bool
) -> None:
    monkeypatch.setattr(writer, "_RETRY_S", 0.1)
    opened = Spool(tmp_path, StorageConfig())
    opened.put(TOPIC, b"new a", Will("a", b"end a"))
    assert opened.flush(5.0)
    opened.settle([1])
    opened.close()
    if void:
        Watermark(tmp_path / "spool.seq").revoke_wills()
    connect, left = table.connect, [2]

    def fail(path: Path) -> sqlite3.Connection:
        if left[0] > 0:
            left[0] -= 1
            raise sqlite3.OperationalError("unable to open database file")
        return connect(path)

    monkeypatch.setattr(table, "connect", fail)
    again = Spool(tmp_path, StorageConfig())
    assert again.stats().on == "memory"
    again.put(TOPIC, b"x")
    wait_for(lambda: again.stats().on == "disk")
    expected = [b"x"] if void else [b"x", b"end a"]
    wait_for(lambda: bodies(again) == expected)
    again.close()
    last = Spool(tmp_path, StorageConfig())
    assert last.flush(5.0)
    assert bodies(last) == expected, "once"
    last.close()
