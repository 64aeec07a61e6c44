from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.compute.track.association import associate, optimal
from agent.compute.track.state import BoxFilter, ExpectedTrack, iou
from agent.types import Box

pytestmark = pytest.mark.numerics

STEP_NS = 10**8


def box(x: float, y: float = 0.5, w: float = 0.05, h: float = 0.1) -> Box:
    return (x - w / 2, y - h / 2, x + w / 2, y + h / 2)


def candidate(at: Box, *, hits: int = 8, missed_s: float = 0.0) -> ExpectedTrack:
    """A track that has stood there, and was last detected so long before the picture before."""
    motion = BoxFilter(at, 0)
    for step in range(1, hits):
        motion.correct(at, step * STEP_NS)
    at_ns = hits * STEP_NS + round(missed_s * 1e9)
    return ExpectedTrack(motion.forecast(at_ns, missed_s), motion.settled, not missed_s)


def pairs_of(tracks: list[ExpectedTrack], found: list[Box]) -> list[tuple[int, int]]:
    return sorted(associate(tracks, found, 0.2)[0])


@pytest.mark.parametrize(
    ("tracks", "found", "pairs"),
    [
        pytest.param([], [box(0.5)], [], id="no tracks"),
        pytest.param([box(0.5)], [], [], id="nothing found"),
        pytest.param([box(0.5)], [box(0.51)], [(0, 0)], id="overlap"),
        pytest.param([box(0.5)], [box(0.7)], [], id="far"),
        pytest.param([box(0.5)], [box(0.56, w=0.01, h=0.01)], [], id="near and of another size"),
        pytest.param([box(0.3), box(0.5)], [box(0.51), box(0.31)], [(0, 1), (1, 0)], id="two crossed in order"),
        pytest.param([box(0.5), box(0.52)], [box(0.52)], [(1, 0)], id="the better place wins"),
        pytest.param([box(0.5)], [box(0.56), box(0.51)], [(0, 1)], id="the nearer one"),
        pytest.param([box(0.5)], [box(0.5, 0.53, h=0.04)], [(0, 0)], id="half hidden"),
    ],
)
def test_association(tracks: list[Box], found: list[Box], pairs: list[tuple[int, int]]) -> None:
    assert pairs_of([candidate(one) for one in tracks], found) == pairs


def test_the_sum_decides_and_not_the_best_pair() -> None:
    tracks = [candidate(box(0.5)), candidate(box(0.52))]
    assert pairs_of(tracks, [box(0.515), box(0.535)]) == [(0, 0), (1, 1)]


def test_a_track_that_was_missed_takes_no_neighbours_detection() -> None:
    tracks = [candidate(box(0.5), missed_s=1.0), candidate(box(0.54))]
    assert pairs_of(tracks, [box(0.53)]) == [(1, 0)]


def test_a_track_that_was_missed_is_found_again_near_its_place() -> None:
    assert pairs_of([candidate(box(0.5), missed_s=1.0)], [box(0.52)]) == [(0, 0)]


def test_a_young_track_reaches_further() -> None:
    found = [box(0.62)]
    assert pairs_of([candidate(box(0.5), hits=1)], found) == [(0, 0)]
    assert pairs_of([candidate(box(0.5)), candidate(box(0.56), missed_s=0.3)], found) == []
    assert pairs_of([candidate(box(0.5), hits=1, missed_s=0.3)], found) == []


def test_a_camera_that_turns_changes_no_identities() -> None:
    places = [box(0.2 + 0.06 * n, 0.5 + 0.01 * n) for n in range(8)]
    found = [(x0 + 0.02, y0 + 0.01, x1 + 0.02, y1 + 0.01) for x0, y0, x1, y1 in places]
    pairs, (across, down) = associate([candidate(one) for one in places], found, 0.2)
    assert sorted(pairs) == [(n, n) for n in range(8)]
    assert (across, down) == pytest.approx((0.02, 0.01), abs=0.002)


def test_one_who_moves_is_no_camera_that_turns() -> None:
    places = [box(0.2 + 0.1 * n) for n in range(6)]
    found = [box(0.22), *places[1:]]
    assert associate([candidate(one) for one in places], found, 0.2)[1] == pytest.approx((0.0, 0.0))


_fraction = st.floats(0.0, 1.0)
_box = st.tuples(_fraction, _fraction, _fraction, _fraction).map(
    lambda s: (min(s[0], s[2]), min(s[1], s[3]), max(s[0], s[2]), max(s[1], s[3]))
)


@given(st.lists(st.tuples(_box, st.integers(1, 4)), max_size=6), st.lists(_box, max_size=6))
def test_each_track_and_each_detection_is_used_once_at_most(
    tracks: list[tuple[Box, int]], found: list[Box]
) -> None:
    pairs = pairs_of([candidate(at, hits=hits) for at, hits in tracks], found)
    assert len({i for i, _ in pairs}) == len({j for _, j in pairs}) == len(pairs)


_row = st.dictionaries(st.integers(0, 5), st.integers(-20, -1).map(float), max_size=5)


def cost(rows: list[dict[int, float]], pairs: list[tuple[int, int]]) -> float:
    assert len({i for i, _ in pairs}) == len({j for _, j in pairs}) == len(pairs)
    return sum(rows[i][j] for i, j in pairs)


@given(st.lists(_row, max_size=5))
def test_no_other_assignment_has_a_smaller_sum(rows: list[dict[int, float]]) -> None:
    columns = [*range(6), *([None] * len(rows))]
    least = min(
        sum(0.0 if j is None else row.get(j, 0.0) for row, j in zip(rows, chosen, strict=True))
        for chosen in set(itertools.permutations(columns, len(rows)))
    )
    assert cost(rows, optimal(rows)) == pytest.approx(least)


@given(_box, _box)
def test_iou_is_a_symmetric_share(a: Box, b: Box) -> None:
    assert 0.0 <= iou(a, b) <= 1.0
    assert iou(a, b) == pytest.approx(iou(b, a))


def test_boxes_without_area_are_found_again() -> None:
    thin = (0.0, 0.0, 0.5, 5e-324)
    assert pairs_of([candidate(thin)], [thin]) == [(0, 0)]
