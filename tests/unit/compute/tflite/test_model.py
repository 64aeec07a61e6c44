from __future__ import annotations

import numpy as np
import pytest
from msgspec.structs import replace

from agent.compute.tflite.model import multiply_adds
from agent.compute.tflite.read import read_modelfile
from agent.errors import ModelError
from agent.models.library import open_whole_model
from tests.support import tflite_builder as builder
from tests.support.tflite_builder import Op, T, write

pytestmark = pytest.mark.numerics


def graph(operation: str, *shapes: tuple[int, ...], out: tuple[int, ...]) -> bytes:
    """A graph of one operation; the first of `shapes` is its input, and the others are constants."""
    tensors = [T(f"t{number}", shape) for number, shape in enumerate(shapes)]
    places = range(len(shapes))
    return write([*tensors, T("out", out)], [Op(operation, tuple(places), (len(shapes),))], (0,), (len(shapes),))


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        (graph("CONV_2D", (1, 8, 8, 3), (16, 3, 3, 3), (16,), out=(1, 8, 8, 16)), 8 * 8 * 16 * 3 * 3 * 3),
        (graph("DEPTHWISE_CONV_2D", (1, 8, 8, 6), (1, 5, 5, 6), out=(1, 4, 4, 6)), 4 * 4 * 6 * 5 * 5),
        (graph("FULLY_CONNECTED", (1, 4), (2, 4), out=(1, 2)), 8),
        (graph("TRANSPOSE_CONV", (4,), (6, 2, 2, 3), (1, 5, 5, 3), out=(1, 10, 10, 6)), 5 * 5 * 3 * 2 * 2 * 6),
        (graph("BATCH_MATMUL", (2, 4, 5), (2, 5, 3), out=(2, 4, 3)), 2 * 4 * 5 * 3),
        (graph("CONV_2D", (-1, 8, 8, 3), (16, 3, 3, 3), out=(-1, 8, 8, 16)), 8 * 8 * 16 * 3 * 3 * 3),
        (builder.add_model(), 0),
        (builder.constant_model({"a": np.zeros((1, 2), np.float32)}), 0),
    ],
)
def test_products_are_counted(content: bytes, wanted: int) -> None:
    assert multiply_adds(read_modelfile(content)) == wanted


def test_an_input_that_is_left_out_costs_nothing() -> None:
    file = read_modelfile(builder.fully_connected_model(np.ones((2, 4), np.float32)))
    assert multiply_adds(file) == 8
    bare = replace(file.subgraphs[0].operations[0], inputs=(0,), outputs=())
    assert multiply_adds(replace(file, subgraphs=(replace(file.subgraphs[0], operations=(bare,)),))) == 0


def test_they_are_those_that_the_bundled_model_was_made_with() -> None:
    model = open_whole_model("small-speech")
    file = read_modelfile(model.content)
    for variant in model.manifest.variants:
        assert multiply_adds(file, variant.signature) == pytest.approx(variant.multiply_adds, rel=0.01)
    with pytest.raises(ModelError, match="no signature 'exit9'"):
        multiply_adds(file, "exit9")
