from __future__ import annotations

import numpy as np
import pytest

from agent.compute.tflite.model import TensorSpec
from agent.errors import ModelError
from tests.support.decoding import assert_sound, decoder, picture, spec

pytestmark = pytest.mark.numerics

HAND = (spec("Identity", 1, 63), spec("Identity_1", 1, 1), spec("Identity_2", 1, 1), spec("Identity_3", 1, 63))
BODY = (
    spec("Identity", 1, 195),
    spec("Identity_1", 1, 1),
    spec("Identity_2", 1, 256, 256, 1),
    spec("Identity_3", 1, 64, 64, 39),
    spec("Identity_4", 1, 117),
)
FACE = (spec("points", 1, 1, 1, 1404), spec("there", 1, 1, 1, 1))
EYE = (spec("contours", 1, 213), spec("iris", 1, 15))


def hand(score: float = 0.9) -> list[np.ndarray]:
    """Points on a diagonal from (22.4, 44.8) on, in pixels of 224."""
    points = np.zeros((21, 3), np.float32)
    points[:, 0] = 22.4 + np.arange(21)
    points[:, 1] = 44.8 + 2 * np.arange(21)
    flags = [np.full((1, 1), score, np.float32), np.zeros((1, 1), np.float32)]
    return [points.reshape(1, -1), *flags, np.ones((1, 63), np.float32)]


def test_a_hand_has_named_points_and_the_box_around_them() -> None:
    (found,) = decoder("landmarks", picture(224), HAND)(hand())
    assert (found.label, round(found.score, 2), len(found.keypoints)) == ("hand", 0.9, 21)
    assert [point.name for point in found.keypoints][:2] == ["wrist", "thumb_cmc"]
    assert found.keypoints[-1].name == "pinky_tip"
    assert found.box == pytest.approx((0.1, 0.2, 42.4 / 224, 84.8 / 224))
    assert (found.keypoints[0].x, found.keypoints[0].y) == pytest.approx((0.1, 0.2))


@pytest.mark.parametrize("score", [0.1, np.nan])
def test_what_is_not_there_is_not_told(score: float) -> None:
    assert decoder("landmarks", picture(224), HAND)(hand(score)) == []


def test_a_logit_gets_a_sigmoid() -> None:
    (found,) = decoder("landmarks", picture(224), HAND, logits=True)(hand(2.0))
    assert found.score == pytest.approx(1 / (1 + np.exp(-2.0)))


def test_of_a_body_the_visible_points_are_told() -> None:
    rows = np.zeros((39, 5), np.float32)
    rows[:, :2] = 128.0
    rows[:, 3] = -5.0
    rows[[0, 11, 12], 3] = 3.0
    rows[11, :2], rows[12, :2] = (64.0, 128.0), (192.0, 160.0)
    rows[35, 3] = 9.0  # of the auxiliary ones none
    outputs = [
        rows.reshape(1, -1),
        np.ones((1, 1), np.float32),
        *(np.zeros(one.shape, np.float32) for one in BODY[2:]),
    ]
    (found,) = decoder("landmarks", picture(256), BODY)(outputs)
    assert [point.name for point in found.keypoints] == ["nose", "left_shoulder", "right_shoulder"]
    assert found.box == pytest.approx((0.25, 0.5, 0.75, 0.625))
    assert found.keypoints[0].score == pytest.approx(1 / (1 + np.exp(-3.0)))


def test_an_eye_has_no_score() -> None:
    outputs = [np.linspace(1, 60, 213, dtype=np.float32)[None], np.zeros((1, 15), np.float32)]
    (found,) = decoder("landmarks", picture(64), EYE)(outputs)
    assert (found.label, found.score, len(found.keypoints)) == ("eye", 1.0, 71)


def test_points_that_are_not_finite_are_left_out() -> None:
    values = hand()
    values[0][0, :3] = np.nan
    (found,) = decoder("landmarks", picture(224), HAND)(values)
    assert found.keypoints[0].name == "thumb_cmc"
    values[0][:] = np.inf
    assert decoder("landmarks", picture(224), HAND)(values) == []


@pytest.mark.parametrize("outputs", [HAND, BODY, FACE, EYE])
def test_noise_stays_within_the_picture(outputs: tuple[TensorSpec, ...]) -> None:
    random = np.random.default_rng(0)
    values = [random.normal(100, 200, one.shape).astype(np.float32) for one in outputs]
    assert_sound(decoder("landmarks", picture(256), outputs)(values))


def test_an_unwanted_label_is_left_out() -> None:
    assert decoder("landmarks", picture(224), HAND, ("???",))(hand()) == []
    with pytest.raises(ModelError, match="expected one label, found 3"):
        decoder("landmarks", picture(224), HAND, ("left", "right", "both"))


def test_the_labels_that_hands_bring_along_are_of_their_sides() -> None:
    (found,) = decoder("landmarks", picture(224), HAND, ("left", "right"))(hand())
    assert found.label == "hand"
