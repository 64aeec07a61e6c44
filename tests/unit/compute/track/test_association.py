from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.compute.track.association import AlphaBetaFilter, PredictedBox, affinity, associate, iou
from agent.types import Box

pytestmark = pytest.mark.numerics

SECOND = 10**9


def box(x: float, y: float = 0.5, w: float = 0.05, h: float = 0.1) -> Box:
    return (x - w / 2, y - h / 2, x + w / 2, y + h / 2)


def expected(*boxes: Box, settled: bool = True) -> list[PredictedBox]:
    return [PredictedBox(each, settled) for each in boxes]


@pytest.mark.parametrize(
    ("tracks", "found", "pairs"),
    [
        pytest.param([], [box(0.5)], [], id="no tracks"),
        pytest.param([box(0.5)], [], [], id="nothing found"),
        pytest.param([box(0.5)], [box(0.51)], [(0, 0)], id="overlap"),
        pytest.param([box(0.5)], [box(0.58)], [(0, 0)], id="near without overlap"),
        pytest.param([box(0.5)], [box(0.7)], [], id="far"),
        pytest.param([box(0.5)], [box(0.56, w=0.01, h=0.01)], [], id="near and of another size"),
        pytest.param([box(0.3), box(0.5)], [box(0.51), box(0.31)], [(0, 1), (1, 0)], id="two crossed in order"),
        pytest.param([box(0.5), box(0.52)], [box(0.52)], [(1, 0)], id="the better overlap wins"),
        pytest.param([box(0.5)], [box(0.56), box(0.51)], [(0, 1)], id="overlap goes before distance"),
    ],
)
def test_association(tracks: list[Box], found: list[Box], pairs: list[tuple[int, int]]) -> None:
    assert sorted(associate(expected(*tracks), found, 0.2)) == pairs


def test_a_young_track_reaches_further() -> None:
    found = [box(0.62)]
    assert associate(expected(box(0.5), settled=False), found, 0.2) == [(0, 0)]
    assert associate(expected(box(0.5)), found, 0.2) == []


_fraction = st.floats(0.0, 1.0)
_box = st.tuples(_fraction, _fraction, _fraction, _fraction).map(
    lambda s: (min(s[0], s[2]), min(s[1], s[3]), max(s[0], s[2]), max(s[1], s[3]))
)
_solid = _box.filter(lambda box: min(box[2] - box[0], box[3] - box[1]) > 1e-6)
"""Decoders give no empty boxes."""


@given(st.lists(_box, max_size=6), st.lists(_box, max_size=6))
def test_each_track_and_each_detection_is_used_once_at_most(tracks: list[Box], found: list[Box]) -> None:
    pairs = associate(expected(*tracks), found, 0.2)
    assert len({i for i, _ in pairs}) == len({j for _, j in pairs}) == len(pairs)


@given(_solid, _solid, st.booleans())
def test_the_quick_look_refuses_nobody_who_belongs(track: Box, found: Box, settled: bool) -> None:
    alone = PredictedBox(track, settled)
    assert bool(associate([alone], [found], 0.2)) is (affinity(alone, found, 0.2) > 0.0)


@given(_box, _box)
def test_iou_is_a_symmetric_share(a: Box, b: Box) -> None:
    assert 0.0 <= iou(a, b) <= 1.0
    assert iou(a, b) == pytest.approx(iou(b, a))


def test_a_walker_is_expected_ahead() -> None:
    motion = AlphaBetaFilter(box(0.1), 0)
    for step in range(1, 8):
        motion.correct(box(0.1 + 0.02 * step), step * SECOND // 10)
    assert motion.settled
    assert motion.predict(8 * SECOND // 10) == pytest.approx(box(0.26), abs=0.005)


def test_who_is_not_seen_is_expected_to_stop_after_a_second() -> None:
    motion = AlphaBetaFilter(box(0.1), 0)
    motion.correct(box(0.12), SECOND // 10)
    assert motion.predict(3 * SECOND) == motion.predict(60 * SECOND)


def test_two_boxes_at_the_same_instant_give_no_velocity() -> None:
    motion = AlphaBetaFilter(box(0.1), 0)
    motion.correct(box(0.2), 0)
    assert motion.predict(0) == motion.predict(SECOND)


def test_boxes_without_area_are_told_by_distance() -> None:
    thin = (0.0, 0.0, 0.5, 5e-324)
    assert 0.0 < affinity(PredictedBox(thin, True), thin, 0.2) <= 1.0
