from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.board.sensors import ConfirmedTemperature, LastKnown

TEMPERATURES = st.floats(-40.0, 125.0)


@given(st.lists(st.tuples(st.floats(0.1, 300.0), st.one_of(st.none(), st.integers(0, 100))), max_size=30))
def test_what_is_kept_was_read_and_is_not_older_than_it_may_be(steps: list[tuple[float, int | None]]) -> None:
    last, now_s, read = LastKnown[int](600.0), 0.0, []
    for pause_s, reading in steps:
        now_s += pause_s
        if reading is not None:
            read.append((now_s, reading))
        told = last.update(reading, now_s)
        recent = read and now_s - read[-1][0] <= 600.0
        assert told == (read[-1][1] if recent else None)


@pytest.mark.parametrize("odd", [100.0, 20.0])
def test_one_odd_reading_does_not_count(odd: float) -> None:
    zone = ConfirmedTemperature()
    assert [zone.update(t, c) for t, c in ((0.0, 50.0), (1.0, odd), (2.0, 51.0), (3.0, 52.0))] == [50, 50, 51, 52]


def test_a_jump_counts_from_the_reading_that_confirms_it() -> None:
    zone = ConfirmedTemperature()
    assert [zone.update(t, c) for t, c in ((0.0, 50.0), (1.0, 68.0), (2.0, 72.0))] == [50.0, 50.0, 72.0]


def test_the_same_odd_reading_at_once_confirms_nothing() -> None:
    zone = ConfirmedTemperature()
    assert [zone.update(t, c) for t, c in ((0.0, 50.0), (1.0, 90.0), (1.1, 90.0), (1.2, 90.0))] == [50.0] * 4


@given(st.lists(TEMPERATURES, min_size=1, max_size=200))
def test_a_temperature_that_counts_was_read_and_wild_readings_do_not_freeze_it(readings: list[float]) -> None:
    zone = ConfirmedTemperature()
    told = [zone.update(float(t), celsius) for t, celsius in enumerate(readings)]
    assert set(told) <= set(readings)
    for at in range(170, len(told)):
        assert told[at] in readings[at - 170 : at + 1]
