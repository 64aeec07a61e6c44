from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.compute.tflite.model import TensorSpec
from agent.config import DecodeConfig
from agent.errors import ModelError
from tests.support.decoding import assert_same, assert_sound, decoder, picture, spec

pytestmark = pytest.mark.numerics

SIZE = 64
CELLS = 8 * 8 + 4 * 4 + 2 * 2
BINS = 8
LABELS = ("person", "dog", "car")
FLOAT = (spec("scores", 1, CELLS, 3), spec("reg", 1, CELLS, 4 * BINS))
STORED = (
    spec("scores", 1, CELLS, 3, dtype="int8", scale=1 / 256, zero_point=-128),
    spec("reg", 1, CELLS, 4 * BINS, dtype="int8", scale=1 / 256, zero_point=-128),
)


def outputs(found: dict[tuple[int, int], float], distance: int = 1) -> list[np.ndarray]:
    """Scores at (cell, class); every side is `distance` cells away."""
    scores = np.zeros((1, CELLS, 3), np.float32)
    for place, score in found.items():
        scores[0, place[0], place[1]] = score
    reg = np.zeros((1, CELLS, 4, BINS), np.float32)
    reg[..., distance] = 1.0
    return [scores, reg.reshape(1, CELLS, -1)]


@pytest.mark.parametrize(
    ("cell", "box"),
    [
        # Cell (3, 2) of the finest level: centre (3.5, 2.5) * 8 px.
        (2 * 8 + 3, (20 / 64, 12 / 64, 36 / 64, 28 / 64)),
        # Cell (1, 2) of the next: (1.5, 2.5) * 16 px.
        (64 + 2 * 4 + 1, (8 / 64, 24 / 64, 40 / 64, 56 / 64)),
        # Cell (0, 0) of the coarsest, cut at the edge of the picture.
        (64 + 16, (0, 0, 48 / 64, 48 / 64)),
    ],
)
def test_a_box_reaches_its_distances_from_the_centre_of_its_cell(cell: int, box: tuple[float, ...]) -> None:
    (found,) = decoder("nanodet", picture(SIZE), FLOAT, LABELS)(outputs({(cell, 1): 0.9}))
    assert found.label == "dog"
    assert found.score == pytest.approx(0.9)
    assert found.box == pytest.approx(box)


def test_an_offset_of_zero_is_nanodet_plus() -> None:
    (found,) = decoder("nanodet", picture(SIZE), FLOAT, LABELS, offset=0.0)(outputs({(19, 0): 0.9}))
    assert found.box == pytest.approx((16 / 64, 8 / 64, 32 / 64, 24 / 64))


def test_neighbours_of_one_class_are_one_thing() -> None:
    decode = decoder("nanodet", picture(SIZE), FLOAT, LABELS)
    found = decode(outputs({(19, 0): 0.9, (20, 0): 0.8, (19, 2): 0.7}, distance=4))
    assert [(d.label, round(d.score, 1)) for d in found] == [("person", 0.9), ("car", 0.7)]


def test_the_config_overrides_thresholds_and_picks_labels() -> None:
    given = outputs({(19, 0): 0.3, (40, 1): 0.9, (60, 0): 0.95})
    config = DecodeConfig(score_threshold=0.2, labels=("person",), max_detections=1)
    assert [d.score for d in decoder("nanodet", picture(SIZE), FLOAT, LABELS, config=config)(given)] == [
        pytest.approx(0.95)
    ]


def test_outputs_are_told_apart_by_shape_in_any_order() -> None:
    given = outputs({(19, 1): 0.9})
    straight = decoder("nanodet", picture(SIZE), FLOAT, LABELS)(given)
    assert decoder("nanodet", picture(SIZE), FLOAT[::-1], LABELS)(given[::-1]) == straight


def test_too_many_candidates_are_capped_to_the_strongest() -> None:
    decode = decoder("nanodet", picture(320), (spec("scores", 1, 2100, 3), spec("reg", 1, 2100, 32)), LABELS)
    scores = np.random.default_rng(0).uniform(0.5, 0.9, (1, 2100, 3)).astype(np.float32)
    scores[0, 77, 1] = 0.99
    reg = np.random.default_rng(1).random((1, 2100, 32)).astype(np.float32)
    found = decode([scores, reg])
    assert found[0].score == pytest.approx(0.99)
    assert_sound(found)


def test_a_frame_without_anything_is_empty() -> None:
    assert decoder("nanodet", picture(SIZE), FLOAT, LABELS)(outputs({})) == []


def test_distributions_that_are_not_finite_or_empty_are_dropped() -> None:
    scores, reg = outputs({(3, 0): 0.9, (19, 0): 0.8, (40, 0): 0.7, (60, 0): 0.6})
    reg[0, 3] = np.nan
    reg[0, 40, 0] = np.inf
    reg[0, 60] = 0.0
    found = decoder("nanodet", picture(SIZE), FLOAT, LABELS)([scores, reg])
    assert [round(d.score, 1) for d in found] == [0.8]


@given(st.integers(0, 2**32 - 1), st.integers(-128, -1))
@settings(deadline=None, max_examples=50)
def test_stored_and_real_outputs_give_the_same(seed: int, most: int) -> None:
    random = np.random.default_rng(seed)
    scores = random.integers(-128, max(most, -20), (1, CELLS, 3), np.int8, endpoint=True)
    reg = random.integers(-128, 127, (1, CELLS, 4 * BINS), np.int8)
    stored = decoder("nanodet", picture(SIZE), STORED, LABELS)([scores, reg])
    real = decoder("nanodet", picture(SIZE), FLOAT, LABELS)([STORED[0].real(scores), STORED[1].real(reg)])
    assert_same(stored, real)
    assert_sound(stored)


@pytest.mark.parametrize(
    ("specs", "labels", "words"),
    [
        ((spec("scores", 1, 80, 3), FLOAT[1]), LABELS, ("scores [1,84,3]", "[1,80,3]")),
        (FLOAT, LABELS[:2], ("scores [1,84,2]", "(2 labels)")),
        ((FLOAT[0], spec("reg", 1, CELLS, 30)), LABELS, ("4*bins", "[1,84,30]")),
        ((FLOAT[0],), LABELS, ("reg",)),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    specs: tuple[TensorSpec, ...], labels: tuple[str, ...], words: tuple[str, ...]
) -> None:
    with pytest.raises(ModelError) as error:
        decoder("nanodet", picture(SIZE), specs, labels)
    assert all(word in str(error.value) for word in words)


def test_logits_get_their_sigmoid() -> None:
    cells = 8 * 8 + 4 * 4 + 2 * 2
    tensors = [spec("scores", 1, cells, 2), spec("reg", 1, cells, 32)]
    decode = decoder("nanodet", picture(64), tensors, ("cat", "dog"), score=0.5, logits=True)
    scores = np.full((1, cells, 2), -4.0, np.float32)
    scores[0, 20, 1] = 2.0
    (found,) = decode([scores, np.full((1, cells, 32), 1 / 8, np.float32)])
    assert found.label == "dog"
    assert found.score == pytest.approx(0.8808, abs=1e-3)
