from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from agent.board.power import POWER_MODELS
from agent.compute.infer.session import BackendSpec
from agent.compute.infer.sustained import (
    BoardSample,
    BoardSampler,
    RateSample,
    SustainedRun,
    held_rate,
    judge_run,
    mean_rate,
)
from tests.support.boards import pi4, write

PI4 = POWER_MODELS["raspberrypi,4-model-b"]
ROOM_C, LIMIT_C, TAU_S = 25.0, 80.0, 120.0
FULL_PER_S, EVERY_S = 10.0, 10.0


def settled_c(watts: float, c_per_w: float) -> float:
    return ROOM_C + c_per_w * watts


def simulated(c_per_w: float, seconds: float = 600.0, *, throttles: bool = True) -> list[RateSample]:
    """A Pi 4B at full rate, as one node of heat, with its sensor's steps; the firmware slows it at the limit."""
    celsius, samples = settled_c(PI4.idle_w, c_per_w), []
    for number in range(int(seconds / EVERY_S)):
        slowed, done = 0, 0.0
        for _ in range(int(EVERY_S)):
            hot = throttles and celsius >= LIMIT_C
            speed = 0.2 if hot else 1.0
            goal = settled_c(PI4.watts(4 * speed), c_per_w)
            celsius += (goal - celsius) / TAU_S
            slowed, done = slowed + hot, done + FULL_PER_S * speed
        read_c = round(celsius / 0.487) * 0.487
        board = BoardSample(read_c, LIMIT_C, throttled=slowed > 0)
        samples.append(RateSample((number + 1) * EVERY_S, done / EVERY_S, board))
    return samples


def idle(c_per_w: float) -> BoardSample:
    return BoardSample(settled_c(PI4.idle_w, c_per_w), LIMIT_C)


def judged(samples: list[RateSample], before: BoardSample) -> SustainedRun:
    return judge_run(BackendSpec(threads=4), 600.0, before, samples)


@given(st.floats(4.0, 8.0))
def test_a_board_that_is_cooled_holds_its_first_rate(c_per_w: float) -> None:
    run = judged(simulated(c_per_w), idle(c_per_w))
    assert run.held.basis == "settled"
    assert run.held.per_s == run.first_per_s == FULL_PER_S
    assert run.held.settles_c == pytest.approx(settled_c(PI4.busy_w, c_per_w), abs=2.0)


@given(st.floats(9.5, 14.0))
def test_a_board_that_throttles_holds_the_rate_of_the_end(c_per_w: float) -> None:
    run = judged(simulated(c_per_w), idle(c_per_w))
    assert run.held.basis == "throttled"
    assert run.held.per_s is not None
    watts = (LIMIT_C - ROOM_C) / c_per_w  # what it can give off at its limit
    expected = FULL_PER_S * (watts - PI4.idle_w) / (PI4.busy_w - PI4.idle_w)
    assert run.held.per_s == pytest.approx(expected, rel=0.15)


@given(st.floats(9.5, 14.0), st.floats(150.0, 240.0))
def test_a_short_run_foresees_the_rate_of_a_long_one(c_per_w: float, seconds: float) -> None:
    samples = [one for one in simulated(c_per_w, seconds) if not one.board.throttled]
    held = held_rate(idle(c_per_w), samples)
    if held.basis == "unknown":  # it may say that it does not know, but not a wrong rate
        return
    assert held.basis == "foreseen"
    watts = (LIMIT_C - ROOM_C) / c_per_w
    expected = FULL_PER_S * (watts - PI4.idle_w) / (PI4.busy_w - PI4.idle_w)
    assert held.per_s == pytest.approx(expected, rel=0.25)
    assert held.limited_in_s is not None


def test_a_board_without_sensor_does_not_tell() -> None:
    samples = [replace(one, board=BoardSample()) for one in simulated(6.0)]
    held = held_rate(BoardSample(), samples)
    assert (held.basis, held.per_s) == ("unknown", None)
    assert "not reached" in held.why


def test_a_board_that_stays_cold_has_not_reached_its_limit() -> None:
    samples = [RateSample(10.0 * n, 5.0, BoardSample(41.0, LIMIT_C)) for n in range(1, 61)]
    held = held_rate(BoardSample(40.5, LIMIT_C), samples)
    assert (held.basis, held.per_s) == ("no heat", 5.0)
    assert "not reached" in held.why


def test_a_run_that_was_too_short_says_so() -> None:
    held = held_rate(idle(12.0), simulated(12.0, 40.0))
    assert (held.basis, held.per_s) == ("unknown", None)
    assert "longer" in held.why


def test_under_voltage_is_told_as_the_cause() -> None:
    weak = BoardSample(50.0, LIMIT_C, throttled=True, under_voltage=True)
    samples = [replace(one, board=weak) for one in simulated(6.0)]
    assert "under-voltage" in held_rate(idle(6.0), samples).why


def test_an_interrupted_run_gives_what_there_is() -> None:
    run = judged(simulated(6.0, 100.0), idle(6.0))
    assert not run.complete
    assert run.first_per_s == FULL_PER_S
    empty = judged([], idle(6.0))
    assert (empty.complete, empty.first_per_s, empty.held.per_s) == (False, None, None)
    assert mean_rate([]) is None


def test_readings_of_a_board(tmp_path: Path) -> None:
    root = write(pi4(tmp_path), {"sys/devices/platform/soc/soc:firmware/get_throttled": "50005"})
    board = BoardSampler(root).read()
    assert (board.celsius, board.limit_c, board.mhz) == (48.686, 80.0, 600)
    assert board.throttled
    assert board.under_voltage
    assert BoardSampler(tmp_path / "nothing").read() == BoardSample()
