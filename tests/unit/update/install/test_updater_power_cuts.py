"""The power goes before every change of the disk from the switch on, and before some of those earlier."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent.update.bundle import Migration
from agent.update.install.journal import FINAL
from tests.support.pretend_board import CONFIG, Board
from tests.support.tiny_bundles import needs_ssh_keygen

# Each cut runs an update with a hundred fsyncs, which take long while others write to the disk.
pytestmark = [pytest.mark.board, needs_ssh_keygen, pytest.mark.timeout(480)]
CUT, DONE = 137, 0
CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.symlink", "os.link", "os.truncate", "os.chmod")
MIGRATIONS = [Migration("rename", "mqtt.host", to="mqtt.server")]


def strike_before(change: int, strike: Callable[[], object]) -> None:
    """Have something done once in this process, before its nth change of the disk. This cannot be taken back."""
    left = change

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal left
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if event in CHANGES or writes:
            left -= 1
            if left == -1:
                strike()

    sys.addaudithook(hook)


def cut_before(change: int, work: Callable[[], object]) -> bool:
    """Do some work in a process that is killed before its nth change of the disk; whether it came to that."""
    child = os.fork()
    if child == 0:
        try:
            strike_before(change, lambda: os._exit(CUT))
            work()
        finally:
            os._exit(DONE)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == CUT


class Cutting:
    """Copies of one board with an update in a given state."""

    def __init__(self, board: Board) -> None:
        self.board = board
        self._kept = board.where.root.with_name("kept")
        shutil.copytree(board.where.root, self._kept, symlinks=True)

    def again(self) -> None:
        """As it was."""
        shutil.rmtree(self.board.where.root)
        shutil.copytree(self._kept, self.board.where.root, symlinks=True)
        self.board.restart_service()
        self.board.now = 0.0

    def every(self, first: int = 0, step: int = 1) -> Iterator[int]:
        """Cut before each change in turn, until the work is done without; the power is back after each."""
        change = first
        while True:
            self.again()
            if not cut_before(change, lambda: self.board.updater().resume()):
                return
            self.board.restart_service()
            yield change
            change += step


def check_end(board: Board, *, good: bool) -> None:
    """After the update has gone on: the old version or the new one, with its own configuration."""
    board.updater().resume()
    last = board.updater().journal.read()
    assert last is not None
    assert last.state in FINAL
    assert board.updater().journal.history()[-1] == last
    assert board.runs == ("2.0" if last.state == "committed" else "1.0")
    assert board.config == (CONFIG.replace("host", "server") if board.runs == "2.0" else CONFIG)
    assert good or board.runs == "1.0"
    board.check_sound()


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Board:
    return Board(tmp_path, monkeypatch)


def up_to_switch(board: Board, version: str) -> Cutting:
    """An update whose switch comes next."""
    updater = board.updater()
    update = updater.receive(board.bundle(version, migrations=MIGRATIONS))
    while update.state != "tested":
        update = updater._step(update)
    return Cutting(board)


def test_a_board_starts_one_version_or_the_other_wherever_the_power_goes_in_the_switch(board: Board) -> None:
    ends = set[str]()
    cuts = 0
    for _ in going_on(up_to_switch(board, "2.0"), board):
        cuts += 1
        check_end(board, good=True)
        ends.add(board.runs)
        if board.runs == "2.0":  # what a rollback needs has survived the cut
            board.go_back()
            assert board.config == CONFIG
    assert cuts >= 40
    assert ends == {"1.0", "2.0"}


def going_on(cutting: Cutting, board: Board, step: int = 1) -> Iterator[None]:
    """Cut what is `tested` before each change that follows; `resume` would begin again from the bundle."""
    change = 0
    while True:
        cutting.again()
        if not cut_before(change, lambda: from_switch(board)):
            return
        board.restart_service()
        yield
        change += step


def from_switch(board: Board) -> None:
    updater = board.updater()
    update = updater.journal.read()
    while update is not None and not update.finished:
        update = updater._step(update)


def test_going_back_is_done_or_not_wherever_the_power_goes(board: Board) -> None:
    board.apply(board.bundle("2.0", migrations=MIGRATIONS))
    cutting, change, ends = Cutting(board), 0, set[str]()
    while True:
        cutting.again()
        if not cut_before(change, board.go_back):
            break
        board.restart_service()
        board.updater().resume()
        assert board.config == (CONFIG.replace("host", "server") if board.runs == "2.0" else CONFIG), change
        board.check_sound()
        ends.add(board.runs)
        change += 1
    assert ends == {"1.0", "2.0"}


def test_a_version_that_is_not_well_is_never_kept_wherever_the_power_goes(board: Board) -> None:
    cuts = 0
    for _ in going_on(up_to_switch(board, "2.0+slow"), board):
        cuts += 1
        check_end(board, good=False)
    assert cuts >= 40


def test_a_cut_before_the_switch_changes_nothing_and_the_update_begins_again(board: Board) -> None:
    board.updater().receive(board.bundle(migrations=MIGRATIONS))
    states = set()
    for change in Cutting(board).every(step=7):
        left = board.updater().journal.read()
        assert left is not None
        states.add(left.state)
        if left.state in ("received", "verified", "staged", "tested"):
            assert board.runs == "1.0", change
            assert board.config == CONFIG
        check_end(board, good=True)
    assert {"received", "verified", "staged"} <= states


def test_the_power_goes_again_while_the_board_recovers(board: Board) -> None:
    recoveries = 0
    for _ in going_on(up_to_switch(board, "2.0+slow"), board, step=5):
        for change in range(0, 12, 3):
            if cut_before(change, lambda: board.updater().resume()):
                recoveries += 1
                board.restart_service()
        check_end(board, good=False)
    assert recoveries > 10
