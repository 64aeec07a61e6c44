from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.compute.track.places import LineProgress, Lines, check_lines, net_crossings
from agent.config.places import LineConfig
from agent.errors import ConfigError
from agent.types import Box, Crossing, Point

pytestmark = pytest.mark.numerics

ACROSS: tuple[Point, ...] = ((0.2, 0.5), (0.8, 0.5))
"""From left to right: down the picture is to its right hand, and so `in`."""
BAND = 0.028
"""Half of the width of the band for `standing_at`."""
STAYS = 8
STEP_NS = 250_000_000


def standing_at(x: float, y: float) -> Box:
    return (x - 0.1, y - 0.2, x + 0.1, y)


def walk(path: Sequence[Point], *points: tuple[Point, ...], labels: tuple[str, ...] = ()) -> list[Crossing]:
    """Crossings of a track whose foot stays for some detections at each of these places."""
    lines = Lines([LineConfig(f"l{n}", one, labels) for n, one in enumerate(points or (ACROSS,))])
    known, found = dict[str, LineProgress](), list[Crossing]()
    for number, (x, y) in enumerate(one for one in path for _ in range(STAYS)):
        known, crossed = lines.update(known, "person", standing_at(x, y), number * STEP_NS)
        found += crossed
    return found


def directions(path: Sequence[Point], points: tuple[Point, ...] = ACROSS) -> list[str]:
    return [one.direction for one in walk(path, points)]


def count(path: Sequence[Point], *, step_ns: int = STEP_NS) -> int:
    """Number of crossings of a track with a single detection at each place."""
    lines, known, found = Lines([LineConfig("line", ACROSS)]), dict[str, LineProgress](), 0
    for number, (x, y) in enumerate(path):
        known, crossed = lines.update(known, "person", standing_at(x, y), number * step_ns)
        found += len(crossed)
    return found


def test_down_the_picture_is_in_and_up_is_out_for_a_line_from_left_to_right() -> None:
    down = [(0.5, 0.4 + 0.02 * n) for n in range(11)]
    assert directions(down) == ["in"]
    assert directions(down[::-1]) == ["out"]


def test_the_points_in_the_other_order_turn_the_directions_around() -> None:
    assert directions([(0.5, 0.4), (0.5, 0.6)], ACROSS[::-1]) == ["out"]


def test_a_step_over_the_line_between_two_inferences_counts() -> None:
    assert count([(0.5, 0.3), (0.5, 0.7), (0.5, 0.7)]) == 1
    assert count([(0.5, 0.3), (0.5, 0.8)]) == 1


@pytest.mark.parametrize(
    "path",
    [
        pytest.param([(0.5, 0.6), (0.5, 0.7)], id="appears beyond it"),
        pytest.param([(0.5, 0.495), (0.5, 0.505), (0.5, 0.7)], id="appears on it"),
        pytest.param([(0.5, 0.3), (0.5, 0.495), (0.5, 0.504)], id="vanishes on it"),
        pytest.param([(0.5, 0.3), (0.5, 0.49), (0.5, 0.3)], id="turns back before it"),
        pytest.param([(0.5, 0.3), (0.5, 0.505), (0.5, 0.3)], id="turns back on it"),
        pytest.param([(0.5, 0.3)], id="is seen once"),
        pytest.param([(0.9, 0.3), (0.9, 0.7)], id="passes beside its end"),
        pytest.param([(0.5, 0.3), (0.1, 0.3), (0.1, 0.7), (0.5, 0.7)], id="walks around its end"),
    ],
)
def test_who_does_not_pass_from_side_to_side_is_not_counted(path: list[Point]) -> None:
    assert directions(path) == []


def test_who_is_cut_off_by_the_frames_edge_crosses_a_line_that_ends_there() -> None:
    assert directions([(0.4, 1.1), (0.6, 1.2)], ((0.5, 0.2), (0.5, 1.0))) == ["out"]


def test_who_goes_back_is_counted_again() -> None:
    assert directions([(0.5, 0.4), (0.5, 0.6), (0.5, 0.4), (0.5, 0.6)]) == ["in", "out", "in"]


def test_who_crosses_and_returns_around_the_end_has_crossed_once() -> None:
    assert directions([(0.5, 0.4), (0.5, 0.6), (0.9, 0.6), (0.9, 0.4), (0.5, 0.4), (0.5, 0.6)]) == ["in", "in"]


def test_a_jump_of_a_few_pictures_of_a_fast_camera_crosses_nothing() -> None:
    jump = [(0.5, 0.47)] * 30 + [(0.5, 0.53)] * 3 + [(0.5, 0.47)] * 30
    assert count(jump, step_ns=33_000_000) == 0
    assert count(jump[:30] + [(0.5, 0.6)] * 30, step_ns=33_000_000) == 1


def test_each_of_several_lines_is_counted() -> None:
    lower = tuple((x, y + 0.2) for x, y in ACROSS)
    assert walk([(0.5, 0.4), (0.5, 0.6), (0.5, 0.8)], ACROSS, lower) == [
        Crossing("l0", "in"),
        Crossing("l1", "in"),
    ]
    assert len(walk([(0.5, 0.4), (0.5, 0.8)], ACROSS, lower)) == 2


def test_a_line_with_labels_counts_only_those() -> None:
    assert walk([(0.5, 0.4), (0.5, 0.6)], labels=("car",)) == []
    assert len(walk([(0.5, 0.4), (0.5, 0.6)], labels=("car", "person"))) == 1


def test_a_line_that_is_off_counts_nothing() -> None:
    off = Lines([LineConfig("gate", ACROSS, enabled=False)])
    known, _ = off.update({}, "person", standing_at(0.5, 0.3), 0)
    assert off.update(known, "person", standing_at(0.5, 0.9), STEP_NS) == ({}, ())


def test_what_has_no_place_crosses_nothing() -> None:
    assert Lines([LineConfig("gate", ACROSS)]).update({}, "person", None, 0) == ({}, ())


trembling = st.lists(st.floats(-0.9 * BAND, 0.9 * BAND), max_size=30)


@given(trembling, st.sampled_from([0.3, 0.7]), st.sampled_from([0.3, 0.7]))
def test_who_trembles_on_the_line_is_counted_once_or_not_at_all(
    jitter: list[float], begin: float, end: float
) -> None:
    path = [(0.5, begin), *((0.5, 0.5 + one) for one in jitter), (0.5, end)]
    expected = [] if begin == end else ["in" if end > begin else "out"]
    assert directions(path) == expected


unit = st.floats(0.0, 1.0)
paths = st.lists(st.tuples(unit, unit), min_size=2, max_size=20)
polylines = st.lists(st.tuples(st.floats(0.1, 0.9), st.floats(0.1, 0.9)), min_size=2, max_size=5)


@given(paths)
def test_directions_alternate_at_a_line_that_nobody_can_walk_around(path: list[Point]) -> None:
    found = directions(path, ((0.0, 0.5), (1.0, 0.5)))
    assert all(one != other for one, other in itertools.pairwise(found))


@given(st.lists(st.sampled_from([0.2, 0.35, 0.65, 0.8]), min_size=2, max_size=20), st.floats(0.3, 0.7))
def test_a_whole_line_is_crossed_as_often_as_the_side_changes(heights: list[float], x: float) -> None:
    wide = ((0.0, 0.5), (0.4, 0.5), (1.0, 0.5))
    sides = [y > 0.5 for y in heights]
    changes = ["in" if now else "out" for before, now in itertools.pairwise(sides) if now is not before]
    assert directions([(x, y) for y in heights], wide) == changes


@given(paths, polylines)
def test_the_way_back_crosses_the_other_way(path: list[Point], points: list[Point]) -> None:
    there = [net_crossings(points, a, b) for a, b in itertools.pairwise(path)]
    back = [net_crossings(points, a, b) for a, b in itertools.pairwise(path[::-1])]
    assert there == [-one for one in back[::-1]]


@given(paths)
def test_a_path_that_ends_where_it_began_has_crossed_a_whole_line_as_often_in_as_out(path: list[Point]) -> None:
    closed = [*path, path[0]]
    whole = ((-1.0, 0.5), (0.3, 0.4), (2.0, 0.5))
    assert sum(net_crossings(whole, a, b) for a, b in itertools.pairwise(closed)) == 0


@pytest.mark.parametrize(
    ("points", "message"),
    [
        pytest.param((), "has 0: give 2 to", id="empty"),
        pytest.param(((0.5, 0.5),), "has 1: give 2 to", id="one"),
        pytest.param(((0, 0), (640, 480)), r"\[640, 480\] lies outside .* not pixels", id="pixels"),
        pytest.param(((0, -0.1), (1, 1)), r"\[0, -0.1\] lies outside the frame", id="negative"),
        pytest.param(((0, math.nan), (1, 1)), r"\[0, nan\] lies outside the frame", id="NaN"),
        pytest.param(((0.3, 0.3), (0.3, 0.3)), "too short", id="one place"),
        pytest.param(
            ((0.1, 0.1), (0.9, 0.9), (0.9, 0.1), (0.1, 0.9)),
            r"pieces 1 and 3 cross",
            id="crosses itself",
        ),
        pytest.param(((0.1, 0.5), (0.9, 0.5), (0.4, 0.5)), "cross or touch", id="folds back"),
        pytest.param(((0.1, 0.5), (0.9, 0.5), (0.9, 0.9), (0.5, 0.5)), "cross or touch", id="touches itself"),
    ],
)
def test_a_line_that_cannot_be_used_is_refused_in_one_line(points: tuple[Point, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^line 'gate': .*{message}") as caught:
        check_lines([LineConfig("gate", points)])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "points",
    [
        pytest.param(((0.1, 0.1), (0.9, 0.1), (0.9, 0.9), (0.1, 0.1)), id="closed"),
        pytest.param(((0.1, 0.1), (0.1, 0.1), (0.9, 0.1), (0.9, 0.1), (0.9, 0.9)), id="a point twice in a row"),
        pytest.param(((0.1, 0.1), (0.5, 0.1), (0.9, 0.1)), id="straight"),
    ],
)
def test_a_line_whose_sides_are_clear_is_allowed(points: tuple[Point, ...]) -> None:
    check_lines([LineConfig("gate", points)])


def test_two_lines_of_one_name_are_refused() -> None:
    with pytest.raises(ConfigError, match="two lines are named 'gate'"):
        Lines([LineConfig("gate", ACROSS), LineConfig("gate", ACROSS)])


@pytest.mark.parametrize(
    ("line", "named"),
    [
        (LineConfig("all", ((0.0, 0.5), (1.0, 0.5))), "'all'"),
        (LineConfig("short", ((0.5, 0.5), (0.5, 0.505))), "too short"),
        (LineConfig("long", tuple((number / 200, 0.5) for number in range(101))), "2 to 100"),
    ],
)
def test_a_line_that_cannot_be_reset_alone_crossed_or_drawn_is_refused(line: LineConfig, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        check_lines([line])
