from __future__ import annotations

import json
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from agent.cli.checks import Finding, Report
from agent.cli.main import vedette

WELL = Finding("model", "Raspberry Pi 4 Model B", section="board")
WARNING = Finding("clock", "not synchronised", "warning", "set the clock", "storage and clock")
PROBLEM = Finding(
    "supply", "now: under-voltage", "problem", "give it more power " + "again " * 30, "heat and supply"
)


def call(monkeypatch: pytest.MonkeyPatch, found: list[Finding], *args: str) -> Result:
    healthy = all(one.state != "problem" for one in found)
    report = Report("0.1.0", datetime(2026, 11, 1, tzinfo=UTC), healthy, found)
    monkeypatch.setattr("agent.cli.doctor.examine", lambda *_, **__: report)
    return CliRunner().invoke(vedette, ["doctor", *args], catch_exceptions=False)


def test_a_board_that_is_well(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = call(monkeypatch, [WELL])
    assert shown.exit_code == 0
    assert shown.output.splitlines()[:-1] == ["Board", "  ok       model  Raspberry Pi 4 Model B"]


def test_a_warning_says_what_to_do_and_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = call(monkeypatch, [WELL, WARNING])
    assert shown.exit_code == 0
    assert shown.output.endswith("1 warning; what to do:\n  1. set the clock\n")


def test_a_problem_is_a_failure_and_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = call(monkeypatch, [WARNING, PROBLEM, WARNING])
    assert shown.exit_code == 1
    lines = shown.output.splitlines()
    assert "1 problem and 2 warnings; what to do:" in lines
    assert lines[-1] == "  2. set the clock"
    assert max(map(len, lines)) <= 100


def test_names_of_devices_do_not_command_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = call(monkeypatch, [Finding("camera", "C270\x1b[2J [red]\nx", "warning", "\x07", "board")])
    assert "C270\\x1b[2J [red]\\nx" in shown.output
    assert {letter for letter in shown.output if not letter.isprintable()} == {"\n"}


def test_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = call(monkeypatch, [PROBLEM], "--json")
    assert shown.exit_code == 1
    found = json.loads(shown.output)
    assert found["healthy"] is False
    assert found["findings"][0]["state"] == "problem"
    assert set(found["findings"][0]) == {"section", "name", "value", "state", "advice"}


def test_for_real(tmp_path: Path) -> None:
    path = tmp_path / "vedette.toml"
    path.write_text('[streams.front]\nsource = "test:"\nmodel = "nobody"\n')
    shown = CliRunner().invoke(vedette, ["doctor", "-c", str(path), "--json"], catch_exceptions=False)
    assert shown.exit_code == 1
    found = json.loads(shown.output)["findings"]
    assert any(one["value"].startswith(f"{path}:3: ") for one in found)
    assert {"board", "runtime", "self-test", "hardware to run models on"} <= {one["section"] for one in found}


def test_on_a_read_only_state_folder_it_is_measured_and_shown(tmp_path: Path) -> None:
    state, path = tmp_path / "state", tmp_path / "vedette.toml"
    state.mkdir()
    path.write_text(
        f'[storage]\nstate_dir = "{state}"\n[selection]\ncandidates = []\nthreads_max = 1\n'
        '[streams.kitchen]\nsource = "wav:x.wav"\nmodel = "small-speech"\nvariant = "3"\n'
    )
    mounted = ["unshare", "-rm", "sh", "-c", f'mount -t tmpfs -o ro none "{state}" && exec "$@"', "sh"]
    if shutil.which("unshare") is None or subprocess.run([*mounted, "true"], capture_output=True).returncode:
        pytest.skip("no namespace may be made here")
    command = [*mounted, sys.executable, "-m", "agent", "doctor", "--fresh", "-c", str(path), "--json"]
    found = json.loads(subprocess.run(command, capture_output=True, text=True).stdout)["findings"]
    measured, warning = (one for one in found if one["section"] == "models on this hardware")
    assert measured["value"].startswith("cpu, 1 thread, ")
    assert warning["state"] == "warning"
    assert f"{state}/verdicts/small-speech-" in warning["value"]
    assert warning["value"].endswith("Read-only file system")
