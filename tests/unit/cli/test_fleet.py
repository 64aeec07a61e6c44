"""`vedette fleet`, as far as it goes without a board."""

from __future__ import annotations

import json
import os
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner, Result

from agent.cli.fleet import RolloutLines, rows
from agent.cli.main import vedette
from agent.errors import BundleError, FleetError
from agent.update.bundle.signing import signature_of
from agent.update.fleet.board import BoardOutcome
from agent.update.fleet.rollout import Rollout, RolloutProgress
from agent.update.fleet.ssh import BoardAnswer
from agent.update.install import health_check, preflight
from agent.update.install.health_check import ROLLBACK_GATE
from tests.support.tiny_bundles import make_key, models_bundle, needs_ssh_keygen

INVENTORY = """
[boards.hosts]
porch = { ansible_host = "127.0.0.1", ansible_port = 1 }
roof = { ansible_host = "127.0.0.1", ansible_port = 1 }
gate = { ansible_host = "127.0.0.1", ansible_port = 1 }
[boards.vars]
vedette_canary = ["roof"]
"""
NAMES = ("porch", "roof", "gate")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "fleet.toml").write_text(INVENTORY)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def pinned(folder: Path) -> None:
    """A host key of each board."""
    key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIB2ZrPY0kqFLkZzgcbYBoTOhyK4KXw5HWGYPIXRfZLrf"
    (folder / "known_hosts").write_text("".join(f"{name} {key}\n" for name in NAMES))


def say(*words: str) -> Result:
    return CliRunner().invoke(vedette, ["fleet", *words])


@pytest.fixture
def signed(folder: Path) -> Path:
    """A bundle, and a host key of each board."""
    pinned(folder)
    return models_bundle(folder / "x.vedette", make_key(folder / "key"))


@needs_ssh_keygen
def test_the_plan_is_shown_and_nothing_is_done(folder: Path, signed: Path) -> None:
    before = sorted(folder.iterdir())
    done = say("rollout", "x.vedette", "--dry-run")
    assert done.output == "canary    roof\nbatch 1   porch\nbatch 2   gate\n"
    assert json.loads(say("rollout", "x.vedette", "--dry-run", "--json").output) == [
        ["roof"],
        ["porch"],
        ["gate"],
    ]
    assert sorted(folder.iterdir()) == before


@needs_ssh_keygen
def test_what_is_refused_is_refused_in_a_dry_run(folder: Path, signed: Path) -> None:
    models_bundle(folder / "unsigned.vedette")
    for name, content in (("cut", signed.read_bytes()[:-2000]), ("private", (folder / "key").read_bytes())):
        (folder / name).write_bytes(content)
        signature_of(folder / name).write_bytes(signature_of(signed).read_bytes())
    (folder / "notes").write_text("milk\neggs\n")
    (folder / "open.ledger").write_bytes(
        b'{"at":"2026-11-25T00:00:00Z","begun":{"bundle":"ab","file":"x","version":"1","counter":1,'
        b'"batches":[["porch"]]}}\n'
    )
    refusals: dict[tuple[str, ...], str] = {
        ("unsigned.vedette",): "has no signature beside it",
        ("cut",): "cut: ",
        ("private",): "private: ",
        ("x.vedette", "--ledger", "notes"): "is not a ledger of a rollout",
        ("x.vedette", "--ledger", "open.ledger"): "a rollout of another x is not complete there",
    }
    for words, said in refusals.items():
        errors = [say("rollout", *words, *more).exception for more in ((), ("--dry-run",))]
        assert all(isinstance(error, FleetError | BundleError) for error in errors), (words, errors)
        assert said in str(errors[0])
        assert str(errors[0]) == str(errors[1])
    (folder / "known_hosts").unlink()
    assert "no host key of roof" in str(say("rollout", "x.vedette", "--dry-run", "--board", "roof").exception)
    assert not list(folder.glob("*.vedette.ledger"))


@needs_ssh_keygen
def test_what_is_read_is_no_ledger(folder: Path, signed: Path) -> None:
    for name in ("x.vedette", "x.vedette.sig", "fleet.toml", "known_hosts"):
        before = (folder / name).read_bytes()
        assert "name another --ledger" in str(say("rollout", "x.vedette", "--ledger", name).exception)
        assert (folder / name).read_bytes() == before


@needs_ssh_keygen
def test_outcomes_are_printed_as_lines_of_json(
    folder: Path, signed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def well(self: Rollout, standing: RolloutProgress, *_: object) -> RolloutProgress:
        return msgspec.structs.replace(standing, outcomes={name: BoardOutcome(name, "updated") for name in NAMES})

    monkeypatch.setattr(Rollout, "run", well)
    done = say("rollout", "x.vedette", "--json")
    assert [json.loads(line)["kind"] for line in done.stdout.splitlines()] == ["updated"] * 3
    assert "all 3 boards have it" in done.stderr
    assert done.exit_code == 0


@pytest.mark.parametrize("more", [(), ("--dry-run",)])
def test_what_is_no_file_is_no_bundle(folder: Path, more: tuple[str, ...]) -> None:
    for name in ("nosuch.vedette", ".", ""):
        error = say("rollout", name, *more).exception
        assert isinstance(error, FleetError)
        assert "there is no such file" in str(error)


@needs_ssh_keygen
def test_a_bundle_whose_name_is_no_utf8_leaves_no_ledger(folder: Path) -> None:
    bundle = folder / os.fsdecode(b"bad\xff.vedette")
    models_bundle(bundle, make_key(folder / "key"))
    pinned(folder)
    before = sorted(folder.iterdir())
    for more in ((), ("--json",), ("--ledger", "x.ledger")):
        error = say("rollout", bundle.name, *more).exception
        assert isinstance(error, FleetError)
        assert "its name is not UTF-8: rename it" in str(error)
    assert sorted(folder.iterdir()) == before


@needs_ssh_keygen
def test_a_bundle_without_a_signature_is_sent_to_nobody(folder: Path) -> None:
    models_bundle(folder / "x.vedette")
    error = say("rollout", "x.vedette").exception
    assert isinstance(error, FleetError)
    assert "vedette bundle sign x.vedette" in str(error)


@needs_ssh_keygen
def test_boards_that_are_off_are_unreachable(folder: Path) -> None:
    key = make_key(folder / "key")
    models_bundle(folder / "x.vedette", key)
    (folder / "known_hosts").write_text("".join(f"{name} {key.public}\n" for name in ("porch", "roof", "gate")))
    done = say("status", "--json")
    assert done.exit_code == 3
    told = [json.loads(line) for line in done.output.splitlines()]
    assert {one["fault"] for one in told} == {"unreachable"}
    assert all("Connection refused" in one["reason"] for one in told)
    assert say("exec", "--board", "porch", "doctor").exit_code == 3
    assert say("rollback", "--yes").exit_code == 3
    unsaid = say("rollback", "--board", "roof")  # nobody has said yes
    assert (unsaid.exit_code, "Roll 1 board back" in unsaid.stderr) == (1, True)
    assert "Roll 3 boards back" in say("rollback").stderr


def test_a_rollback_is_waited_for_as_long_as_a_board_may_take(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    patience: list[float] = []
    commands: list[str] = []

    async def ask_all(
        _: object, __: object, command: str, *, patience_s: float, **___: object
    ) -> list[BoardAnswer]:
        patience.append(patience_s)
        commands.append(command)
        return []

    monkeypatch.setattr("agent.update.fleet.ssh.ask_all", ask_all)
    pinned(folder)
    assert say("rollback", "--yes").exit_code == 0
    watched_s = ROLLBACK_GATE.within_s + ROLLBACK_GATE.steady_s
    assert patience[0] >= preflight._TEST_S + watched_s + 2 * health_check._PATIENCE_S
    assert commands == ["update rollback --once"]


def test_a_board_that_shows_no_host_key_cannot_be_pinned(folder: Path) -> None:
    error = say("pin", "porch", "--yes").exception
    assert isinstance(error, FleetError)
    assert "porch: 127.0.0.1 port 1 presents no host key: is it on?" in str(error)
    assert not (folder / "known_hosts").exists()


def test_the_lines_tell_a_step_once(capsys: pytest.CaptureFixture[str]) -> None:
    lines = RolloutLines(err=False)
    for step in ("sending", "sending", "trial"):
        lines.watch("porch", step)
    lines.show(BoardOutcome("porch", "unreachable", "Connection timed out"))
    said = capsys.readouterr().out.splitlines()
    assert said[:2] == ["porch            sending", "porch            trial"]
    assert said[2] == "porch            unreachable (0 s, 0 kB sent): Connection timed out"


def test_an_answer_of_something_else_is_no_status() -> None:
    (row,) = rows([BoardAnswer("porch", out="Debian GNU/Linux 12")])
    assert row.fault == "failed"
    assert "not from vedette-ssh" in row.reason
