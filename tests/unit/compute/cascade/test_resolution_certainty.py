from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.compute.cascade.resolution import answer_confidence, detection_f1
from agent.types import Box, Detection

pytestmark = pytest.mark.numerics

UNIT = st.floats(0.0, 1.0)
BOX: Box = (0.2, 0.2, 0.6, 0.6)


@pytest.mark.parametrize(
    ("scores", "threshold", "sure"),
    [
        ([], 0.4, 1.0),
        ([0.4], 0.4, 0.5),
        ([0.2], 0.4, 0.75),
        ([0.0], 0.4, 1.0),
        ([0.7], 0.4, 0.75),
        ([1.0], 0.4, 1.0),
        ([1.0, 0.7, 0.0], 0.4, 0.75),
        ([0.3], 0.0, 0.65),
        ([1.0], 1.0, 0.5),
        ([0.5], 1.0, 0.75),
    ],
)
def test_an_answer_is_as_sure_as_its_least_sure_candidate(
    scores: list[float], threshold: float, sure: float
) -> None:
    assert answer_confidence(scores, threshold) == pytest.approx(sure)


@given(scores=st.lists(UNIT, max_size=5), more=UNIT, threshold=UNIT)
def test_one_more_candidate_makes_nothing_surer(scores: list[float], more: float, threshold: float) -> None:
    assert 0.5 <= answer_confidence([*scores, more], threshold) <= answer_confidence(scores, threshold) <= 1.0


def person(x: float = 0.2, label: str = "person", box: Box | None = BOX) -> Detection:
    return Detection(label, 0.9, box and (x, box[1], x + 0.4, box[3]))


@pytest.mark.parametrize(
    ("these", "those", "share"),
    [
        ([], [], 1.0),
        ([person()], [], 0.0),
        ([person()], [person()], 1.0),
        ([person()], [person(0.25)], 1.0),
        ([person()], [person(0.5)], 0.0),
        ([person()], [person(label="dog")], 0.0),
        ([person(), person()], [person()], 2 / 3),
        ([person(), person(0.6)], [person(0.6), person()], 1.0),
        ([person(box=None)], [person(box=None)], 1.0),
        ([person(box=None)], [person(label="dog", box=None)], 0.0),
    ],
)
def test_answers_agree_as_far_as_their_boxes_and_labels_do(
    these: list[Detection], those: list[Detection], share: float
) -> None:
    assert detection_f1(these, those) == pytest.approx(share)
    assert detection_f1(those, these) == pytest.approx(share)
