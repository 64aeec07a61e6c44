"""`vedette fleet`, as far as it goes without a board."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from rich.console import Console

from agent.cli.fleetstatus import rows
from agent.cli.fleettable import RolloutLines, RolloutTable
from agent.cli.main import vedette
from agent.errors import FleetError
from agent.fleet.asking import Answer
from agent.fleet.outcome import Outcome
from agent.update import rehearsal, returning, service
from tests.support.tiny_bundles import make_key, models_bundle, needs_ssh_keygen

INVENTORY = """
[boards.hosts]
porch = { ansible_host = "127.0.0.1", ansible_port = 1 }
roof = { ansible_host = "127.0.0.1", ansible_port = 1 }
gate = { ansible_host = "127.0.0.1", ansible_port = 1 }
[boards.vars]
vedette_canary = ["roof"]
"""
BATCHES = [("roof",), ("porch", "gate")]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "fleet.toml").write_text(INVENTORY)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def pinned(folder: Path) -> None:
    """A host key of each board."""
    key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIB2ZrPY0kqFLkZzgcbYBoTOhyK4KXw5HWGYPIXRfZLrf"
    (folder / "known_hosts").write_text("".join(f"{name} {key}\n" for name in ("porch", "roof", "gate")))


def say(*words: str) -> Result:
    return CliRunner().invoke(vedette, ["fleet", *words])


def test_the_plan_is_shown_and_nothing_is_done(folder: Path) -> None:
    bundle = folder / "none.vedette"
    bundle.touch()
    done = say("rollout", "none.vedette", "--dry-run")
    assert done.output == "canary    roof\nbatch 1   porch\nbatch 2   gate\n"
    assert json.loads(say("rollout", "none.vedette", "--dry-run", "--json").output) == [
        ["roof"],
        ["porch"],
        ["gate"],
    ]
    assert sorted(folder.iterdir()) == [folder / "fleet.toml", bundle]


@pytest.mark.parametrize("more", [(), ("--dry-run",)])
def test_what_is_no_file_is_no_bundle(folder: Path, more: tuple[str, ...]) -> None:
    for name, said in (("nosuch.vedette", "there is no such file"), (".", "is a folder"), ("", "is a folder")):
        error = say("rollout", name, *more).exception
        assert isinstance(error, FleetError)
        assert said in str(error)


@pytest.mark.timeout(60)
def test_a_pipe_in_place_of_a_bundle_of_host_keys_or_of_an_inventory_is_refused(folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    (folder / "known_hosts").symlink_to("pipe")
    for words in (("rollout", "pipe"), ("status",), ("status", "-i", "pipe"), ("pin", "porch")):
        error = say(*words).exception
        assert isinstance(error, FleetError), words
        assert "is a pipe, and no plain file" in str(error)


@needs_ssh_keygen
def test_a_bundle_whose_name_is_no_utf8_leaves_no_ledger(folder: Path) -> None:
    bundle = folder / os.fsdecode(b"bad\xff.vedette")
    models_bundle(bundle, make_key(folder / "key"))
    pinned(folder)
    before = sorted(folder.iterdir())
    for more in ((), ("--json",), ("--ledger", "x.ledger")):
        error = say("rollout", bundle.name, *more).exception
        assert isinstance(error, FleetError)
        assert "its name is no UTF-8: rename it" in str(error)
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
    assert say("rollback", "--board", "roof").exit_code == 1  # nobody has said yes


def test_a_rollback_is_waited_for_as_long_as_a_board_may_take(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    patience: list[float] = []
    commands: list[str] = []

    async def ask_all(_: object, __: object, command: str, *, patience_s: float, **___: object) -> list[Answer]:
        patience.append(patience_s)
        commands.append(command)
        return []

    monkeypatch.setattr("agent.fleet.asking.ask_all", ask_all)
    pinned(folder)
    assert say("rollback", "--yes").exit_code == 0
    watched_s = returning.GATE.within_s + returning.GATE.steady_s
    assert patience[0] >= rehearsal._PATIENCE_S + watched_s + 2 * service._PATIENCE_S
    assert say("rollback", "--yes", "--further").exit_code == 0
    assert commands == ["update rollback --once", "update rollback"]


def test_a_board_that_shows_no_host_key_cannot_be_pinned(folder: Path) -> None:
    error = say("pin", "porch", "--yes").exception
    assert isinstance(error, FleetError)
    assert "porch: 127.0.0.1 port 1 shows no host key: is it on?" in str(error)
    assert not (folder / "known_hosts").exists()


@needs_ssh_keygen
def test_names_that_are_hashed_are_found(folder: Path) -> None:
    import subprocess

    key = make_key(folder / "key")
    hosts = folder / "known_hosts"
    hosts.write_text(f"porch {key.public}\nroof,10.0.0.1 {key.public}\n# gate {key.public}\n")
    subprocess.run(["ssh-keygen", "-q", "-H", "-f", str(hosts)], check=True, capture_output=True)
    error = say("status").exception
    assert isinstance(error, FleetError)
    assert "no host key of gate: `vedette fleet pin gate`" in str(error)


def drawn(table: RolloutTable, height: int = 20) -> str:
    console = Console(file=io.StringIO(), width=100, height=height)
    console.print(table)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_table_has_those_at_work_first_and_then_those_in_trouble() -> None:
    table = RolloutTable("x.vedette", BATCHES, {"roof": Outcome("roof", "updated", "", "1.2", 61.0, 900_000)})
    assert drawn(table).index("porch") < drawn(table).index("roof")
    table.show(Outcome("porch", "rolled_back", "stream [front] is lost\x1b[2J", "1.1"))
    table.watch("gate", "sending")
    shown = drawn(table)
    assert shown.index("gate") < shown.index("porch") < shown.index("roof")
    assert "stream [front] is lost?[2J" in shown
    assert "900 kB" in shown
    assert "1 updated, 1 rolled back, 3 boards" in shown
    assert "and 2 more" in drawn(table, height=6)


def test_the_lines_tell_a_step_once(capsys: pytest.CaptureFixture[str]) -> None:
    lines = RolloutLines(err=False)
    for step in ("sending", "sending", "trial"):
        lines.watch("porch", step)
    lines.show(Outcome("porch", "unreachable", "Connection timed out"))
    said = capsys.readouterr().out.splitlines()
    assert said[:2] == ["porch            sending", "porch            trial"]
    assert said[2] == "porch            unreachable (0 s, 0 kB sent): Connection timed out"


def test_an_answer_of_something_else_is_no_status() -> None:
    (row,) = rows([Answer("porch", out="Debian GNU/Linux 12")])
    assert row.fault == "failed"
    assert "is not that of vedette-ssh" in row.reason
