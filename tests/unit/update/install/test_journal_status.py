"""Status of the versions, on a board in a folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.update.install.journal import UpdateStatus, status
from tests.support.pretend_board import Board
from tests.support.tiny_bundles import needs_ssh_keygen

pytestmark = needs_ssh_keygen


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Board:
    return Board(tmp_path, monkeypatch)


def models(told: UpdateStatus) -> tuple[int, int, str]:
    return told.counter, told.models, told.kind


def test_the_models_in_use_are_told_beside_the_counter_which_stays(board: Board) -> None:
    assert models(status(board.where)) == (0, 0, "")
    assert not any("models" in line for line in status(board.where).lines())
    for counter in (7, 8):
        board.apply(board.models(counter))
    assert models(status(board.where)) == (8, 8, "models")
    assert "models    8" in status(board.where).lines()
    board.go_back()
    assert models(status(board.where)) == (8, 7, "models")
    board.go_back()
    assert models(status(board.where)) == (8, 0, "models")


def test_a_version_brings_models_of_its_counter(board: Board) -> None:
    board.apply(board.bundle(counter=5))
    assert models(status(board.where)) == (5, 5, "full")
    board.go_back()
    assert models(status(board.where)) == (5, 0, "full")
    board.apply(board.bundle("3.0+crash", counter=6))
    assert models(status(board.where)) == (5, 0, "full")


def test_a_link_of_somebodys_own_is_no_set(board: Board) -> None:
    (board.slots.path("a") / "models").symlink_to("/home/pi/models")
    assert status(board.where).models == 0
    assert status(board.where).version == "1.0"
