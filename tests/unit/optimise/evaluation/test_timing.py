"""Times of models beside other work: the rule, on turns whose disturbances are known."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.compute.infer.chain import TimingRun
from agent.compute.infer.litert import CpuBackend
from agent.compute.infer.session import BackendSpec, SessionOptions
from agent.compute.infer.worker import WorkerSession
from agent.models.library import open_whole_model
from agent.optimise.evaluation.timing import inference_ms, is_timed, least_ms, time_turns

TRUE_MS = st.floats(0.005, 500.0)
WAITS_MS = st.lists(st.floats(0.0, 1000.0), min_size=1, max_size=20)


def turn(true_ms: float, *waits_ms: float, slower: float = 1.0) -> TimingRun:
    """Return a turn whose inferences wait for other work, and whose CPU time other work makes longer."""
    cpu_ms = true_ms * slower
    return TimingRun(tuple(cpu_ms + wait for wait in waits_ms), cpu_ms * len(waits_ms))


@given(TRUE_MS, st.lists(st.tuples(WAITS_MS, st.floats(1.0, 3.0)), min_size=1, max_size=10))
def test_no_other_work_makes_a_time_shorter(true_ms: float, turns: list[tuple[list[float], float]]) -> None:
    found = [turn(true_ms, *waits, slower=slower) for waits, slower in turns]
    assert least_ms(found) >= true_ms * (1 - 1e-9)


@given(TRUE_MS, st.lists(WAITS_MS, min_size=1, max_size=10))
def test_waiting_alone_does_not_change_a_time(true_ms: float, turns: list[list[float]]) -> None:
    assert least_ms([turn(true_ms, *waits) for waits in turns]) == pytest.approx(true_ms)


@given(TRUE_MS, st.lists(st.tuples(WAITS_MS, st.floats(1.0, 3.0)), max_size=10))
def test_one_turn_without_other_work_is_enough(true_ms: float, turns: list[tuple[list[float], float]]) -> None:
    disturbed = [turn(true_ms, *waits, slower=slower) for waits, slower in turns]
    assert least_ms([*disturbed, turn(true_ms, 0.0, 0.0)]) == pytest.approx(true_ms)


def test_a_clock_that_is_too_coarse_to_see_a_turn_gives_the_wall_time() -> None:
    assert inference_ms(TimingRun((1.0, 2.0, 9.0), 0.0)) == 2.0


@pytest.mark.parametrize(
    ("turns", "timed"),
    [
        ([turn(1.0, 0.0)] * 9, False),
        ([turn(1.0, 0.0)] * 20, True),  # alike
        ([turn(1.0, 0.0), *[turn(2.0, 0.0)] * 19], False),
        ([turn(100.0 + number, 0.0) for number in range(10)], True),  # long enough
    ],
)
def test_a_model_is_timed_until_its_least_times_are_alike_or_for_long_enough(
    turns: list[TimingRun], timed: bool
) -> None:
    assert is_timed(turns, 10) is timed


def test_a_model_in_this_process_and_one_in_another_take_turns() -> None:
    model = open_whole_model("small-speech")
    here = CpuBackend().open(model, SessionOptions(threads=1))
    there = WorkerSession(model, BackendSpec(), SessionOptions(threads=1))
    turns = time_turns((here, there), 1)
    assert len(turns[0]) == len(turns[1]) >= 1
    assert all(least_ms(one) > 0.0 for one in turns)
    assert here.variant == there.variant
    here.close()
    there.close()
