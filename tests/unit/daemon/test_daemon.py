"""A state folder that is deleted or replaced under a daemon: noticed, said once, and written anew."""

from __future__ import annotations

import logging
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent.config import StorageConfig
from agent.daemon.daemon import StateGuard
from agent.storage.spool.recovery import History
from agent.storage.spool.spool import Spool
from agent.storage.state import OwnedFolder
from agent.types import OpenTrack
from tests.support.publishing import from_one, wait_for
from tests.support.spooling import IMPATIENT, TOPIC, filled, numbers


class State:
    """A folder with a spool of five events, of which one is acknowledged and one is a track that is open."""

    def __init__(self, folder: Path) -> None:
        self.path = folder
        self.written = 0
        self.folder = OwnedFolder(from_one(folder))
        self.spool = filled(folder, 4, retry_s=IMPATIENT)
        self.spool.put(TOPIC, b"new", OpenTrack("track", b"end"))
        self.spool.settle([1])
        assert self.spool.flush(20.0)
        self.guard = StateGuard(self.folder, self.spool, self._write, retry_s=0.05)

    def _write(self) -> None:
        (self.path / "overrides.json").write_text("{}")
        self.written += 1

    def mended(self) -> bool:
        """Look as the daemon does; True when all was there before the look."""
        whole = not self.folder.is_gone and not self.spool.is_gone
        self.told = self.guard.check()
        return whole

    def close(self) -> None:
        """End in order."""
        self.spool.close()
        self.folder.close()


@pytest.fixture
def state(tmp_path: Path) -> Iterator[State]:
    made = State(tmp_path / "disk" / "state")
    yield made
    made.close()


def moved(folder: Path) -> None:
    folder.rename(folder.with_name("elsewhere"))


def emptied(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def replaced(folder: Path) -> None:
    """By another device's."""
    shutil.rmtree(folder)
    filled(from_one(folder), 9).close()


def without_journal(folder: Path) -> None:
    (folder / "spool.db-wal").unlink()


def without_spool(folder: Path) -> None:
    (folder / "spool.db").unlink()


@pytest.mark.parametrize("lose", [shutil.rmtree, moved, emptied, replaced, without_journal, without_spool])
def test_what_was_deleted_or_replaced_is_written_anew_and_nothing_is_lost(
    state: State, lose: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    assert state.mended()
    assert state.told == ""
    lose(state.path)
    state.spool.put(TOPIC, b"after")
    assert state.spool.flush(20.0)
    assert not state.mended()
    wait_for(state.mended)
    assert numbers(state.spool) == [2, 3, 4, 5, 6]
    assert state.told.startswith(f"{state.path} was deleted or replaced at 20")
    assert state.told.endswith("; it was restored")
    assert state.written == 1
    assert state.spool.stats().on == "disk"
    assert {file.stat().st_mode & 0o777 for file in state.path.glob("spool.db*")} == {0o640}
    after = copied(state.path)
    assert [past.stored.seq for past in History(after).after(0)] == [2, 3, 4, 5, 6]
    again = Spool(after, StorageConfig())
    wait_for(lambda: numbers(again) == [2, 3, 4, 5, 6, 7])
    assert again.peek(6, 1)[0].body == b"end", "as after a kill: the will of the open track"
    again.close()
    errors = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(errors) == 1
    assert "was deleted or replaced while Vedette runs" in errors[0]


def copied(folder: Path) -> Path:
    """As the next start would find it if the process were killed now."""
    copy = folder.with_name("copy")
    copy.mkdir()
    for file in folder.glob("spool.*"):
        if file.suffix in (".db", ".db-wal", ".seq"):
            shutil.copy(file, copy)
    return copy


def test_while_it_cannot_be_made_again_events_are_kept_in_memory_and_that_is_said_once(
    state: State, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.rmtree(state.path.parent)
    state.path.parent.touch()
    wait_for(lambda: not state.mended() and state.spool.stats().on == "memory")
    state.spool.put(TOPIC, b"after")
    wait_for(lambda: numbers(state.spool) == [2, 3, 4, 5, 6])
    state.spool.settle([3])
    assert not state.mended()
    assert "state: cannot be used as the state folder: " in state.told
    assert state.written == 0
    state.path.parent.unlink()
    wait_for(state.mended)
    wait_for(lambda: state.mended() and state.spool.stats().on == "disk")
    assert state.spool.flush(20.0)
    assert numbers(state.spool) == [2, 4, 5, 6]
    assert state.told.endswith("; it was restored")
    errors = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(errors) == 2
    assert "lost at the next restart" in errors[1]


def test_an_end_while_nothing_can_be_written_tells_how_much_goes_with_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = State(tmp_path / "disk" / "state")
    shutil.rmtree(state.path.parent)
    state.path.parent.touch()
    state.mended()
    wait_for(lambda: state.spool.stats().on == "memory")
    state.spool.put(TOPIC, b"after")
    state.close()
    assert "5 events" in caplog.text


def test_a_folder_that_another_daemon_has_taken_meanwhile_is_left_to_it(state: State) -> None:
    shutil.rmtree(state.path)
    other = OwnedFolder(from_one(state.path))
    theirs = filled(state.path, 2)
    wait_for(lambda: not state.mended() and state.spool.stats().on == "memory")
    assert "in use by another vedette" in state.told
    assert numbers(theirs) == [1, 2]
    theirs.close()
    other.close()
    wait_for(state.mended)
    with sqlite3.connect(next(state.path.glob("spool.db.replaced-*"))) as found:
        assert found.execute("SELECT count(*) FROM spool").fetchone() == (2,)


@pytest.mark.parametrize("put", [lambda path: path.symlink_to("elsewhere"), os.mkfifo, Path.mkdir])
def test_while_something_lies_in_place_of_the_mark_events_are_kept_in_memory(
    state: State, put: Callable[[Path], None]
) -> None:
    emptied(state.path)
    mark = state.path / "spool.seq"
    put(mark)
    wait_for(lambda: state.mended() and state.spool.stats().on == "memory")
    assert state.written == 1
    wait_for(lambda: numbers(state.spool) == [2, 3, 4, 5])
    mark.rmdir() if mark.is_dir() else mark.unlink()
    wait_for(lambda: state.mended() and state.spool.stats().on == "disk")
    assert state.spool.flush(20.0)
    assert numbers(state.spool) == [2, 3, 4, 5]
    assert state.spool.stats().waiting == 4
    again = Spool(copied(state.path), StorageConfig())
    wait_for(lambda: numbers(again)[:4] == [2, 3, 4, 5] and len(numbers(again)) == 5)
    assert again.peek(5, 1)[0].body == b"end", "the crash end has moved, too"
    again.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root is refused")
def test_a_refused_folder_is_told_to_those_who_would_write_there(state: State) -> None:
    emptied(state.path)
    os.chown(state.path, 65534, 65534)
    state.mended()
    assert "belongs to the user nobody" in state.guard.trouble
    assert "belongs to the user nobody" in state.told
    assert state.written == 0
    wait_for(lambda: not state.mended() and state.spool.stats().on == "memory")
    state.spool.put(TOPIC, b"after")
    wait_for(lambda: numbers(state.spool) == [2, 3, 4, 5, 6])
    assert list(state.path.iterdir()) == []
    shutil.rmtree(state.path)
    wait_for(lambda: state.mended() and state.spool.stats().on == "disk")
    assert state.guard.trouble == ""
    assert state.spool.flush(20.0)
    assert numbers(state.spool) == [2, 3, 4, 5, 6]
