from __future__ import annotations

import logging
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.board.monitor import TemperatureMonitor, is_hot
from agent.board.thermal import Zone

temperatures = st.floats(-50, 150)


def zone(celsius: float | None, limit_c: float | None = None) -> Zone | None:
    return None if celsius is None else Zone("cpu-thermal", celsius, limit_c)


@pytest.mark.parametrize(
    ("was", "celsius", "hot"),
    [
        (False, 74.9, False),
        (False, 75.0, True),
        (True, 74.9, True),
        (True, 70.1, True),
        (True, 70.0, False),
        (True, None, True),
        (False, None, False),
    ],
)
def test_a_board_is_hot_from_its_limit_on_until_it_is_five_degrees_below(
    was: bool, celsius: float | None, hot: bool
) -> None:
    assert is_hot(was, celsius, 75.0) == hot


@given(st.lists(temperatures), temperatures)
def test_what_goes_up_and_down_by_less_than_five_degrees_changes_at_most_once(
    readings: list[float], warn_c: float
) -> None:
    near = [warn_c + 2.4 * (reading / 150) for reading in readings]
    states = [False]
    for celsius in near:
        states.append(is_hot(states[-1], celsius, warn_c))
    assert sum(a != b for a, b in pairwise(states)) <= 1


def test_heat_is_logged_once_when_it_begins_and_once_when_it_is_over(caplog: pytest.LogCaptureFixture) -> None:
    readings = iter([60.0, 75.5, 78.0, None, 71.0, 69.5, 60.0])
    seconds = iter(range(0, 70, 10))
    heat = TemperatureMonitor(lambda: zone(next(readings)), lambda: next(seconds))
    with caplog.at_level(logging.INFO):
        states = []
        for _ in range(7):
            heat.poll(75.0)
            states.append(heat.hot)
    assert states == [False, True, True, True, True, False, False]
    assert [(record.levelname, record.message) for record in caplog.records] == [
        (
            "WARNING",
            "the board is at 75.5 °C (thermal.warn_c is 75): it may slow down; cool it, or reduce its load",
        ),
        ("INFO", "the board is at 69.5 °C again, after 40 s"),
    ]


def test_the_zones_are_not_read_at_every_look() -> None:
    seconds = iter([0.0, 0.5, 4.9, 5.0])
    readings = iter([20.0, 30.0])
    heat = TemperatureMonitor(lambda: zone(next(readings)), lambda: next(seconds))
    seen = []
    for _ in range(4):
        heat.poll(75.0)
        seen.append(heat.celsius)
    assert seen == [20.0, 20.0, 20.0, 30.0]
