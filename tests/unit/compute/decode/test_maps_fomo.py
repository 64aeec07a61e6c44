from __future__ import annotations

import numpy as np
import pytest

from agent.config import DecodeConfig
from agent.errors import ModelError
from tests.support.decoding import assert_sound, decoder, picture, spec

pytestmark = pytest.mark.numerics

GRID = (spec("out", 1, 12, 12, 3),)
LABELS = ("bolt", "nut")


def grid(*cells: tuple[int, int, int, float]) -> list[np.ndarray]:
    """Background but for cells (row, column, class, probability)."""
    values = np.zeros((1, 12, 12, 3), np.float32)
    values[..., 0] = 1.0
    for row, column, number, score in cells:
        values[0, row, column, number] = score
        values[0, row, column, 0] = 1.0 - score
    return [values]


def test_cells_that_touch_are_one_thing() -> None:
    found = decoder("fomo", picture(96), GRID, LABELS)(
        grid((2, 3, 1, 0.6), (3, 4, 1, 0.9), (3, 5, 1, 0.7), (9, 9, 1, 0.5), (9, 10, 2, 0.8))
    )
    assert [(one.label, round(one.score, 1)) for one in found] == [("bolt", 0.9), ("nut", 0.8), ("bolt", 0.5)]
    assert found[0].box == pytest.approx((3 / 12, 2 / 12, 6 / 12, 4 / 12))
    assert found[1].box == pytest.approx((10 / 12, 9 / 12, 11 / 12, 10 / 12))


def test_weak_cells_and_the_background_are_nothing() -> None:
    assert decoder("fomo", picture(96), GRID, LABELS)(grid((2, 3, 1, 0.3))) == []
    assert decoder("fomo", picture(96), GRID, LABELS, score=0.0)(grid()) == []


def test_logits_get_a_softmax_and_int8_its_scale() -> None:
    values = np.zeros((1, 12, 12, 3), np.float32)
    values[..., 0] = 5.0
    values[0, 1, 1] = (0.0, 3.0, 0.0)
    (found,) = decoder("fomo", picture(96), GRID, LABELS, logits=True)([values])
    assert found.score == pytest.approx(np.exp(3) / (np.exp(3) + 2))
    stored = np.full((1, 12, 12, 3), -128, np.int8)
    stored[0, 0, 0, 2] = 127
    int8 = (spec("out", 1, 12, 12, 3, dtype="int8", scale=1 / 256, zero_point=-128),)
    (found,) = decoder("fomo", picture(96), int8, LABELS)([stored])
    assert (found.label, round(found.score, 3)) == ("nut", round(255 / 256, 3))


def test_labels_are_without_the_background() -> None:
    with pytest.raises(ModelError, match=r"expected a cell of 4 classes"):
        decoder("fomo", picture(96), GRID, ("background", *LABELS))
    with pytest.raises(ModelError, match="two classes or more"):
        decoder("fomo", picture(96), (spec("out", 1, 12, 12, 1),))
    (found,) = decoder("fomo", picture(96), GRID)(grid((0, 0, 2, 0.9)))
    assert found.label == "class1"


def test_wanted_labels_and_the_limit_count() -> None:
    cells = grid((0, 0, 1, 0.9), (5, 5, 2, 0.8), (9, 9, 2, 0.7))
    config = DecodeConfig(labels=("nut",), max_detections=1)
    (found,) = decoder("fomo", picture(96), GRID, LABELS, config=config)(cells)
    assert (found.label, round(found.score, 1)) == ("nut", 0.8)


def test_noise_stays_within_the_picture() -> None:
    values = np.random.default_rng(0).normal(0.4, 1, (1, 12, 12, 3)).astype(np.float32)
    values[0, 0] = np.nan
    assert_sound(decoder("fomo", picture(96), GRID, LABELS)([values]))
