"""INT4 weights run as INT8: on each runtime the answers are those of the same weights stored as INT8."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from agent.compute.infer.litert import load_runtime
from agent.compute.tflite.expand import expand_int4, expandable, unpack_int4
from agent.compute.tflite.read import ByteSource, Runtime, incompatibilities, read_modelfile
from agent.errors import ModelError
from agent.models.files import load_file
from tests.support.int4_models import SHAPES, int4_model, packed
from tests.support.tflite_builder import Op, T, add_model, write

pytestmark = pytest.mark.numerics
RUNTIMES: tuple[Runtime, ...] = ("litert", "tflite-runtime")


def answer(content: bytes, x: NDArray[np.int8]) -> NDArray[np.int8]:
    _, module = load_runtime()
    interpreter: Any = module.Interpreter(model_content=content, num_threads=1)
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], x)
    interpreter.invoke()
    found: NDArray[np.int8] = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    return found


@given(values=st.lists(st.integers(-8, 7), max_size=33))
def test_packed_values_come_back(values: list[int]) -> None:
    stored = np.array(values, np.int8)
    assert unpack_int4(packed(stored), stored.size).tolist() == values


@pytest.mark.parametrize("operation", ["CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"])
@given(seed=st.integers(0, 2**32 - 1))
def test_the_answers_are_those_of_int8_weights(operation: str, seed: int) -> None:
    random = np.random.default_rng(seed)
    values = random.integers(-8, 8, SHAPES[operation], dtype=np.int8)
    scales = random.uniform(0.01, 0.3, 6).astype(np.float32)[: 4 if operation.startswith("DEPTH") else 6]
    low, full = (int4_model(operation, values, scales, dtype) for dtype in ("int4", "int8"))
    x = random.integers(-128, 128, (1, 36) if operation == "FULLY_CONNECTED" else (1, 5, 5, 4), dtype=np.int8)
    expanded = expand_int4(low, "tflite-runtime")
    assert not read_modelfile(expanded).int4
    assert np.array_equal(answer(expanded, x), answer(full, x))
    if load_runtime()[0] == "litert":
        assert np.abs(answer(expanded, x).astype(int) - answer(low, x)).max() <= 1


@pytest.mark.parametrize("operation", ["CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"])
def test_only_what_a_runtime_is_slow_at_is_expanded(operation: str) -> None:
    values = np.zeros(SHAPES[operation], np.int8)
    scales = np.ones(4 if operation.startswith("DEPTH") else 6, np.float32)
    content = int4_model(operation, values, scales, "int4")
    for runtime in RUNTIMES:
        stays = operation == "FULLY_CONNECTED" and runtime == "litert"
        assert expandable(read_modelfile(content), runtime) == ({} if stays else {1: values.size})
        expanded = expand_int4(content, runtime)
        assert (expanded == content) is stays
        assert incompatibilities(read_modelfile(expanded), runtime) == []


def test_shared_weights_are_expanded_once() -> None:
    values = np.arange(-8, 8, dtype=np.int8).reshape(1, 4, 4)
    data = packed(values)
    tensors = [T("x", (1, 4, 4), "int8", scale=(1.0,)), T("w", values.shape, "int4", data, (1.0,))]
    tensors += [
        T("again", values.shape, "int4", None, (1.0,), raw_buffer=1),
        T("y", (1, 4, 4), "int8", scale=(1.0,)),
    ]
    content = write(tensors, [Op("ADD", (0, 1), (3,), 2), Op("ADD", (3, 2), (3,), 2)], (0,), (3,))
    expanded = read_modelfile(expand_int4(content, "litert"))
    assert [tensor.dtype for tensor in expanded.subgraphs[0].tensors] == ["int8"] * 4
    assert [tensor.size for tensor in expanded.subgraphs[0].tensors] == [0, 16, 16, 0]


def test_blockwise_weights_and_those_of_a_wrong_size_stay() -> None:
    blocks = T("w", (2, 64), "int4", bytes(64), block=32)
    short = T("w", (2, 64), "int4", bytes(10), (1.0,))
    for weights in (blocks, short):
        tensors = [T("x", (1, 64)), weights, T("y", (1, 2))]
        content = write(tensors, [Op("CONV_2D", (0, 1, -1), (2,), 1)], (0,), (2,))
        assert expand_int4(content, "litert") == content


def test_files_without_int4_stay_and_damaged_ones_are_refused() -> None:
    assert expand_int4(add_model(), "litert") == add_model()
    with pytest.raises(ModelError):
        expand_int4(add_model()[:40], "litert")


@given(seed=st.integers(0, 2**32 - 1))
def test_a_damaged_file_gives_an_error_or_a_file_that_can_be_read(seed: int) -> None:
    random = np.random.default_rng(seed)
    damaged = bytearray(int4_model("CONV_2D", np.zeros((6, 3, 3, 4), np.int8), np.ones(6, np.float32), "int4"))
    for at in random.integers(8, len(damaged), 3):
        damaged[at] = random.integers(256)
    with suppress(ModelError):
        read_modelfile(expand_int4(bytes(damaged), "litert"))


def test_weights_at_the_end_of_a_file_are_left_out() -> None:
    content, _ = load_file("nanodet")
    expanded = expand_int4(content, "litert")
    int4 = sum(expandable(read_modelfile(content), "litert").values()) / 2
    assert int4 > 1e6
    assert len(expanded) == pytest.approx(len(content) + int4, rel=0.001)


def test_convolutions_have_a_version_that_gpu_backends_take() -> None:
    expanded = expand_int4(load_file("nanodet")[0], "litert")
    codes = ByteSource(expanded, "the file").root().tables(1)
    versions = [code.i32(2, 1) for code in codes if code.i32(3, 0) in (3, 4)]
    assert versions
    assert max(versions) <= 6
