from __future__ import annotations

import importlib
import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from agent.cli.main import vedette
from tests.support.doubles import person_model

bench = importlib.import_module("agent.cli.bench")  # the package's attribute may be the command


def call(*args: object) -> Result:
    return CliRunner().invoke(vedette, ["bench", *map(str, args)])


@pytest.fixture(autouse=True)
def warm(monkeypatch: pytest.MonkeyPatch) -> None:
    """A board that gets 4 °C warmer with each reading, and is throttled above 55 °C."""
    monkeypatch.setattr(bench, "_STRETCH_S", 0.3)
    celsius = 50.0

    def read() -> tuple[float | None, tuple[str, ...]]:
        nonlocal celsius
        celsius += 4.0
        return celsius, ("throttled",) if celsius > 55.0 else ()

    monkeypatch.setattr(bench, "_board_reader", lambda: read)


def test_a_row_for_each_stretch_and_where_it_throttles(tmp_path: Path) -> None:
    done = call(person_model(tmp_path), "--sustained", "1s")
    assert done.exit_code == 0, done.exception
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["time", "per", "s", "°C"]
    assert "54.0" in lines[2]
    assert "throttled" not in lines[2]
    assert lines[3].split()[-2:] == ["58.0", "throttled"]
    assert "in the first minute" in lines[-2]
    assert lines[-1].startswith("throttled by heat from minute ")


def test_json(tmp_path: Path) -> None:
    done = call(person_model(tmp_path), "--sustained", "1s", "--json")
    assert done.exit_code == 0, done.exception
    found = json.loads(done.stdout)
    assert found["asked_s"] == 1.0
    assert found["stretches"][-1]["at_s"] >= 1.0
    assert [one["celsius"] for one in found["stretches"]][:2] == [54.0, 58.0]
    assert all(one["per_s"] > 0.0 for one in found["stretches"])


def test_ctrl_c_gives_what_there_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def interrupted(*_: object) -> Iterator[object]:
        yield bench.Stretch(10.0, 5.0, 60.0, ())
        raise KeyboardInterrupt

    monkeypatch.setattr(bench, "_run", interrupted)
    monkeypatch.setattr("agent.cli.output._told_at", [-math.inf])
    done = call(person_model(tmp_path), "--sustained", "10m")
    assert done.exit_code == 0, done.exception
    assert "10 of 600 s" in done.stderr, "no terminal: a line of a log"
    assert "5.0 per s in the first minute" in done.output
    assert "not throttled" in done.output


@pytest.mark.parametrize(
    "options",
    [
        ("--sustained", "soon"),
        ("--sustained", "0.1s"),
        ("--sustained", "90d"),
        ("--sustained", "1s", "--backend", "cpu", "--backend", "gpu"),
    ],
)
def test_what_does_not_fit_together_is_refused(options: tuple[str, ...]) -> None:
    done = call("nanodet", *options)
    assert done.exit_code == 2
    assert "--sustained" in done.output


def test_a_backend_that_is_not_here_is_one_line(tmp_path: Path) -> None:
    done = call(person_model(tmp_path), "--sustained", "1s", "--backend", "teflon")
    assert done.exit_code == 1
    assert "/dev/accel" in str(done.exception)
