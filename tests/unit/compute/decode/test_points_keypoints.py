from __future__ import annotations

import numpy as np
import pytest

from agent.compute.decode.points import NAMES
from agent.config import DecodeConfig
from tests.support.decoding import assert_sound, decoder, picture, spec

pytestmark = pytest.mark.numerics

SINGLE = [spec("out", 1, 1, 17, 3)]
SEVERAL = [spec("out", 1, 6, 56)]


def person(score: float = 0.8) -> np.ndarray:
    """Points on a diagonal, y from 0.1 and x from 0.2."""
    steps = np.linspace(0, 0.5, 17)
    return np.stack((0.1 + steps, 0.2 + steps, np.full(17, score)), axis=1).astype(np.float32)


def test_a_single_person_is_boxed_by_the_good_points() -> None:
    points = person()
    points[16, 2] = 0.1
    points[15] = np.nan
    points[15, 2] = 0.5
    (found,) = decoder("keypoints", picture(192), SINGLE)([points[None, None]])
    assert found.label == "person"
    assert [point.name for point in found.keypoints] == list(NAMES[:15])
    assert found.keypoints[0].x == pytest.approx(0.2)
    assert found.keypoints[0].y == pytest.approx(0.1)
    assert found.box == pytest.approx((0.2, 0.1, points[14, 1], points[14, 0]))


@pytest.mark.parametrize("score", [0.05, np.nan])
def test_nobody_is_nobody(score: float) -> None:
    assert decoder("keypoints", picture(192), SINGLE, score=0.01)([person(score)[None, None]]) == []


def test_several_people_have_boxes_of_their_own() -> None:
    rows = np.zeros((1, 6, 56), np.float32)
    for number, score in ((1, 0.7), (4, 0.9), (5, np.nan)):
        rows[0, number, :51] = person().reshape(-1)
        rows[0, number, 51:] = (0.1 * number, 0.2, 0.1 * number + 0.1, 0.6, score)
    found = decoder("keypoints", picture(256), SEVERAL)([rows])
    assert [round(d.score, 1) for d in found] == [0.9, 0.7]
    assert found[0].box == pytest.approx((0.2, 0.4, 0.6, 0.5))
    config = DecodeConfig(max_detections=1)
    assert len(decoder("keypoints", picture(256), SEVERAL, config=config)([rows])) == 1


def test_an_unwanted_label_is_left_out() -> None:
    decode = decoder("keypoints", picture(192), SINGLE, ("???",))
    assert decode([person()[None, None]]) == []


def test_noise_stays_within_the_picture() -> None:
    rows = np.random.default_rng(0).normal(0.5, 1, (1, 6, 56)).astype(np.float32)
    assert_sound(decoder("keypoints", picture(256), SEVERAL)([rows]))
