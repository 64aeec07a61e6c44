"""What scripts/install has put into a slot becomes what updates know."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.errors import UpdateError
from agent.storage.modelsets import ModelSets
from agent.update.adopting import adopt
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
    assert (home / "config/vedette.toml.example").exists()
    assert board.slots.version("b") == "0.1"
    assert board.updater().journal.committed_counter() == 5
    adopt(board.where, "b", "0.1", board.bundle(counter=5))


def test_from_a_clone_only_its_version_is_noted(board: Board) -> None:
    board.slots.empty("b")
    adopt(board.where, "b", "0.1", None)
    assert board.slots.version("b") == "0.1"
    assert board.updater().journal.history() == []


def test_models_alone_are_no_version(board: Board) -> None:
    board.slots.empty("b")
    with pytest.raises(UpdateError, match="brings models only"):
        adopt(board.where, "b", "0.1", board.models())
    assert board.slots.version("b") == ""
