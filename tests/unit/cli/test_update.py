"""`vedette update` on a board in a folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from agent.__main__ import main
from agent.cli.main import vedette
from agent.errors import StorageError, UpdateError
from agent.storage.state import OwnedFolder
from agent.update.bundle.signing import signature_of
from agent.update.install.health_check import Systemd
from agent.update.install.slots import ROOT_VARIABLE
from tests.support.pretend_board import Board, write_command
from tests.support.tiny_bundles import model_files, needs_ssh_keygen

pytestmark = [pytest.mark.board, needs_ssh_keygen]


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Board:
    made = Board(tmp_path, monkeypatch)
    monkeypatch.setenv(ROOT_VARIABLE, str(made.where.root))
    for name in ("restart", "reload", "state"):
        monkeypatch.setattr(Systemd, name, lambda self, name=name: getattr(made.service, name)())
    monkeypatch.setattr(Systemd, "is_there", staticmethod(lambda: False))
    monkeypatch.setattr("agent.update.install.updater._POLL_S", 0.0)
    return made


def run(*words: str, code: int = 0) -> str:
    result = CliRunner().invoke(vedette, ["update", *words])
    assert result.exit_code == code, result.output
    return result.output


def failed(*words: str) -> str:
    result = CliRunner().invoke(vedette, ["update", *words])
    assert isinstance(result.exception, UpdateError | StorageError)
    return str(result.exception)


def quick(board: Board, **fields: object) -> str:
    from agent.update.bundle import HealthGate

    return str(board.bundle(health=HealthGate(steady_s=0, within_s=0), **fields))  # type: ignore[arg-type]  # fields of a description, as the test gives them


def test_a_board_is_updated_and_goes_back(board: Board) -> None:
    assert "version   1.0, slot a\nprevious  none\ncounter   0\n" in run("status")
    assert run("history") == "no update yet\n"
    said = run("apply", quick(board))
    assert said.splitlines()[0] == "verifying the signature and every file"
    assert said.splitlines()[-1] == "committed: 2.0"
    status = json.loads(run("status", "--json"))
    assert (status["version"], status["previous"], status["counter"]) == ("2.0", "1.0", 2)
    assert "rolling back from 2.0 to 1.0" in run("rollback")
    assert board.runs == "1.0"
    first, second = (json.loads(line) for line in run("history", "--json").splitlines())
    assert (first["state"], second["state"], second["by"]) == ("committed", "rolled_back", "operator")
    assert "1.0 → 2.0 (counter 2)" in run("history", "-n", "2")
    board.check_sound()


def test_one_that_is_refused_says_why_and_exits_with_1(board: Board) -> None:
    said = run("apply", quick(board, version="2.0+golden"), code=1)
    assert "refused: the self-test of the new version fails: model small-speech: output 0 is 0.3 off" in said
    assert "refused" in run("status")


def test_a_name_that_is_no_text_is_told_as_far_as_it_is(board: Board) -> None:
    path = Path(quick(board))
    odd = path.with_name(os.fsdecode(b"bad\xff.vedette"))
    path.rename(odd)
    signature_of(path).rename(signature_of(odd))
    assert "committed: 2.0" in run("apply", str(odd))
    assert json.loads(run("status", "--json"))["at_hand"]["file"].endswith("/bad?.vedette")
    signature_of(odd).unlink()
    assert "the signature is missing" in failed("apply", str(odd))


def test_who_looks_no_longer_is_told_that_it_goes_on(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Systemd, "is_there", staticmethod(lambda: True))
    monkeypatch.setattr(Systemd, "hand_over", lambda _: None)
    monkeypatch.setattr("agent.update.install.journal.follow", stop)
    assert "the update continues by itself: see `vedette update status`" in run("apply", quick(board), code=130)


def test_resuming_without_an_update_does_nothing(board: Board) -> None:
    assert run("resume") == ""


def test_what_was_received_is_gone_on_with(board: Board) -> None:
    board.updater().receive(Path(quick(board)))
    assert "is not over (received)" in failed("apply", quick(board, counter=3))
    assert "committed: 2.0" in run("resume")


def test_orders_to_a_trial_are_left_for_whoever_follows_it(board: Board) -> None:
    assert "nothing is on trial" in failed("confirm")
    updater = board.updater()
    updater.journal.update_fields(updater.receive(board.bundle()), state="trial")
    assert "rollback requested" in run("rollback")
    assert (board.where.state / "order").read_text(encoding="utf-8") == "rollback"


def test_going_back_can_be_said_again_and_is_not_done_twice(board: Board) -> None:
    run("apply", quick(board))
    assert "rolling back from 2.0 to 1.0" in run("rollback", "--once")
    assert "already rolled back to 1.0, at 20" in run("rollback", "--once")
    assert "refused" in run("apply", quick(board, version="3.0+golden", counter=3), code=1)
    assert "already rolled back to 1.0" in run("rollback", "--once"), "what was refused has changed nothing"
    assert board.runs == "1.0"
    assert "rolling back from 1.0 to" not in run("history")
    run("apply", quick(board, version="4.0", counter=4))
    assert "rolling back from 4.0 to 1.0" in run("rollback", "--once")


def test_after_a_rollback_a_newer_update_can_still_be_ended(board: Board) -> None:
    run("apply", quick(board))
    run("rollback", "--once")
    updater = board.updater()
    updater.journal.update_fields(updater.receive(board.bundle("4.0", 4)), state="trial")
    assert "rollback requested" in run("rollback", "--once")
    assert (board.where.state / "order").exists()


def test_an_update_that_was_ended_is_not_followed_by_a_step_back(board: Board) -> None:
    run("apply", quick(board))
    board.updater().receive(board.models(7))
    assert "rollback requested" in run("rollback", "--once")
    run("resume")
    assert "was already ended" in run("rollback", "--once")
    assert board.runs == "2.0"


def test_a_later_installation_from_a_clone_can_be_rolled_back(board: Board) -> None:
    run("apply", quick(board))
    run("rollback", "--once")
    write_command(board.slots.empty("b") / "venv")
    run("adopt", "b", "--owned")
    board.slots.point("current", "b")
    board.restart_service()
    assert "1.0 → 0.1.0" in run("history")
    assert "rolling back from 0.1.0 to 1.0" in run("rollback", "--once")


def test_a_damaged_journal_keeps_nobody_from_going_back(board: Board) -> None:
    run("apply", quick(board))
    (board.where.state / "journal.json").write_text("{broken", encoding="utf-8")
    assert "rolling back from 2.0 to 1.0" in run("rollback", "--once")


def test_who_is_going_back_is_not_told_to_end_that(board: Board) -> None:
    run("apply", quick(board))
    journal = board.updater().journal
    newest = journal.read()
    assert newest is not None
    journal.update_fields(newest, state="trial", back=True, version="1.0")
    assert "already rolling back to 1.0" in run("rollback", "--once")
    assert not (board.where.state / "order").exists()


def test_nothing_to_go_back_to_is_told(board: Board) -> None:
    assert "no version to roll back to" in failed("rollback")


def test_two_at_once_are_refused(board: Board) -> None:
    with OwnedFolder(board.where.state):
        said = failed("resume")
        assert "an update is running" in said
        assert "`vedette update rollback` ends it" in said


def test_a_board_without_slots_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ROOT_VARIABLE, str(tmp_path))
    assert "run scripts/install" in run("status")


def test_the_self_test_answers_golden_inputs(tmp_path: Path) -> None:
    for path, content in model_files().items():
        (tmp_path / Path(path).name).write_bytes(content)
    said = run("selftest", str(tmp_path))
    assert "the daemon can be imported" in said
    assert "model small-speech gives the golden answers" in said
    (tmp_path / "small-speech.tflite").write_bytes(b"broken")
    result = CliRunner().invoke(vedette, ["update", "selftest", str(tmp_path)])
    assert "model small-speech" in str(result.exception)


def test_errors_are_one_line(
    board: Board, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["vedette", "update", "confirm"])
    with pytest.raises(SystemExit):
        main()
    assert capsys.readouterr().err == "vedette: nothing is on trial: see `vedette update status`\n"


def test_somebody_who_may_not_look_is_told_who_may(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: path != board.where.state)
    assert "try `sudo vedette update …`" in failed("status")


def test_what_is_being_done_goes_on_though_nobody_listens_any_more(tmp_path: Path) -> None:
    """As when the connection goes, or in `vedette update rollback | true`."""
    done = tmp_path / "done"
    code = f"from agent.cli.update import _print_line as say\nfor _ in '123': say('x')\nopen({str(done)!r}, 'w')"
    listener, said = os.pipe()
    os.close(listener)
    assert subprocess.run([sys.executable, "-c", code], stdout=said, check=False).returncode == 0
    os.close(said)
    assert done.exists()
