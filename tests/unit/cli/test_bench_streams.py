"""`vedette bench --streams`: real worker processes of a small model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from agent.cli.main import vedette
from agent.compute.infer import benchmark
from tests.support.doubles import person_model


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "SPLIT_TURN_S", 0.05)


def call(*args: object) -> Result:
    return CliRunner().invoke(vedette, ["bench", *map(str, args)])


def test_a_table_names_the_best_number_of_threads(tmp_path: Path) -> None:
    done = call(person_model(tmp_path), "--streams", 3)
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[0].split()[:3] == ["threads", "at", "once"]
    assert sum(line.startswith("→") for line in lines) == 1
    assert lines[-2].startswith("best: ") or lines[-1].startswith("best: ")


def test_json(tmp_path: Path) -> None:
    done = call(person_model(tmp_path), "--streams", 2, "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["streams"] == 2
    assert found["threads"] in {one["threads"] for one in found["measured"]}
    assert all(one["per_s"] > 0 for one in found["measured"])


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (("--streams", 0), "not in the range"),
        (("--streams", 2, "--loadgen"), "--loadgen"),
        (("--streams", 2, "--sustained", "1s"), "--sustained"),
        (("--streams", 2, "--backend", "gpu"), "measures the CPU"),
        (("--streams", 2, "--board", "pi4b"), "--board"),
    ],
)
def test_what_does_not_go_together_is_refused(tmp_path: Path, options: tuple[object, ...], why: str) -> None:
    done = call(person_model(tmp_path), *options)
    assert done.exit_code == 2
    assert why in done.output


def test_a_model_whose_streams_do_not_share_is_refused() -> None:
    done = call("small-speech", "--streams", 2)
    assert done.exit_code == 2
    assert "session of its own" in done.output
