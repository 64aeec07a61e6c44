"""Updates on a real small file system that becomes full before any change that they make there."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent.errors import VedetteError
from tests.support.pretend_board import CONFIG, Board
from tests.support.tiny_bundles import needs_ssh_keygen
from tests.unit.update.install.test_updater_power_cuts import (
    MIGRATIONS,
    Cutting,
    check_end,
    from_switch,
    strike_before,
    up_to_switch,
)

pytestmark = [pytest.mark.board, needs_ssh_keygen]
OVER, WAITS = 0, 1
FILLER = "filler"


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Board]:
    if os.geteuid() != 0:
        pytest.skip("a file system of its own needs root")
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "vedette-test", str(small)], check=False
    ).returncode:
        pytest.skip("mounting a tmpfs is refused here")
    yield Board(small, monkeypatch)
    subprocess.run(["umount", "-l", str(small)], check=True)


def fill(board: Board) -> None:
    """Take every byte that is left."""
    with (board.where.root.parent / FILLER).open("ab", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            pass


def on_full_disk(board: Board, change: int, work: Callable[[], None]) -> tuple[bool, int]:
    """Do some work in a process whose disk is full from its nth change on, and try again twice, as the unit does.

    Gives whether it came to that, and how it ended: `OVER`, or `WAITS` for room.
    """
    child = os.fork()
    if child == 0:
        ended = WAITS
        try:
            strike_before(change, lambda: fill(board))
            for attempt in range(3):
                try:
                    board.updater().resume() if attempt else work()
                    ended = OVER
                    break
                except VedetteError:
                    pass
        finally:
            os._exit(ended)
    ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return (board.where.root.parent / FILLER).exists(), ended


def filled(cutting: Cutting, board: Board, work: Callable[[], None]) -> Iterator[int]:
    """Fill the disk before each change in turn; gives how it ended, with the disk still full."""
    change = 0
    while True:
        (board.where.root.parent / FILLER).unlink(missing_ok=True)
        cutting.again()
        was_full, ended = on_full_disk(board, change, work)
        if not was_full:
            return
        yield ended
        change += 1


def check(board: Board, *, good: bool) -> None:
    """There is room again."""
    (board.where.root.parent / FILLER).unlink()
    board.restart_service()
    check_end(board, good=good)
    assert not board.where.reserve.exists()


@pytest.mark.parametrize("version", ["2.0", "2.0+slow"])
def test_a_disk_that_gets_full_in_a_switch_leaves_one_version_with_its_configuration(
    board: Board, version: str
) -> None:
    ends = list[int]()
    for ended in filled(up_to_switch(board, version), board, lambda: from_switch(board)):
        ends.append(ended)
        check(board, good=version == "2.0")
    assert len(ends) >= 40
    assert ends.count(OVER) > len(ends) * 0.7, (
        "the room that is kept for it is enough, unless others take that, too"
    )


def test_a_disk_that_gets_full_while_an_update_is_staged_gets_back_what_that_has_taken(board: Board) -> None:
    updater = board.updater()
    update = updater.receive(board.bundle("2.0", migrations=MIGRATIONS))
    while update.state != "verified":
        update = updater._step(update)
    ends = list[int]()
    cutting = Cutting(board)

    def stage() -> None:
        update = board.updater().journal.read()
        while update is not None and update.state in ("verified", "staged"):
            update = board.updater()._step(update)

    for ended in filled(cutting, board, stage):
        ends.append(ended)
        last = board.updater().journal.read()
        assert last is not None
        if ended == OVER and last.state == "refused":
            assert "No space left" in last.reason
            assert board.slots.version("b") == ""
            assert not (board.slots.path("b") / "venv").exists()
        assert (board.runs, board.config) == ("1.0", CONFIG)
        check(board, good=True)
    assert len(ends) >= 40
    assert ends.count(OVER) > len(ends) * 0.9


def test_the_dead_man_ends_a_trial_on_a_full_disk(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(BaseException):
        pass

    def killed(_: float) -> None:
        raise Killed

    up_to_switch(board, "2.0")
    monkeypatch.setattr(board, "_sleep", killed)
    with pytest.raises(Killed):
        from_switch(board)
    assert board.where.trial.exists()
    board.service.deadman()
    fill(board)
    board.service.deadman()
    assert board.where.trial.exists(), "it has its time"
    text = board.where.trial_usage.read_text()
    with board.where.trial_usage.open("r+") as file:  # in its place, which takes no room
        file.write(text.replace("elapsed_s=0", "elapsed_s=9999"))
    board.service.deadman()
    assert not board.where.trial.exists()
    assert (board.runs, board.config) == ("1.0", CONFIG)


def test_a_version_that_brings_the_board_down_on_a_full_disk_has_its_boots_counted(
    board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    boot = board.where.root / "proc/sys/kernel/random/boot_id"
    boot.parent.mkdir(parents=True)
    boot.write_text("0\n")
    (board.where.root / "proc/uptime").write_text("3.00 1.00\n")
    updater = board.updater()
    up_to_switch(board, "2.0")
    monkeypatch.setattr(
        "agent.update.install.updater.Updater._follow_trial", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    with pytest.raises(KeyboardInterrupt):
        from_switch(board)
    board.service.deadman()
    for number in range(1, 4):
        fill(board)
        with boot.open("r+") as file:  # in its place, which takes no room
            file.write(f"{number}\n")
        board.service.deadman("settle")
        assert f"boots={number}\n" in board.where.trial_usage.read_text()
        assert board.where.reserve.stat().st_size > 128 * 1024, "which a rollback needs"
    fill(board)
    with boot.open("r+") as file:
        file.write("4\n")
    board.service.deadman("settle")
    assert (board.runs, board.config) == ("1.0", CONFIG)
    assert not board.where.trial.exists()
    assert updater.journal.read() is not None


def test_what_cannot_even_begin_on_a_full_disk_is_refused_and_gives_its_room_back(board: Board) -> None:
    board.updater().receive(board.bundle("2.0"))
    fill(board)
    done = board.updater().resume()
    assert done is not None
    assert done.state == "refused"
    assert "No space left" in done.reason
    assert not board.where.incoming.exists()
