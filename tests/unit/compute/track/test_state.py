from __future__ import annotations

import itertools

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec.structs import astuple

from agent.compute.track.state import BoxFilter
from agent.types import Box

pytestmark = pytest.mark.numerics

SECOND = 10**9


def box(x: float, y: float = 0.5, w: float = 0.05, h: float = 0.1) -> Box:
    return (x - w / 2, y - h / 2, x + w / 2, y + h / 2)


def walker(speed: float, every_s: float, count: int = 8, x: float = 0.1) -> BoxFilter:
    """The filter of an object that has been detected so often, at a constant speed."""
    motion = BoxFilter(box(x), 0)
    for step in range(1, count):
        motion.correct(box(x + speed * step * every_s), round(step * every_s * SECOND))
    return motion


@pytest.mark.parametrize("every_s", [0.05, 0.1, 0.5])
def test_a_walker_is_expected_ahead_at_any_rate(every_s: float) -> None:
    motion = walker(0.1, every_s, round(2 / every_s))
    assert motion.settled
    at_s = (round(2 / every_s) - 1) * every_s + 0.5
    assert motion.predict(round(at_s * SECOND)) == pytest.approx(box(0.1 + 0.1 * at_s), abs=0.012)


def test_who_is_not_seen_is_expected_to_stop_after_a_while() -> None:
    motion = walker(0.1, 0.1)
    assert motion.predict(10 * SECOND) == motion.predict(60 * SECOND)
    assert motion.predict(10 * SECOND)[0] < 0.4


def test_two_boxes_at_the_same_instant_give_no_velocity() -> None:
    motion = BoxFilter(box(0.1), 0)
    motion.correct(box(0.2), 0)
    assert motion.predict(0) == motion.predict(SECOND)


def test_the_longer_unseen_the_less_sure() -> None:
    motion = walker(0.1, 0.1)
    forecasts = [motion.forecast(round((0.7 + s) * SECOND), 0.0) for s in (0.0, 0.1, 0.5, 2.0)]
    for surer, other in itertools.pairwise(forecasts):
        assert surer.precision_x > other.precision_x
        assert surer.precision_h > other.precision_h
        assert surer.spread < other.spread


def test_an_overdue_track_and_one_that_left_the_frame_cost_more() -> None:
    motion = walker(0.1, 0.1)
    assert motion.forecast(SECOND, 0.3).spread > motion.forecast(SECOND, 0.0).spread
    staying, leaving = walker(0.0, 0.1, x=0.99), walker(0.2, 0.1, x=0.85)
    assert leaving.forecast(SECOND, 0.0).spread > staying.forecast(SECOND, 0.0).spread


def test_a_filter_moves_with_the_camera_and_keeps_its_velocity() -> None:
    still, moved = walker(0.1, 0.1), walker(0.1, 0.1)
    moved.shift(0.05, -0.02)
    x0, y0, x1, y1 = still.predict(SECOND)
    assert moved.predict(SECOND) == pytest.approx((x0 + 0.05, y0 - 0.02, x1 + 0.05, y1 - 0.02))


_fraction = st.floats(0.0, 1.0)
_box = st.tuples(_fraction, _fraction, _fraction, _fraction).map(
    lambda s: (min(s[0], s[2]), min(s[1], s[3]), max(s[0], s[2]), max(s[1], s[3]))
)


NOTHING = (0.0, 0.0, 0.0, 0.0)


@given(st.lists(st.tuples(_box, st.integers(0, 100 * SECOND)), min_size=1, max_size=20))
@example([(NOTHING, 0), ((0.0, 0.0, 0.0, 1.0), 4), (NOTHING, 0), (NOTHING, 9516391)])
def test_any_boxes_at_any_times_give_a_finite_forecast(seen: list[tuple[Box, int]]) -> None:
    at_ns = 0
    motion = BoxFilter(seen[0][0], at_ns)
    for one, passed_ns in seen[1:]:
        at_ns += passed_ns
        motion.correct(one, at_ns)
        forecast = motion.forecast(at_ns + passed_ns, passed_ns / SECOND)
        assert all(abs(value) < 1e18 for value in (*astuple(forecast), *forecast.box))
        assert forecast.box == motion.predict(at_ns + passed_ns)
        assert min(forecast.precision_x, forecast.precision_y, forecast.precision_w) > 0.0


def test_a_width_that_changes_costs_less_than_a_height() -> None:
    forecast = walker(0.1, 0.1).forecast(round(0.8 * SECOND), 0.0)
    assert forecast.precision_w < forecast.precision_h
