from __future__ import annotations

from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.compute.decode.blazeface import overlaps
from agent.compute.decode.decoder import suppress

pytestmark = pytest.mark.numerics

UNIT = st.floats(0, 1, width=32)


@st.composite
def candidates(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    count = draw(st.integers(0, 30))
    rows = draw(st.lists(st.tuples(UNIT, UNIT, UNIT, UNIT), min_size=count, max_size=count))
    corners = np.array(rows, np.float32).reshape(-1, 4)
    boxes = np.concatenate(
        (np.minimum(corners[:, :2], corners[:, 2:]), np.maximum(corners[:, :2], corners[:, 2:])), 1
    )
    # Distinct scores: among equals the order of the input decides.
    scores = np.random.default_rng(draw(st.integers(0, 99))).permutation(count) + 1
    classes = np.array(draw(st.lists(st.integers(0, 3), min_size=count, max_size=count)), np.intp)
    return boxes, (scores / (count + 1)).astype(np.float32), classes


@given(candidates(), st.floats(0.05, 0.95))
@settings(deadline=None)
def test_what_stays_is_a_part_and_does_not_overlap_within_a_class(
    given: tuple[np.ndarray, np.ndarray, np.ndarray], threshold: float
) -> None:
    boxes, scores, classes = given
    kept = suppress(boxes, scores, classes, threshold, 100)
    assert len(set(kept)) == len(kept)
    assert set(kept) <= set(range(len(boxes)))
    assert [scores[i] for i in kept] == sorted((scores[i] for i in kept), reverse=True)
    for place, i in enumerate(kept):
        rest = [j for j in kept[place + 1 :] if classes[j] == classes[i]]
        assert (overlaps(boxes[i], boxes[rest]) <= threshold + 1e-4).all()


@given(candidates(), st.randoms(use_true_random=False))
@settings(deadline=None)
def test_the_order_of_the_input_does_not_matter(
    given: tuple[np.ndarray, np.ndarray, np.ndarray], random: Random
) -> None:
    boxes, scores, classes = given
    order = list(range(len(boxes)))
    random.shuffle(order)
    shuffled = suppress(boxes[order], scores[order], classes[order], 0.5, 100)
    assert [order[i] for i in shuffled] == suppress(boxes, scores, classes, 0.5, 100)


def test_classes_do_not_suppress_each_other_unless_they_are_one() -> None:
    boxes = np.array([[0, 0, 1, 1], [0, 0, 1, 1]], np.float32)
    scores = np.array([0.5, 0.9], np.float32)
    assert suppress(boxes, scores, np.array([0, 7000]), 0.5, 9) == [1, 0]
    assert suppress(boxes, scores, None, 0.5, 9) == [1]


@pytest.mark.parametrize(
    "bad", [[0.2, 0.2, 0.2, 0.9], [0.9, 0.1, 0.1, 0.9], [np.nan, 0, 1, 1], [0, 0, 1, np.nan]], ids=str
)
def test_empty_turned_and_nan_boxes_are_left_out(bad: list[float]) -> None:
    boxes = np.array([bad, [0, 0, 1, 1], bad], np.float32)
    scores = np.array([0.9, 0.5, 0.8], np.float32)
    assert suppress(boxes, scores, np.zeros(3, np.intp), 0.5, 9) == [1]
    assert suppress(boxes, scores, None, 0.5, 9) == [1]


def test_nothing_and_one_need_no_library() -> None:
    assert suppress(np.empty((0, 4), np.float32), np.empty(0, np.float32), None, 0.5, 9) == []
    one = np.array([[0, 0, 1, 1]], np.float32)
    assert suppress(one, np.array([0.5], np.float32), None, 0.5, 9) == [0]
    assert suppress(one, np.array([0.0], np.float32), None, 0.5, 9) == []


def test_the_limit_keeps_the_strongest() -> None:
    boxes = np.array([[i / 10, 0, i / 10 + 0.05, 1] for i in range(10)], np.float32)
    scores = np.linspace(0.1, 0.9, 10).astype(np.float32)
    assert suppress(boxes, scores, None, 0.5, 3) == [9, 8, 7]
