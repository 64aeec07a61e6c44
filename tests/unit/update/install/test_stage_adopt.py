"""The updater adopts a slot that scripts/install has filled."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.errors import UpdateError
from agent.update.install.journal import State, status
from agent.update.install.slots import ModelSets
from agent.update.install.stage import adopt
from tests.support.pretend_board import Board
from tests.support.tiny_bundles import needs_ssh_keygen

pytestmark = needs_ssh_keygen


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Board:
    return Board(tmp_path, monkeypatch)


def test_from_a_bundle_its_models_and_its_counter_are_there(board: Board) -> None:
    board.slots.empty("b")
    adopt(board.where, "b", "0.1", board.bundle(counter=5))
    home = board.slots.path("b")
    assert ModelSets(home).current == 5
    assert (home / "models/small-speech.tflite").exists()
    assert (home / "bundle.toml").exists()
    assert (home / "config/vedette.toml.example").stat().st_mode & 0o777 == 0o600
    assert board.slots.version("b") == "0.1"
    assert board.updater().journal.committed_counter() == 5
    adopt(board.where, "b", "0.1", board.bundle(counter=5))


def test_from_a_clone_its_version_is_noted_and_no_counter(board: Board) -> None:
    board.slots.empty("b")
    adopt(board.where, "b", "0.1", None)
    assert board.slots.version("b") == "0.1"
    [told] = board.updater().journal.history()
    assert (told.state, told.from_version, told.version, told.reason) == ("committed", "1.0", "0.1", "installed")
    assert board.updater().journal.committed_counter() == 0


def test_the_history_names_the_file_that_the_bundle_is_a_copy_of(board: Board) -> None:
    board.slots.empty("b")
    adopt(board.where, "b", "0.1", board.bundle(counter=5), "/home/pi/new.vedette")
    assert board.updater().journal.history()[-1].file == "/home/pi/new.vedette"


@pytest.mark.parametrize(
    ("state", "closed"),
    [("received", "refused"), ("shadow", "refused"), ("switching", "rolled_back"), ("trial", "rolled_back")],
)
def test_an_update_that_was_at_hand_is_closed_and_nothing_of_it_is_left(
    board: Board, state: State, closed: State
) -> None:
    journal = board.updater().journal
    journal.update_fields(board.updater().receive(board.bundle(counter=9)), state=state, version="9.0", counter=9)
    (board.where.state / "kept").mkdir()
    left = [board.where.trial, board.where.verdict, board.where.trial_usage, board.where.state / "order"]
    left += [board.where.state / "kept" / name for name in ("vedette.toml", "a.toml", "b.toml")]
    for path in left:
        path.write_text("state=trial\n", encoding="utf-8")
    board.slots.empty("b")
    adopt(board.where, "b", "0.1", None)
    assert [path for path in left if path.exists()] == []
    told, installed = board.updater().journal.history()
    assert installed.version == "0.1"
    assert (told.state, told.version, told.by) == (closed, "9.0", "operator")
    assert told.reason == "Vedette was installed anew"
    assert board.updater().journal.committed_counter() == 0
    assert board.updater().resume() is None


def test_an_update_that_was_over_stays_in_the_journal_as_it_is(board: Board) -> None:
    done = board.apply(board.bundle())
    adopt(board.where, "a", "0.1", None)
    assert board.updater().journal.read() == done
    assert [one.version for one in board.updater().journal.history()] == ["2.0", "0.1"]


def test_models_alone_are_no_version(board: Board) -> None:
    board.slots.empty("b")
    with pytest.raises(UpdateError, match="brings models only"):
        adopt(board.where, "b", "0.1", board.models())
    assert board.slots.version("b") == ""


def test_a_rollback_returns_to_the_version_before_an_installation(board: Board) -> None:
    assert status(board.where).previous == ""
    board.slots.empty("b")
    adopt(board.where, "b", "2.0", None)
    board.slots.point("keeper", "b")
    board.slots.point("current", "b")
    assert status(board.where).previous == "1.0"
