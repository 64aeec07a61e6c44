from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from msgspec.structs import replace

from agent.compute.track.places import ZonePresence, Zones, check_zones
from agent.config import ZoneConfig
from agent.errors import ConfigError
from agent.types import Box, Point

pytestmark = pytest.mark.numerics

SQUARE: tuple[Point, ...] = ((0.2, 0.2), (0.8, 0.2), (0.8, 0.8), (0.2, 0.8))


def standing_at(x: float, y: float) -> Box:
    return (x - 0.05, y - 0.2, x + 0.05, y)


def zones(*polygons: tuple[Point, ...], labels: tuple[str, ...] = ()) -> Zones:
    return Zones([ZoneConfig(f"z{n}", polygon, labels, inertia=1) for n, polygon in enumerate(polygons)])


def entered(zones: Zones, label: str, *boxes: Box | None) -> tuple[str, ...]:
    """Names of the zones that a track is in after detections at these places."""
    known: dict[str, ZonePresence] = {}
    for at, box in enumerate(boxes):
        known = zones.update(known, label, box, at)
    return zones.names_in(known, len(boxes))


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
    assert entered(zones(SQUARE), "person", box) == (("z0",) if inside else ())


def test_a_zone_with_labels_counts_only_those() -> None:
    only_cars = zones(SQUARE, labels=("car",))
    assert entered(only_cars, "car", standing_at(0.5, 0.5)) == ("z0",)
    assert entered(only_cars, "person", standing_at(0.5, 0.5)) == ()


def test_names_come_in_config_order() -> None:
    both = zones(((0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0)), SQUARE)
    assert entered(both, "person", standing_at(0.5, 0.5)) == ("z0", "z1")


def test_a_held_zone_is_left_only_with_a_little_distance() -> None:
    square, inside = zones(SQUARE), standing_at(0.5, 0.5)
    assert entered(square, "person", standing_at(0.5, 0.805)) == ()
    assert entered(square, "person", inside, standing_at(0.5, 0.805)) == ("z0",)
    assert entered(square, "person", inside, standing_at(0.5, 0.83)) == ()


def test_what_sticks_out_of_the_frame_stands_on_its_lower_edge() -> None:
    floor = zones(((0.0, 0.5), (1.0, 0.5), (1.0, 1.0), (0.0, 1.0)))
    assert entered(floor, "person", (0.4, 0.5, 0.6, 1.1)) == ("z0",)


@pytest.mark.parametrize(
    ("polygon", "message"),
    [
        pytest.param((), "has 0 corners: give at least three", id="empty"),
        pytest.param(((0.0, 0.0), (1.0, 1.0)), "has 2 corners: give at least three", id="two corners"),
        pytest.param(((0, 0), (640, 0), (640, 480)), r"\[640, 0\] lies outside .* divide pixels", id="pixels"),
        pytest.param(((-0.1, 0), (1, 0), (1, 1)), r"corner \[-0.1, 0\] lies outside the frame", id="negative"),
        pytest.param(((math.nan, 0), (1, 0), (1, 1)), r"corner \[nan, 0\] lies outside the frame", id="NaN"),
        pytest.param(((0, 0), (0.5, 0.5), (1, 1)), "cross or touch", id="line"),
        pytest.param(((0.3, 0.3), (0.3, 0.3), (0.3, 0.3)), "at one place", id="point"),
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
    assert entered(hook, "person", standing_at(0.8, 0.8)) == ("z0",)
    assert entered(hook, "person", standing_at(0.3, 0.8)) == ()


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
    return bool(entered(zones(polygon), "person", standing_at(x, y)))


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


SLOW = ZoneConfig("slow", SQUARE, inertia=3)
INSIDE, OUTSIDE = standing_at(0.5, 0.5), standing_at(0.5, 0.95)


def history(zone: ZoneConfig, places: Sequence[bool], *, step_ns: int = 200_000_000) -> list[bool]:
    """Whether a track is in a zone after each detection, that is inside or far outside."""
    zones, known, told = Zones([zone]), dict[str, ZonePresence](), []
    for number, inside in enumerate(places):
        known = zones.update(known, "person", INSIDE if inside else OUTSIDE, number * step_ns)
        told.append(bool(zones.names_in(known, number * step_ns)))
    return told


def test_a_zone_is_entered_and_left_after_three_consecutive_detections() -> None:
    assert history(SLOW, [True, True, False, True, True, True]) == [False] * 5 + [True]
    assert history(SLOW, [True] * 3 + [False, False, True, False, False, False])[3:] == [True] * 5 + [False]


@given(st.lists(st.booleans(), max_size=60), st.integers(1, 5))
def test_a_track_changes_sides_only_with_that_many_detections_behind_it(places: list[bool], inertia: int) -> None:
    told = history(replace(SLOW, inertia=inertia), places)
    for number, (before, now) in enumerate(itertools.pairwise([False, *told])):
        recent = places[max(0, number + 1 - inertia) : number + 1]
        agrees = len(recent) == inertia and all(one is not before for one in recent)
        assert (now is not before) is agrees


@given(st.lists(st.booleans(), max_size=60), st.integers(1, 5))
def test_a_change_that_lasts_is_followed(places: list[bool], inertia: int) -> None:
    last = places[-1] if places else False
    assert history(replace(SLOW, inertia=inertia), [*places, *[last] * inertia])[-1] is last


@given(st.lists(st.integers(1, 9), max_size=20), st.integers(1, 5))
def test_no_rate_of_inferences_makes_a_zone_flicker(lengths: list[int], inertia: int) -> None:
    places = [bool(number % 2) for number, length in enumerate(lengths) for _ in range(length)]
    changes = sum(a is not b for a, b in itertools.pairwise([False, *history(SLOW, places)]))
    assert changes <= sum(length >= 3 for length in lengths)


def test_of_a_fast_camera_three_detections_are_not_enough_to_change_sides() -> None:
    brief = [False, *[True] * 5, False, False]
    assert not any(history(SLOW, brief, step_ns=40_000_000))
    assert history(SLOW, [False, *[True] * 8], step_ns=40_000_000) == [False] * 6 + [True] * 3
    assert all(history(SLOW, [*[True] * 9, *[False] * 5, True], step_ns=40_000_000)[2:])


def test_what_appears_in_a_zone_is_in_it_after_three_detections_of_any_camera() -> None:
    assert history(SLOW, [True] * 4, step_ns=33_000_000) == [False, False, True, True]


def test_loitering_counts_from_the_first_detection_inside() -> None:
    second = 1_000_000_000
    told = history(replace(SLOW, loitering_s=10.0), [True] * 15, step_ns=second)
    assert told == [False] * 10 + [True] * 5


def test_who_leaves_for_a_moment_goes_on_loitering() -> None:
    second, brief = 1_000_000_000, [True] * 5 + [False] * 2 + [True] * 5
    assert history(replace(SLOW, loitering_s=10.0), brief, step_ns=second)[-1]
    long = [True] * 5 + [False] * 3 + [True] * 5
    assert not history(replace(SLOW, loitering_s=10.0), long, step_ns=second)[-1]


def test_one_detection_decides_at_once_where_it_is_asked_to() -> None:
    known = Zones([SLOW]).update({}, "person", INSIDE, 0, at_once=True)
    assert Zones([SLOW]).names_in(known, 0) == ("slow",)


def test_what_reaches_below_the_frame_stands_on_the_border_of_a_zone_that_ends_there() -> None:
    corner = zones(((0.5, 0.5), (1.0, 0.5), (1.0, 1.0), (0.5, 1.0)))
    assert entered(corner, "person", (0.9, 0.8, 1.1, 1.2)) == ("z0",)
