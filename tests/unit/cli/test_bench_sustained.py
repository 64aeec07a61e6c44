from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import agent.compute.infer.sustained
from agent.cli.bench_sustained import _cells, _rows, verdict_lines
from agent.cli.main import vedette
from agent.compute.infer.session import BackendSpec
from agent.compute.infer.sustained import BoardSample, RateSample, judge_run
from tests.support.doubles import person_model


def call(*args: object) -> Result:
    return CliRunner().invoke(vedette, ["bench", *map(str, args)])


class WarmBoard:
    """Gets a degree warmer with each reading."""

    def __init__(self) -> None:
        self._celsius = 50.0

    def read(self) -> BoardSample:
        self._celsius += 1.0
        return BoardSample(self._celsius, 80.0, 1800, 5.0, "estimate", throttled=self._celsius > 55.0)


@pytest.fixture
def warm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent.compute.infer.sustained, "BoardSampler", WarmBoard)


def test_a_table_over_time_and_the_rate_that_holds(warm: None, tmp_path: Path) -> None:
    done = call(person_model(tmp_path), "--sustained", "1s")
    assert done.exit_code == 0, done.exception
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["time", "per", "s", "°C", "MHz", "W"]
    assert any("1800" in line and "5.00~" in line and "throttled" in line for line in lines)
    assert any(line.startswith("first minute: ") for line in lines)
    assert any(line.startswith("holds for ever: ") and "heat throttled" in line for line in lines)
    assert lines[-1].startswith("~ estimated")


def test_json_and_a_picture(warm: None, tmp_path: Path) -> None:
    picture = tmp_path / "heat.png"
    done = call(person_model(tmp_path), "--sustained", "1s", "--json", "--picture", picture)
    assert done.exit_code == 0, done.exception
    found = json.loads(done.stdout)
    assert found["complete"]
    assert found["held"]["basis"] == "throttled"
    assert found["samples"][0]["board"]["power_from"] == "estimate"
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_ctrl_c_gives_what_there_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def interrupted(*_: object, **__: object) -> Iterator[RateSample]:
        yield RateSample(10.0, 5.0, BoardSample(60.0, 80.0))
        raise KeyboardInterrupt

    monkeypatch.setattr(agent.compute.infer.sustained, "sustain", interrupted)
    monkeypatch.setattr("agent.cli.optimise.progress._told_at", [-math.inf])
    done = call(person_model(tmp_path), "--sustained", "10m")
    assert done.exit_code == 0, done.exception
    assert "10 of 600 s" in done.stderr, "no terminal: a line of a log"
    assert "interrupted after 10 of 600 s" in done.output
    assert "first minute: 5.0 per s" in done.output


@pytest.mark.parametrize(
    "options",
    [
        ("--sustained", "soon"),
        ("--sustained", "0.1s"),
        ("--sustained", "90d"),
        ("--sustained", "1s", "--loadgen"),
        ("--sustained", "1s", "--backend", "cpu", "--backend", "gpu"),
        ("--sustained", "1s", "--board", "pi4b"),
    ],
)
def test_what_does_not_fit_together_is_refused(options: tuple[str, ...]) -> None:
    done = call("nanodet", *options)
    assert done.exit_code == 2
    assert "--sustained" in done.output


def test_a_backend_that_is_not_here_is_one_line(tmp_path: Path) -> None:
    done = call(person_model(tmp_path), "--sustained", "1s", "--backend", "vx")
    assert done.exit_code == 1
    assert "/dev/galcore" in str(done.exception)


def test_rows_of_a_short_run_are_a_second_apart_and_minutes_are_whole() -> None:
    samples = [RateSample(0.1 * n, 10.0, BoardSample(None, 80.0)) for n in range(1, 31)]
    assert [_cells(row)[0] for row in _rows(samples)] == ["0:01", "0:02", "0:03"]
    assert _cells([RateSample(59.9, 10.0, BoardSample(None, 80.0))])[0] == "1:00"
    assert list(_rows([])) == []


def test_throttling_that_is_to_come_is_told() -> None:
    samples = [RateSample(10.0 * n, 10.0, BoardSample(95.0 - 45.0 * 0.92**n, 80.0)) for n in range(1, 13)]
    run = judge_run(BackendSpec(threads=4), 120.0, BoardSample(50.0, 80.0), samples)
    lines = list(verdict_lines(run))
    assert run.held.basis == "foreseen"
    assert any("with 4 threads" in line for line in lines)
    assert any(line.startswith("throttling would begin") for line in lines) == (run.held.limited_in_s is not None)
