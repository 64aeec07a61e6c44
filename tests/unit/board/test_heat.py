from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from agent.board.heat import Curve, HeatModel, _robust_slope
from agent.board.thermal import PLAUSIBLE_C

STEP_C = 0.487
"""Resolution of a Raspberry Pi's sensor, °C."""

temperatures = st.floats(20.0, 90.0)


def foreseen(heat: HeatModel, after_s: float) -> float | None:
    curve = heat.curve()
    return curve.at(after_s) if curve else None


def quantised(celsius: float) -> float:
    return round(celsius / STEP_C) * STEP_C


def learned(curve: Curve, seconds: float, every_s: float, begin_s: float = 1000.0) -> HeatModel:
    heat = HeatModel()
    for number in range(int(seconds / every_s) + 1):
        heat.add(begin_s + number * every_s, quantised(curve.at(number * every_s)))
    return heat


@given(temperatures, st.floats(-30.0, -8.0), st.floats(40.0, 200.0), st.sampled_from([1.0, 2.0, 5.0]))
def test_a_board_that_warms_up_is_foreseen(settled: float, offset: float, tau_s: float, every_s: float) -> None:
    curve = Curve(settled, offset, tau_s)
    seconds = 1.5 * tau_s
    heat = learned(curve, seconds, every_s)
    in_a_minute = foreseen(heat, 60.0)
    assert in_a_minute is not None
    assert abs(in_a_minute - curve.at(seconds + 60.0)) < 3.0
    at = heat.settles_at()
    assert at is None or abs(at - settled) < 8.0


@given(temperatures, st.floats(0.0, 0.4), st.integers(3, 60))
def test_steps_of_the_sensor_are_no_slope(celsius: float, noise: float, count: int) -> None:
    heat = HeatModel()
    for number in range(count):
        heat.add(5.0 * number, quantised(celsius + noise * (-1) ** number))
    later = foreseen(heat, 60.0)
    assert later is not None
    assert abs(later - celsius) < 6.0
    if count >= 20:
        assert abs(later - celsius) < 1.5


@given(
    st.lists(
        st.tuples(st.floats(allow_nan=True, allow_infinity=True), st.floats(allow_nan=True, allow_infinity=True)),
        max_size=40,
    ),
    st.floats(0.0, 1e6),
)
def test_no_reading_breaks_it(readings: list[tuple[float, float]], horizon_s: float) -> None:
    heat = HeatModel()
    for t_s, celsius in readings:
        heat.add(t_s, celsius)
        later, now = foreseen(heat, horizon_s), foreseen(heat, 0.0)
        assert (later is None) == (now is None)
        assert later is None or math.isfinite(later)
        assert heat.seconds_until(80.0) >= 0.0


@given(
    st.lists(st.tuples(st.floats(1.0, 50.0), temperatures), min_size=3, max_size=60),
    st.floats(0.0, 600.0),
    st.data(),
)
def test_a_forecast_lies_between_now_and_where_it_settles(
    steps: list[tuple[float, float]], horizon_s: float, data: st.DataObject
) -> None:
    heat, t_s = HeatModel(), 0.0
    for wait_s, celsius in steps:
        t_s += wait_s
        heat.add(t_s, celsius)
    now, later, settled = foreseen(heat, 0.0), foreseen(heat, horizon_s), heat.settles_at()
    assert now is not None
    assert later is not None
    if settled is not None:
        assert min(now, settled) - 1e-6 <= later <= max(now, settled) + 1e-6
    limit_c = data.draw(st.floats(*PLAUSIBLE_C))
    until_s = heat.seconds_until(limit_c)
    if 0.0 < until_s < math.inf:
        reached = foreseen(heat, until_s)
        assert reached is not None
        assert abs(reached - limit_c) < 1e-3


@given(st.lists(st.tuples(st.floats(1.0, 50.0), temperatures), min_size=3, max_size=40), st.floats(0.0, 1e6))
def test_the_time_at_which_it_begins_does_not_matter(steps: list[tuple[float, float]], begin_s: float) -> None:
    one, other, t_s = HeatModel(), HeatModel(), 0.0
    for wait_s, celsius in steps:
        t_s += round(wait_s)
        one.add(t_s, celsius)
        other.add(round(begin_s) + t_s, celsius)
    now, then = foreseen(one, 60.0), foreseen(other, 60.0)
    assert now is not None
    assert then is not None
    assert math.isclose(now, then, abs_tol=1e-6)


def test_a_reading_that_cannot_be_is_left_out() -> None:
    heat = learned(Curve(60.0, 0.0, 100.0), 100.0, 5.0)
    for t_s, celsius in ((1105.0, -273.15), (1115.0, 200.0), (1120.0, math.nan), (1125.0, 60.0)):
        heat.add(t_s, celsius)
    now = foreseen(heat, 0.0)
    assert now is not None
    assert abs(now - 60.0) < 0.5


def test_a_board_that_was_suspended_begins_anew() -> None:
    heat = learned(Curve(80.0, 0.0, 100.0), 200.0, 5.0)
    for number in range(1, 10):
        heat.add(1200.0 + 5.0 * number, 30.0)
    assert foreseen(heat, 0.0) == 30.0


def test_a_gap_and_a_clock_that_goes_back_begin_anew() -> None:
    for t_s in (1.0, 1e7):
        heat = learned(Curve(80.0, -30.0, 60.0), 100.0, 5.0)
        heat.add(t_s, 50.0)
        assert foreseen(heat, 0.0) == 50.0
        assert heat.settles_at() is None


def test_a_limit_that_is_passed_takes_no_time_and_one_above_the_settled_temperature_is_never_reached() -> None:
    heat = learned(Curve(70.0, -20.0, 60.0), 240.0, 5.0)
    assert heat.seconds_until(60.0) == 0.0
    assert heat.seconds_until(85.0) == math.inf


def test_without_readings_nothing_is_known() -> None:
    heat = HeatModel()
    assert (foreseen(heat, 0.0), heat.settles_at(), foreseen(heat, 60.0)) == (None, None, None)


def test_one_wild_reading_does_not_turn_the_slope() -> None:
    readings = [(5.0 * n, 50.0 + 0.5 * n) for n in range(9)]
    readings[4] = (20.0, 90.0)
    assert math.isclose(_robust_slope(readings), 0.1, abs_tol=0.02)
