"""MediaPipe's transposed convolution, built from operations of the schema, computes the same."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

pytest.importorskip("torch", reason="rewrites need the extra [optimise]")

from agent.compute.infer.litert import load_runtime
from agent.compute.tflite.read import read_modelfile
from agent.errors import ModelError

if load_runtime()[0] != "litert":
    pytest.skip("rewrites need LiteRT's schema", allow_module_level=True)

from ai_edge_litert.interpreter import Interpreter

from agent.optimise.quantisation.lowering import TRANSPOSED, lower_custom
from tests.support.graph_sketch import TYPES, Sketch

RANDOM = np.random.default_rng(3)


def transposed(
    weights: NDArray[np.floating], *, strides: tuple[int, int] = (2, 2), half: bool = False, options: bytes = b""
) -> bytes:
    """A file with one transposed convolution of a picture [1, 3, 4, in], weights [out, height, width, in]."""
    made = Sketch()
    image = made.tensor((1, 3, 4, weights.shape[3]))
    bias = np.linspace(-1, 1, len(weights))
    if half:
        operands = []
        for value in (weights, bias):
            stored = made.tensor(value.shape, TYPES.FLOAT16, value.astype(np.float16))
            operands.append(made.apply("DEQUANTIZE", (stored,), made.tensor(value.shape), "DequantizeOptions"))
    else:
        operands = [made.constant(weights), made.constant(bias)]
    output = made.tensor((1, 3 * strides[1], 4 * strides[0], len(weights)))
    made.apply("CUSTOM", (image, *operands), output)
    made.model.operatorCodes[-1].customCode = TRANSPOSED.encode()
    stored_options = options or struct.pack("<iii", 1, *strides)
    made.graph.operators[-1].customOptions = np.frombuffer(stored_options, np.uint8)
    return made.file((image,), (output,))


def answer(content: bytes, picture: NDArray[np.float32]) -> NDArray[np.float32]:
    interpreter = Interpreter(model_content=content, num_threads=1)
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], picture)
    interpreter.invoke()
    found: NDArray[np.float32] = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    return found


def blocks(picture: NDArray[np.float32], weights: NDArray[np.floating]) -> NDArray[np.float64]:
    """Each pixel's block of the result, by the definition."""
    _, rows, columns, _ = picture.shape
    count, high, wide, _ = weights.shape
    found = np.zeros((1, rows * high, columns * wide, count))
    for y in range(rows):
        for x in range(columns):
            block = np.einsum("ohwi,i->hwo", weights, picture[0, y, x])
            found[0, y * high : (y + 1) * high, x * wide : (x + 1) * wide] = block
    return found + np.linspace(-1, 1, count)


@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 3))
@settings(max_examples=12, deadline=None)
def test_a_transposed_convolution_keeps_its_answers(outputs: int, inputs: int, block: int) -> None:
    weights = RANDOM.normal(size=(outputs, block, block, inputs)).astype(np.float32)
    picture = RANDOM.normal(size=(1, 3, 4, inputs)).astype(np.float32)
    found = answer(lower_custom(transposed(weights, strides=(block, block))), picture)
    np.testing.assert_allclose(found, blocks(picture, weights), atol=1e-5)


def test_it_is_what_the_runtime_computes_for_the_custom_operation() -> None:
    content = transposed(RANDOM.normal(size=(2, 2, 2, 3)))
    picture = RANDOM.normal(size=(1, 3, 4, 3)).astype(np.float32)
    np.testing.assert_allclose(answer(lower_custom(content), picture), answer(content, picture), atol=1e-5)


def test_no_custom_operation_is_left() -> None:
    content = lower_custom(transposed(RANDOM.normal(size=(2, 2, 2, 3))))
    names = [operation.name for _, operation in read_modelfile(content).steps()]
    assert names == ["CONV_2D", "DEPTH_TO_SPACE"]


def test_weights_in_half_floats_are_taken() -> None:
    weights = RANDOM.normal(size=(1, 2, 2, 3)).astype(np.float16)
    picture = RANDOM.normal(size=(1, 3, 4, 3)).astype(np.float32)
    found = answer(lower_custom(transposed(weights, half=True)), picture)
    np.testing.assert_allclose(found, blocks(picture, weights.astype(np.float32)), atol=5e-3)


def test_a_file_without_such_an_operation_stays() -> None:
    made = Sketch()
    image = made.tensor((1, 3, 4, 2))
    content = made.file((image,), (made.same("RELU", (image,)),))
    assert lower_custom(content) == content


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (transposed(np.ones((1, 3, 3, 2))), "3×3"),
        (transposed(np.ones((1, 2, 2, 2)), strides=(2, 1)), "strides of 1 and 2"),
        (transposed(np.ones((1, 2, 2, 2)), options=b"\1\0"), "cannot be read"),
    ],
)
def test_what_cannot_be_converted_is_told(content: bytes, told: str) -> None:
    with pytest.raises(ModelError, match=told):
        lower_custom(content)


def test_computed_weights_are_told() -> None:
    made = Sketch()
    image, weights = made.tensor((1, 3, 4, 2)), made.tensor((1, 2, 2, 2))
    output = made.apply("CUSTOM", (image, weights, made.constant([0.0])), made.tensor((1, 6, 8, 1)))
    made.model.operatorCodes[-1].customCode = TRANSPOSED.encode()
    made.graph.operators[-1].customOptions = np.frombuffer(struct.pack("<iii", 1, 2, 2), np.uint8)
    with pytest.raises(ModelError, match="not float constants"):
        lower_custom(made.file((image, weights), (output,)))
