from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.config import DecodeConfig
from agent.errors import ModelError
from tests.support.decoding import assert_same, assert_sound, decoder, picture, spec

pytestmark = pytest.mark.numerics

SIZE = 64
CELLS = 84
LABELS = ("person", "dog")
BOX = (0.25, 0.5, 0.75, 0.9)
CENTRED = (0.5, 0.7, 0.5, 0.4)


def v8(score: float = 0.9, pixels: float = 1.0) -> np.ndarray:
    table = np.zeros((1, 6, CELLS), np.float32)
    table[0, :4, 10] = np.array(CENTRED) * pixels
    table[0, 5, 10] = score
    return table


def v5(rows: int = 3 * CELLS, objectness: float = 0.9) -> np.ndarray:
    table = np.zeros((1, rows, 7), np.float32)
    table[0, 10] = (*CENTRED, objectness, 0.1, 0.9)
    return table


@pytest.mark.parametrize("labels", [(), LABELS])
@pytest.mark.parametrize("pixels", [1.0, 64.0])
@pytest.mark.parametrize("rows_first", [False, True])
def test_v8_in_both_orders_and_units(labels: tuple[str, ...], pixels: float, rows_first: bool) -> None:
    table = v8(pixels=pixels)
    if rows_first:
        table = np.ascontiguousarray(table.transpose(0, 2, 1))
    (found,) = decoder("yolo", picture(SIZE), [spec("out", *table.shape)], labels)([table])
    assert found.label == ("dog" if labels else "class1")
    assert found.box == pytest.approx(BOX)


@pytest.mark.parametrize("labels", [(), LABELS])
@pytest.mark.parametrize("turned", [False, True])
def test_v5_multiplies_objectness_and_class(labels: tuple[str, ...], turned: bool) -> None:
    table = v5()
    if turned:
        table = np.ascontiguousarray(table.transpose(0, 2, 1))
    (found,) = decoder("yolo", picture(SIZE), [spec("out", *table.shape)], labels)([table])
    assert found.score == pytest.approx(0.81)
    assert found.box == pytest.approx(BOX)


def test_objectness_of_one_box_per_cell_must_be_told() -> None:
    table = v5(rows=CELLS)
    (found,) = decoder("yolo", picture(SIZE), [spec("out", 1, CELLS, 7)], objectness=True)([table])
    assert found.score == pytest.approx(0.81)


def test_final_boxes_are_taken_as_they_are() -> None:
    table = np.zeros((1, 20, 6), np.float32)
    table[0, 3] = (16, 32, 48, 57.6, 0.6, 1)
    table[0, 4] = (16, 32, 48, 57.6, 0.9, 0)
    table[0, 5] = (16, 32, 16, 40, 0.8, 0)
    table[0, 6] = (np.nan, 32, 16, 40, 0.8, 0)
    found = decoder("yolo", picture(SIZE), [spec("out", 1, 20, 6)], LABELS, end_to_end=True)([table])
    assert [d.label for d in found] == ["person", "dog"]
    assert found[0].box == pytest.approx(BOX)
    guessed = decoder("yolo", picture(SIZE), [spec("out", 1, 20, 6)], ("a", "b", "c"))([table])
    assert [d.label for d in guessed] == ["a", "b"]


def test_the_unit_may_be_told() -> None:
    specs = [spec("out", 1, 6, CELLS)]
    (found,) = decoder("yolo", picture(SIZE), specs, coordinates="pixels")([v8(pixels=2.0)])
    assert found.box == pytest.approx([edge / 32 for edge in BOX])
    (found,) = decoder("yolo", picture(SIZE), specs, coordinates="fractions")([v8()])
    assert found.box == pytest.approx(BOX)


def test_wanted_labels_and_broken_numbers() -> None:
    specs = [spec("out", 1, 6, CELLS)]
    table = v8()
    table[0, 4, 20] = 0.95
    table[0, :4, 20] = np.inf
    table[0, 4, 21] = 0.95
    table[0, :4, 21] = np.nan
    table[0, 4:, 22] = np.nan
    assert [d.label for d in decoder("yolo", picture(SIZE), specs, LABELS)([table])] == ["dog"]
    config = DecodeConfig(labels=("person",))
    assert decoder("yolo", picture(SIZE), specs, LABELS, config=config)([v8()]) == []


@given(st.integers(0, 2**32 - 1), st.sampled_from(["v5", "v8", "rows"]))
@settings(deadline=None, max_examples=60)
def test_stored_and_real_outputs_give_the_same(seed: int, kind: str) -> None:
    shape = {"v5": (1, 3 * CELLS, 7), "v8": (1, 6, CELLS), "rows": (1, CELLS, 6)}[kind]
    stored = np.random.default_rng(seed).integers(0, 200, shape).astype(np.uint8)
    tensor = spec("out", *shape, dtype="uint8", scale=1 / 255)
    left = decoder("yolo", picture(SIZE), [tensor], LABELS, score=0.6)([stored])
    right = decoder("yolo", picture(SIZE), [spec("out", *shape)], LABELS, score=0.6)([tensor.real(stored)])
    assert_same(left, right)
    assert_sound(left)


def test_pixels_and_scores_in_one_coarse_tensor_are_refused() -> None:
    with pytest.raises(ModelError, match=r"too coarse for scores"):
        decoder("yolo", picture(SIZE), [spec("out", 1, 6, CELLS, dtype="int8", scale=2.5)])


@pytest.mark.parametrize("labels", [(), LABELS])
def test_shapes_that_nothing_confirms_are_refused(labels: tuple[str, ...]) -> None:
    with pytest.raises(ModelError, match="found out"):
        decoder("yolo", picture(SIZE), [spec("out", 1, 40, 50)], labels)


def yolox(row: int, box: tuple[float, float, float, float], size: int = SIZE) -> np.ndarray:
    cells = sum((size // stride) ** 2 for stride in (8, 16, 32))
    table = np.zeros((1, cells, 7), np.float32)
    table[0, row] = (*box, 0.9, 0.1, 0.9)
    return table


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(
    ("row", "stride", "cell"),
    [(2 * 8 + 3, 8, (3, 2)), (64 + 1 * 4 + 2, 16, (2, 1)), (64 + 16 + 1, 32, (1, 0))],
)
def test_yolox_tells_boxes_in_cells(row: int, stride: int, cell: tuple[int, int], turned: bool) -> None:
    table = yolox(row, (0.25, 0.5, np.log(1.5), np.log(0.75)))
    middle = [(cell[0] + 0.25) * stride, (cell[1] + 0.5) * stride]
    sides = [1.5 * stride, 0.75 * stride]
    expected = [(m - s / 2) / SIZE for m, s in zip(middle, sides, strict=True)]
    expected += [(m + s / 2) / SIZE for m, s in zip(middle, sides, strict=True)]
    if turned:
        table = np.ascontiguousarray(table.transpose(0, 2, 1))
    for labels in ((), LABELS):
        specs = [spec("out", *table.shape)]
        (found,) = decoder("yolo", picture(SIZE), specs, labels, coordinates="cells")([table])
        assert found.score == pytest.approx(0.81)
        assert found.box == pytest.approx(np.clip(expected, 0, 1), abs=1e-6)


def test_yolox_of_another_shape_is_refused_and_endless_boxes_are_dropped() -> None:
    with pytest.raises(ModelError, match="expected"):
        decoder("yolo", picture(SIZE), [spec("out", 1, 80, 7)], LABELS, coordinates="cells")
    run = decoder("yolo", picture(SIZE), [spec("out", 1, CELLS, 7)], LABELS, coordinates="cells")
    for wrong in (np.inf, np.nan, 1e30, -1e30):
        assert_sound(run([yolox(5, (0.0, 0.0, wrong, 0.0))]))
        assert_sound(run([yolox(5, (wrong, 0.0, 0.0, 0.0))]))
