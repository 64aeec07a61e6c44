from __future__ import annotations

import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.compute.tflite.read import read_modelfile
from agent.models.library import open_whole_model
from tests.support.running import ROOT
from tests.support.tflite_builder import Op, T, write

sys.path.append(str(ROOT / "scripts" / "build_models"))
from board_work import Work, added, convolution, work_of

Shape = tuple[int, ...]


def work(operation: str, image: Shape, weights: Shape, out: Shape, dtype: str = "int8") -> Work:
    """Work of a graph of one operation with constant weights."""
    constant = np.zeros(weights, dtype)
    tensors = [T("image", image, dtype), T("weights", weights, dtype, constant), T("out", out, dtype)]
    file = read_modelfile(write(tensors, [Op(operation, (0, 1), (2,))], (0,), (2,)))
    (found,) = work_of(file.subgraphs[0]).values()
    return found


def test_each_convolution_is_of_the_class_that_libraries_compute_it_by() -> None:
    point = work("CONV_2D", (1, 8, 8, 4), (16, 1, 1, 4), (1, 8, 8, 16))
    assert (point.point, point.weights, point.values) == (8 * 8 * 16 * 4, 64, 8 * 8 * (4 + 16))
    small = work("CONV_2D", (1, 8, 8, 4), (16, 3, 3, 4), (1, 8, 8, 16))
    assert (small.small, small.small_weights, small.small_values) == (8 * 8 * 16 * 36, 576, 8 * 8 * (4 + 16))
    assert work("CONV_2D", (1, 8, 8, 4), (16, 3, 3, 4), (1, 4, 4, 16)).dense == 4 * 4 * 16 * 36
    assert work("CONV_2D", (1, 8, 8, 4), (16, 5, 5, 4), (1, 8, 8, 16)).large == 8 * 8 * 16 * 100
    assert work("DEPTHWISE_CONV_2D", (1, 8, 8, 4), (1, 3, 3, 4), (1, 8, 8, 4)).depth == 8 * 8 * 4 * 9
    assert work("TRANSPOSE_CONV", (1, 2), (1, 1), (1, 2)).operations == 1


def test_a_grouped_convolution_counts_as_one_for_each_group() -> None:
    grouped = work("CONV_2D", (1, 8, 8, 12), (12, 1, 1, 4), (1, 8, 8, 12))
    assert (grouped.point, grouped.operations) == (8 * 8 * 12 * 4, 4)


def test_one_row_of_a_fully_connected_layer_is_the_reading_of_its_weights() -> None:
    assert work("FULLY_CONNECTED", (1, 64), (10, 64), (1, 10)) == Work(weights=640, values=74, operations=1)
    assert work("FULLY_CONNECTED", (5, 64), (10, 64), (5, 10)).point == 3200


def test_other_operations_move_values_and_a_reshape_does_not() -> None:
    file = read_modelfile(
        write(
            [T("a", (1, 6)), T("b", (1, 6)), T("c", (1, 6)), T("d", (2, 3))],
            [Op("ADD", (0, 1), (2,)), Op("RESHAPE", (2,), (3,))],
            (0, 1),
            (3,),
        )
    )
    assert work_of(file.subgraphs[0]) == {"float32": Work(moved=18, operations=1)}


def test_an_activation_takes_the_place_of_its_input() -> None:
    file = read_modelfile(write([T("a", (1, 6)), T("b", (1, 6))], [Op("LOGISTIC", (0,), (1,))], (0,), (1,)))
    assert work_of(file.subgraphs[0]) == {"float32": Work(moved=6, operations=1)}


def test_values_that_no_cache_holds_come_from_memory() -> None:
    near = work("CONV_2D", (1, 100, 100, 4), (96, 1, 1, 4), (1, 100, 100, 96))
    far = work("CONV_2D", (1, 112, 112, 4), (96, 1, 1, 4), (1, 112, 112, 96))
    assert (near.far, far.far) == (0, 112 * 112 * 100)
    assert far.values == far.far


def test_integer_weights_of_float_activations_are_multiplied_as_integers() -> None:
    tensors = [T("x", (1, 64)), T("w", (10, 64), "int8", np.zeros((10, 64), np.int8)), T("y", (1, 10))]
    file = read_modelfile(write(tensors, [Op("FULLY_CONNECTED", (0, 1), (2,))], (0,), (2,)))
    assert set(work_of(file.subgraphs[0])) == {"int8"}


@given(st.integers(1, 9), st.integers(1, 3), st.integers(1, 64), st.integers(1, 10**9))
def test_the_multiply_adds_are_of_one_class(kernel: int, stride: int, channels: int, products: int) -> None:
    found = convolution((kernel, kernel), stride, 1, channels, products=products, weights=5, values=7)
    assert sorted((found.point, found.small, found.dense, found.large, found.depth)) == [0, 0, 0, 0, products]
    assert found.weights + found.small_weights == 5
    assert found.values + found.small_values == 7


def test_the_work_of_a_bundled_model_is_that_of_its_manifest() -> None:
    model = open_whole_model("nanodet")
    file = read_modelfile(model.content)
    for variant in model.manifest.variants:
        found = added([work_of(file.graph(variant.signature))])["int8"]
        total = found.point + found.small + found.dense + found.large + found.depth
        assert total == pytest.approx(variant.multiply_adds, rel=0.01)
