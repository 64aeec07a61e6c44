from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.board.sensors import ConfirmedTemperature, LastKnown, LostHeat
from agent.board.thermal import Zone

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


def lost(*seconds: tuple[float, dict[str, Zone]]) -> list[str]:
    """Names of the zones whose heat is lost at each reading; empty: none."""
    memory = LostHeat(15.0, 600.0)
    found = [memory.update(zones, lambda _: 80.0, now_s) for now_s, zones in seconds]
    return ["" if zone is None else zone.name for zone in found]


CPU, GPU, COOL = Zone("cpu-thermal", 79.0), Zone("gpu-thermal", 70.0), Zone("gpu-thermal", 45.0)


def test_heat_is_lost_with_its_zone_for_ten_minutes() -> None:
    told = lost((0.0, {"a": CPU, "b": COOL}), (1.0, {"b": COOL}), (599.0, {"b": COOL}), (601.0, {"b": COOL}))
    assert told == ["", "cpu-thermal", "cpu-thermal", ""]


def test_heat_is_not_lost_while_another_zone_is_warm() -> None:
    assert lost((0.0, {"a": CPU, "b": COOL}), (1.0, {"b": GPU}), (2.0, {"b": COOL})) == ["", "", "cpu-thermal"]


def test_a_zone_that_comes_back_under_another_number_is_the_same() -> None:
    assert lost((0.0, {"a": CPU}), (1.0, {}), (2.0, {"c": Zone("cpu-thermal", 40.0)})) == ["", "cpu-thermal", ""]
