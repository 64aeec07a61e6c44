from __future__ import annotations

import pytest

from agent.compute.track.association import detection_f1
from agent.types import Box, Detection

pytestmark = pytest.mark.numerics

BOX: Box = (0.2, 0.2, 0.6, 0.6)


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
