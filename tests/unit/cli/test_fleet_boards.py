"""`vedette fleet` and boards that answer anything, over a real sshd."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import time
from pathlib import Path

from agent.update.fleet import read_inventory
from agent.update.fleet.rollout import Ledger, RolloutProgress, replay
from agent.update.fleet.ssh import Transport
from tests.support.sshboards import SshBoards
from tests.support.tiny_bundles import make_key, models_bundle, needs_ssh_keygen

pytestmark = needs_ssh_keygen

GOOD = """echo '{"update": {"version": "1.0", "counter": 4, "models": 4}, "health_base64": ""}'"""
ENDLESS = "exec tr '\\0' x </dev/zero"
LONG = """printf '{"update": {"version": "%070000d"}}' 1"""
ONE_BATCH = 'vedette_canary = ["good"]\nvedette_batches = ["100%"]\nvedette_stop_share = 1.0'
WHY = "its answer is too long: more than 1 MiB"


def tells(counter: int) -> str:
    return GOOD.replace(": 4", f": {counter}")


def rows(done: subprocess.CompletedProcess[str]) -> dict[str, dict[str, str]]:
    assert "Traceback" not in done.stderr
    return {row["board"]: row for row in map(json.loads, done.stdout.splitlines())}


def standing(path: Path) -> RolloutProgress:
    found = replay(Ledger(path).read())
    assert found is not None
    return found


def test_a_board_that_does_not_stop_talking_is_a_row_like_any_other(tmp_path: Path) -> None:
    with SshBoards(tmp_path, good=GOOD, endless=ENDLESS, long=LONG) as boards:
        told = boards.vedette("status", "--json")
        asked = boards.vedette("exec", "--json", "doctor")
    assert told.returncode == asked.returncode == 1
    for found in (rows(told), rows(asked)):
        assert {name: row["fault"] for name, row in found.items() if row.get("fault")} == {"endless": "failed"}
        assert found["endless"]["reason"] == WHY
    assert len(rows(asked)["long"]["out"]) > 70_000


def test_a_rollout_goes_on_beside_a_board_that_does_not_stop_talking(tmp_path: Path) -> None:
    key = make_key(tmp_path / "key")
    models_bundle(tmp_path / "x.vedette", key)
    good = tells(1)
    junk, cut = "echo Debian GNU/Linux", "exit 255"
    answers = {"good": good, "endless": ENDLESS, "junk": junk, "cut": cut, "other": good}
    with SshBoards(tmp_path, plan=ONE_BATCH, **answers) as boards:
        done = boards.vedette("rollout", "x.vedette")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    outcomes = standing(tmp_path / "x.vedette.ledger").outcomes
    assert {name: one.kind for name, one in outcomes.items()} == {
        "good": "current",
        "other": "current",
        "endless": "failed",
        "junk": "failed",
        "cut": "unreachable",
    }
    assert outcomes["endless"].reason == WHY


def test_an_answer_that_is_junk_is_a_failure_of_the_command_too(tmp_path: Path) -> None:
    with SshBoards(tmp_path, good=GOOD, junk="echo Debian GNU/Linux") as boards:
        done = boards.vedette("status", "--json")
    assert rows(done)["junk"]["fault"] == "failed"
    assert done.returncode == 1


def test_options_after_the_command_are_the_boards(tmp_path: Path) -> None:
    with SshBoards(tmp_path, good='printf %s "$SSH_ORIGINAL_COMMAND"') as boards:
        theirs = boards.vedette("exec", "doctor", "--json")
        ours = boards.vedette("exec", "--json", "doctor")
        once = boards.vedette("exec", "update", "rollback", "--once")
    assert theirs.stdout.endswith("doctor --json\n")
    assert rows(ours)["good"]["out"] == "doctor"
    assert once.stdout.endswith("update rollback --once\n")


def test_a_board_that_holds_the_line_is_let_go_when_its_time_is_over(tmp_path: Path) -> None:
    """rsync has an ssh of its own, which must not outlive it."""
    bundle = models_bundle(tmp_path / "x.vedette", make_key(tmp_path / "key"))
    with SshBoards(tmp_path, good="exec sleep 100") as boards:
        inventory = read_inventory(boards.folder / "fleet.toml")
        began = time.monotonic()
        sending = Transport(inventory.known_hosts).send(inventory.boards["good"], bundle, 3.0)
        reply, _ = asyncio.run(sending)
    assert reply.err == "no answer within 3 s"
    assert time.monotonic() - began < 60


def test_ctrl_c_leaves_a_ledger_that_is_gone_on_with(tmp_path: Path) -> None:
    key = make_key(tmp_path / "key")
    models_bundle(tmp_path / "x.vedette", key)
    slow = f"test -e {tmp_path}/well || sleep 60; {tells(1)}"
    ledger = Ledger(tmp_path / "x.vedette.ledger")
    with SshBoards(tmp_path, good=slow) as boards:
        running = boards.begin("rollout", "x.vedette")
        until = time.monotonic() + 60
        while not ledger.read() and time.monotonic() < until:
            time.sleep(0.1)
        running.send_signal(signal.SIGINT)
        _, err = running.communicate(timeout=60)
        assert running.returncode == 130
        assert "Traceback" not in err
        assert "the same command again" in err
        assert not standing(ledger.path).outcomes
        (tmp_path / "well").touch()
        assert boards.vedette("rollout", "x.vedette").returncode == 0
    assert standing(ledger.path).complete
    assert [one.begun is not None for one in ledger.read()] == [True, False], "it was not begun anew"
