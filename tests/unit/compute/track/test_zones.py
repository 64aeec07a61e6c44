from __future__ import annotations

import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from agent.compute.track.zones import Zones, check_zones
from agent.config import ZoneConfig
from agent.errors import ConfigError
from agent.types import Box, Point

pytestmark = pytest.mark.numerics

SQUARE: tuple[Point, ...] = ((0.2, 0.2), (0.8, 0.2), (0.8, 0.8), (0.2, 0.8))


def standing_at(x: float, y: float) -> Box:
    return (x - 0.05, y - 0.2, x + 0.05, y)


def zones(*polygons: tuple[Point, ...], labels: tuple[str, ...] = ()) -> Zones:
    return Zones([ZoneConfig(f"z{n}", polygon, labels) for n, polygon in enumerate(polygons)])


@pytest.mark.parametrize(
    ("box", "inside"),
    [
        pytest.param(standing_at(0.5, 0.5), True, id="in the middle"),
        pytest.param(standing_at(0.5, 0.9), False, id="the foot is below although the body is inside"),
        pytest.param((0.4, 0.0, 0.6, 0.3), True, id="the foot is inside although the body is above"),
        pytest.param(standing_at(0.2, 0.5), True, id="on the border"),
        pytest.param(standing_at(0.19, 0.5), False, id="beside it"),
        pytest.param(None, False, id="a verdict on the whole picture stands nowhere"),
    ],
)
def test_a_thing_stands_where_its_foot_is(box: Box | None, inside: bool) -> None:
    assert zones(SQUARE).names_at("person", box) == (("z0",) if inside else ())


def test_a_zone_with_labels_counts_only_those() -> None:
    only_cars = zones(SQUARE, labels=("car",))
    assert only_cars.names_at("car", standing_at(0.5, 0.5)) == ("z0",)
    assert only_cars.names_at("person", standing_at(0.5, 0.5)) == ()


def test_names_come_in_config_order() -> None:
    both = zones(((0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0)), SQUARE)
    assert both.names_at("person", standing_at(0.5, 0.5)) == ("z0", "z1")


def test_a_held_zone_is_left_only_with_a_little_distance() -> None:
    square = zones(SQUARE)
    assert square.names_at("person", standing_at(0.5, 0.805), held=("z0",)) == ("z0",)
    assert square.names_at("person", standing_at(0.5, 0.82), held=("z0",)) == ()


def test_what_sticks_out_of_the_frame_stands_on_its_lower_edge() -> None:
    floor = zones(((0.0, 0.5), (1.0, 0.5), (1.0, 1.0), (0.0, 1.0)))
    assert floor.names_at("person", (0.4, 0.5, 0.6, 1.1)) == ("z0",)


@pytest.mark.parametrize(
    ("polygon", "message"),
    [
        pytest.param((), "has 0 corners: give at least three", id="empty"),
        pytest.param(((0.0, 0.0), (1.0, 1.0)), "has 2 corners: give at least three", id="two corners"),
        pytest.param(((0, 0), (640, 0), (640, 480)), r"\[640, 0\] lies outside .* divide pixels", id="pixels"),
        pytest.param(((-0.1, 0), (1, 0), (1, 1)), r"corner \[-0.1, 0\] lies outside the frame", id="negative"),
        pytest.param(((math.nan, 0), (1, 0), (1, 1)), r"corner \[nan, 0\] lies outside the frame", id="NaN"),
        pytest.param(((0, 0), (0.5, 0.5), (1, 1)), "has no area", id="line"),
        pytest.param(((0.3, 0.3), (0.3, 0.3), (0.3, 0.3)), "has no area", id="point"),
        pytest.param(((0, 0), (1, 1), (1, 0), (0, 1)), "from corner 1 and from corner 3 cross", id="bow tie"),
    ],
)
def test_a_polygon_that_cannot_be_used_is_refused_in_one_line(polygon: tuple[Point, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^zone 'door': .*{message}") as caught:
        check_zones([ZoneConfig("door", polygon)])
    assert "\n" not in str(caught.value)


def test_two_zones_of_one_name_are_refused() -> None:
    with pytest.raises(ConfigError, match="two zones are named 'door'"):
        Zones([ZoneConfig("door", SQUARE), ZoneConfig("door", SQUARE)])


def test_a_concave_polygon_is_taken() -> None:
    hook = zones(((0.1, 0.1), (0.9, 0.1), (0.9, 0.9), (0.7, 0.9), (0.7, 0.3), (0.1, 0.3)))
    assert hook.names_at("person", standing_at(0.8, 0.8)) == ("z0",)
    assert hook.names_at("person", standing_at(0.3, 0.8)) == ()


@st.composite
def convex(draw: st.DrawFn) -> tuple[Point, ...]:
    """Corners on a circle inside the frame, in order."""
    angles = sorted(draw(st.lists(st.integers(0, 359), min_size=3, max_size=8, unique=True)))
    polygon = tuple(
        (0.5 + 0.3 * math.cos(math.radians(a)), 0.5 + 0.3 * math.sin(math.radians(a))) for a in angles
    )
    assume(abs(_area(polygon)) > 1e-4)
    return polygon


def _area(polygon: tuple[Point, ...]) -> float:
    return sum(a[0] * b[1] - b[0] * a[1] for a, b in zip(polygon, polygon[1:] + polygon[:1], strict=True)) / 2


def _depth(polygon: tuple[Point, ...], x: float, y: float) -> float:
    """Distance to the nearest side's line, negative outside: the half-plane test."""
    depths = []
    for (ax, ay), (bx, by) in zip(polygon, polygon[1:] + polygon[:1], strict=True):
        depths.append(((bx - ax) * (y - ay) - (by - ay) * (x - ax)) / math.hypot(bx - ax, by - ay))
    return min(depths)


def _stands(polygon: tuple[Point, ...], x: float, y: float) -> bool:
    return bool(zones(polygon).names_at("person", standing_at(x, y)))


@given(convex(), st.floats(0.0, 1.0), st.floats(0.0, 1.0))
def test_a_convex_zone_agrees_with_its_half_planes(polygon: tuple[Point, ...], x: float, y: float) -> None:
    depth = _depth(polygon, x, y)
    assume(abs(depth) > 1e-5)
    assert _stands(polygon, x, y) is (depth > 0.0)


@given(convex(), st.floats(0.3, 0.7), st.floats(0.3, 0.7), st.floats(-3.1, 3.1))
def test_turning_the_picture_changes_nothing(
    polygon: tuple[Point, ...], x: float, y: float, angle: float
) -> None:
    assume(abs(_depth(polygon, x, y)) > 1e-4)

    def turned(px: float, py: float) -> Point:
        dx, dy = px - 0.5, py - 0.5
        return (
            0.5 + dx * math.cos(angle) - dy * math.sin(angle),
            0.5 + dx * math.sin(angle) + dy * math.cos(angle),
        )

    assert _stands(polygon, x, y) is _stands(tuple(turned(*corner) for corner in polygon), *turned(x, y))


@given(convex(), st.floats(0.3, 0.7), st.floats(0.3, 0.7), st.floats(-0.2, 0.2), st.floats(-0.2, 0.2))
def test_moving_zone_and_thing_together_changes_nothing(
    polygon: tuple[Point, ...], x: float, y: float, dx: float, dy: float
) -> None:
    assume(abs(_depth(polygon, x, y)) > 1e-4)
    moved = tuple((px + dx, py + dy) for px, py in polygon)
    assert _stands(polygon, x, y) is _stands(moved, x + dx, y + dy)
