"""Rewritten graphs answer as before, with fewer or other operations."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from agent.compute.infer.litert import load_runtime
from agent.compute.tflite.read import read_modelfile
from agent.errors import ModelError
from agent.models.files import load_file
from tests.support.int4_models import packed
from tests.support.tflite_builder import custom_model

if load_runtime()[0] != "litert":
    pytest.skip("rewrites need LiteRT's schema", allow_module_level=True)

from agent.optimise.graph.objects import dump
from agent.optimise.graph.rewrite import rewrite
from tests.support.graph_sketch import TO_NCHW, TO_NHWC, TYPES, VALID, Sketch

RANDOM = np.random.default_rng(7)
WEIGHTS = RANDOM.normal(size=(4, 3, 3, 2)).astype(np.float32)
SPATIAL = [(0, 0), (1, 1), (1, 1), (0, 0)]


def batch_norm() -> bytes:
    made = Sketch()
    image = made.tensor((1, 6, 6, 2))
    found = made.convolve(image, WEIGHTS)
    found = made.same("SUB", (found, made.constant([1, -2, 0.5, 3])), "SubOptions")
    found = made.same("MUL", (found, made.constant([2, -1, 0.5, 3])), "MulOptions")
    found = made.same("DIV", (found, made.constant(0.25)), "DivOptions")
    offset = made.constant([[[[1, -1, 0.5, 0]]]])
    found = made.same("ADD", (found, offset), "AddOptions")
    return made.file((image,), (made.same("RELU", (found,)),))


def dense_without_bias() -> bytes:
    made = Sketch()
    image, weights = made.tensor((1, 2)), made.constant(WEIGHTS[:, 0, 0])
    found = made.apply("FULLY_CONNECTED", (image, weights), made.tensor((1, 4)), "FullyConnectedOptions")
    found = made.same("MUL", (found, made.constant([2, -1, 0.5, 3])), "MulOptions")
    return made.file((image,), (made.same("ADD", (found, made.constant([1, 2, 3, 4])), "AddOptions"),))


def constant_first() -> bytes:
    made = Sketch()
    image, factor = made.tensor((1, 6, 6, 2)), made.constant([2, -1, 0.5, 3])
    found = made.convolve(image, WEIGHTS)
    output = made.tensor(made.shape(found))
    return made.file((image,), (made.apply("MUL", (factor, found), output, "MulOptions"),))


def transposed_twice() -> bytes:
    made = Sketch()
    image = made.tensor((1, 6, 4, 2))
    found = made.transpose(made.transpose(image, TO_NCHW), TO_NHWC)
    return made.file((image,), (made.convolve(found, WEIGHTS),))


def channels_first() -> bytes:
    """A residual block as converters of channels-first graphs leave it."""
    made = Sketch()
    image = made.tensor((1, 6, 4, 4))
    entry = made.transpose(image, TO_NCHW)
    found = made.transpose(
        made.convolve(made.transpose(entry, TO_NHWC), RANDOM.normal(size=(4, 3, 3, 4))), TO_NCHW
    )
    found = made.same("MUL", (found, made.constant([[[2]], [[-1]], [[0.5]], [[3]]])), "MulOptions")
    found = made.same("LEAKY_RELU", (found,), "LeakyReluOptions", alpha=0.1)
    found = made.pad(made.same("ADD", (found, entry), "AddOptions"), [(0, 0), (0, 0), (1, 1), (1, 1)])
    joined = made.tensor((1, 8, 8, 6))
    found = made.apply("CONCATENATION", (found, found), joined, "ConcatenationOptions", axis=1)
    return made.file((image,), (made.convolve(made.transpose(found, TO_NHWC), RANDOM.normal(size=(2, 1, 1, 8))),))


def same_shape() -> bytes:
    made = Sketch()
    image = made.tensor((1, 6, 6, 2))
    shape = made.constant([1, 6, 6, 2], np.int32)
    found = made.same("RESHAPE", (image, shape), "ReshapeOptions", newShape=[1, 6, 6, 2])
    found = made.same("ADD", (found, made.constant(0)), "AddOptions")
    found = made.same("MUL", (found, made.constant([1, 1])), "MulOptions")
    found = made.convolve(made.pad(found, [(0, 0)] * 4), WEIGHTS)
    return made.file((image,), (made.same("DIV", (found, made.constant(1)), "DivOptions"),))


def requantised() -> bytes:
    made = Sketch()
    stored = {"kind": TYPES.INT8, "scale": 0.1, "zero_point": 3}
    image = made.tensor((1, 4), **stored)
    one = made.tensor((4,), TYPES.INT8, np.array([1, 2, 3, 4], np.int8), 0.1, 3)
    found = made.apply("DEQUANTIZE", (image,), made.tensor((1, 4)), version=2)
    found = made.apply("QUANTIZE", (found,), made.tensor((1, 4), **stored))
    return made.file(
        (image,), (made.apply("ADD", (found, one), made.tensor((1, 4), **stored), "AddOptions", version=2),)
    )


def padded_pooling() -> bytes:
    made = Sketch()
    image = made.tensor((1, 7, 7, 2))
    return made.file((image,), (made.pool(made.pad(image, SPATIAL, -np.inf)),))


def pooled_from_one() -> bytes:
    """As PyTorch pads an even size: not what SAME does."""
    made = Sketch()
    image = made.tensor((1, 8, 6, 2))
    return made.file((image,), (made.pool(made.pad(image, SPATIAL, -np.inf)),))


def pooled_from_one_after_relu() -> bytes:
    made = Sketch()
    image = made.tensor((1, 8, 6, 2))
    return made.file((image,), (made.pool(made.pad(made.same("RELU", (image,)), SPATIAL, -np.inf)),))


def pooled_from_one_in_int8() -> bytes:
    made = Sketch()
    stored = {"kind": TYPES.INT8, "scale": 0.05, "zero_point": 3}
    image, lowest = (
        made.tensor((1, 8, 6, 2), **stored),
        made.tensor((1,), data=np.array([-128], np.int8), **stored),
    )
    inputs = (image, made.constant(SPATIAL, np.int32), lowest)
    padded = made.apply("PADV2", inputs, made.tensor((1, 10, 8, 2), **stored), "PadV2Options", version=2)
    pooled = made.pool(padded)
    made.graph.tensors[pooled].type = TYPES.INT8
    made.graph.tensors[pooled].quantization = made.graph.tensors[padded].quantization
    return made.file((image,), (pooled,))


def padded_convolution() -> bytes:
    made = Sketch()
    image = made.tensor((1, 6, 7, 2))
    return made.file((image,), (made.convolve(made.pad(image, SPATIAL), WEIGHTS, padding=VALID),))


def float_ends() -> bytes:
    made = Sketch()
    stored = {"kind": TYPES.INT8, "scale": 0.05, "zero_point": -3}
    image = made.tensor((1, 4))
    one = made.tensor((4,), TYPES.INT8, np.array([1, 2, 3, 4], np.int8), 0.05, -3)
    found = made.apply("QUANTIZE", (image,), made.tensor((1, 4), **stored))
    found = made.apply("ADD", (found, one), made.tensor((1, 4), **stored), "AddOptions", version=2)
    return made.file((image,), (made.apply("DEQUANTIZE", (found,), made.tensor((1, 4)), version=2),))


def points(channels: int = 8) -> bytes:
    made = Sketch()
    image = made.tensor((1, 5, 5, channels), TYPES.INT8, scale=0.05, zero_point=3)
    values = RANDOM.integers(-8, 8, (6, 1, 1, channels), dtype=np.int8)
    scales = RANDOM.uniform(0.01, 0.3, 6).astype(np.float32)
    weights = made.tensor(values.shape, TYPES.INT4, packed(values), scales)
    bias = made.tensor((6,), TYPES.INT32, np.arange(6, dtype=np.int32), scales * np.float32(0.05))
    options = {"strideW": 1, "strideH": 1, "dilationWFactor": 1, "dilationHFactor": 1}
    output = made.tensor((1, 5, 5, 6), TYPES.INT8, scale=0.3)
    made.apply("CONV_2D", (image, weights, bias), output, "Conv2DOptions", version=3, **options)
    return made.file((image,), (output,))


def swapped_halves(made: Sketch, source: int) -> int:
    """The two halves of the channels of a tensor [batch, channels, height, width] in the other order."""
    batch, channels, *sizes = made.shape(source)
    halves = [made.tensor((batch, channels // 2, *sizes)) for _ in range(2)]
    made.apply("SPLIT", (made.constant(1, np.int32), source), halves[0], "SplitOptions", numSplits=2)
    made.graph.operators[-1].outputs = halves
    output = made.tensor(made.shape(source))
    return made.apply("CONCATENATION", halves[::-1], output, "ConcatenationOptions", axis=-3)


def flattened(made: Sketch, source: int) -> int:
    """The cells of a picture in one row, as heads of channels-first detectors join them."""
    batch, height, width, channels = made.shape(source)
    inner = made.transpose(source, TO_NCHW)
    shape = made.constant([batch, channels, height * width], np.int32)
    rows = made.apply("RESHAPE", (inner, shape), made.tensor((batch, channels, height * width)), "ReshapeOptions")
    return made.transpose(rows, (0, 2, 1))


def mean_without_dimensions() -> bytes:
    made = Sketch()
    image = made.tensor((1, 6, 4, 2))
    inner = made.transpose(made.convolve(image, WEIGHTS), TO_NCHW)
    axes = made.constant([2, 3], np.int32)
    return made.file((image,), (made.apply("MEAN", (inner, axes), made.tensor((1, 4)), "ReducerOptions"),))


def flattened_head() -> bytes:
    made = Sketch()
    image = made.tensor((1, 6, 4, 2))
    return made.file((image,), (flattened(made, made.convolve(image, WEIGHTS)),))


def kinds(content: bytes) -> list[str]:
    return [operation.name for _, operation in read_modelfile(content).steps()]


def answers(content: bytes, image: NDArray[np.float32]) -> NDArray[np.float64]:
    """Run a model on real values, and return real values."""
    _, module = load_runtime()
    interpreter: Any = module.Interpreter(model_content=content, num_threads=1)
    interpreter.allocate_tensors()
    source, result = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    scale, zero_point = source["quantization"]
    given = np.clip(np.round(image / scale + zero_point), -128, 127) if scale else image
    interpreter.set_tensor(source["index"], given.astype(source["dtype"]))
    interpreter.invoke()
    found: NDArray[np.float64] = interpreter.get_tensor(result["index"]).astype(np.float64)
    scale, zero_point = result["quantization"]
    return (found - zero_point) * scale if scale else found


def assert_equal_answers(before: bytes, after: bytes, seeds: int = 5) -> None:
    (source,), (result,) = read_modelfile(after).ends()
    for seed in range(seeds):
        image = np.random.default_rng(seed).normal(size=source.shape).astype(np.float32)
        assert np.allclose(
            answers(after, image), answers(before, image), rtol=1e-4, atol=1e-4 + 1.01 * result.scale
        )


@pytest.mark.parametrize(
    ("model", "name", "after"),
    [
        (batch_norm, "batch-norm", ["CONV_2D"]),
        (dense_without_bias, "batch-norm", ["FULLY_CONNECTED"]),
        (constant_first, "batch-norm", ["CONV_2D"]),
        (transposed_twice, "identities", ["CONV_2D"]),
        (channels_first, "transposes", ["CONV_2D", "LEAKY_RELU", "ADD", "PAD", "CONCATENATION", "CONV_2D"]),
        (mean_without_dimensions, "transposes", ["CONV_2D", "MEAN"]),
        (flattened_head, "transposes", ["CONV_2D", "RESHAPE"]),
        (same_shape, "identities", ["CONV_2D"]),
        (requantised, "identities", ["ADD"]),
        (padded_pooling, "padding", ["MAX_POOL_2D"]),
        (pooled_from_one, "padding", [*["SLICE", "CONCATENATION"] * 2, "MAX_POOL_2D"]),
        (pooled_from_one_in_int8, "padding", [*["SLICE", "CONCATENATION"] * 2, "MAX_POOL_2D"]),
        (pooled_from_one_after_relu, "padding", ["RELU", "PAD", "MAX_POOL_2D"]),
        (padded_convolution, "padding", ["CONV_2D"]),
        (float_ends, "integer-ends", ["ADD"]),
        (points, "points", ["FULLY_CONNECTED"]),
    ],
)
def test_a_rewritten_graph_answers_as_before(model: Callable[[], bytes], name: str, after: list[str]) -> None:
    before = model()
    rewritten, counts = rewrite(before)
    assert counts[name] > 0
    assert kinds(rewritten) == after
    assert_equal_answers(before, rewritten)


def test_a_relu_is_fused_into_the_folded_convolution() -> None:
    rewritten, counts = rewrite(batch_norm())
    assert counts["activations"] == 1
    assert kinds(rewritten) == ["CONV_2D"]


def test_a_rewrite_that_is_left_out_changes_nothing() -> None:
    content = batch_norm()
    assert rewrite(content, ["padding", "points"]) == (content, {"padding": 0, "points": 0})


def test_weights_that_signatures_share_stay_shared_when_they_are_folded() -> None:
    made = Sketch()
    weights = made.constant(RANDOM.normal(size=(16, 3, 3, 2)))
    first, graphs = made.graph, []
    for size in (6, 9):
        made.graph = copy.deepcopy(first)
        image = made.tensor((1, size, size, 2))
        bias = made.constant(np.linspace(-1, 1, 16))
        strides = {"strideW": 1, "strideH": 1, "dilationWFactor": 1, "dilationHFactor": 1}
        output = made.tensor((1, size, size, 16))
        found = made.apply("CONV_2D", (image, weights, bias), output, "Conv2DOptions", **strides)
        made.graph.inputs, made.graph.outputs = (
            [image],
            [made.same("MUL", (found, made.constant(2)), "MulOptions")],
        )
        graphs.append(made.graph)
    made.model.subgraphs = graphs
    content = dump(made.model)
    rewritten, counts = rewrite(content)
    assert counts["batch-norm"] == 2
    assert len(rewritten) < len(content)
    assert_equal_answers(content, rewritten)


def test_points_with_an_odd_number_of_channels_stay() -> None:
    content = points(channels=7)
    assert rewrite(content) == (content, dict.fromkeys(rewrite(content)[1], 0))


def test_a_batch_norm_behind_a_pooling_stays() -> None:
    made = Sketch()
    image = made.tensor((1, 7, 7, 2))
    pooled = made.pool(made.convolve(image, WEIGHTS))
    content = made.file((image,), (made.same("MUL", (pooled, made.constant([2, -1, 0.5, 3])), "MulOptions"),))
    assert rewrite(content)[0] == content


def test_transpositions_that_meet_no_inverse_stay() -> None:
    made = Sketch()
    image = made.tensor((1, 6, 4, 2))
    content = made.file((image,), (made.same("RELU", (made.transpose(image, TO_NCHW),)),))
    assert rewrite(content)[0] == content


def test_float16_weights_stay_behind_their_dequantisation() -> None:
    made = Sketch()
    image = made.tensor((1, 6, 6, 2))
    output = made.convolve(image, WEIGHTS)
    (convolution,) = made.graph.operators
    half = made.tensor(WEIGHTS.shape, TYPES.FLOAT16, WEIGHTS.astype(np.float16))
    convolution.inputs[1] = made.apply("DEQUANTIZE", (half,), made.tensor(WEIGHTS.shape), version=3)
    made.graph.operators.reverse()
    content = made.file((image,), (made.same("MUL", (output, made.constant([2, -1, 0.5, 3])), "MulOptions"),))
    assert rewrite(content)[0] == content


def test_names_of_ends_stay_when_their_type_changes() -> None:
    before, after = (read_modelfile(content).ends() for content in (float_ends(), rewrite(float_ends())[0]))
    assert [end.name for ends in after for end in ends] == [end.name for ends in before for end in ends]
    assert [end.dtype for ends in after for end in ends] == ["int8", "int8"]


@pytest.mark.parametrize("name", ["nanodet", "small-speech"])
def test_bundled_models_have_nothing_left_to_rewrite(name: str) -> None:
    content, _ = load_file(name)
    rewritten, counts = rewrite(content)
    assert not any(counts.values())
    assert rewritten == content


def test_a_model_with_custom_operations_is_refused() -> None:
    with pytest.raises(ModelError, match="Mine"):
        rewrite(custom_model("Mine"))


def test_a_model_with_open_shapes_is_refused() -> None:
    made = Sketch()
    image = made.tensor((1, 6, 6, 2))
    made.graph.tensors[image].shapeSignature = np.array([-1, 6, 6, 2], np.int32)
    with pytest.raises(ModelError, match="shape"):
        rewrite(made.file((image,), (made.convolve(image, WEIGHTS),)))


@settings(max_examples=120, deadline=None)
@given(st.data())
def test_a_damaged_model_is_an_error_of_the_model(data: st.DataObject) -> None:
    content = bytearray(data.draw(st.sampled_from([batch_norm, channels_first, pooled_from_one, float_ends]))())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(8, len(content) - 1))] = data.draw(st.integers(0, 255))
    with suppress(ModelError):
        rewrite(bytes(content))


def step(made: Sketch, found: int, kind: str, random: np.random.Generator) -> int:
    """Append one operation, or some that belong together, to a graph in [batch, height, width, channels]."""
    values = random.normal(size=made.shape(found)[3])
    match kind:
        case "CONV_2D":
            weights = random.normal(size=(4, 3, 3, made.shape(found)[3])).astype(np.float32) / 4
            padding, source = (VALID, made.pad(found, SPATIAL)) if random.random() < 0.5 else (0, found)
            return made.convolve(source, weights, padding=padding)
        case "LEAKY_RELU":
            return made.same(kind, (found,), "LeakyReluOptions", alpha=0.1)
        case "MAX_POOL_2D":
            return made.pool(made.pad(found, SPATIAL, -np.inf), stride=1)
        case "TRANSPOSE":
            inner = made.transpose(found, TO_NCHW)
            scaled = made.same("MUL", (inner, made.constant(values[:, None, None])), "MulOptions")
            return made.transpose(made.same("ADD", (scaled, inner), "AddOptions"), TO_NHWC)
        case "SPLIT":
            return made.transpose(swapped_halves(made, made.transpose(found, TO_NCHW)), TO_NHWC)
        case "MEAN":
            inner = made.transpose(found, TO_NCHW)
            output = made.tensor((1, made.shape(found)[3], 1, 1))
            axes = made.constant([2, -1], np.int32)
            made.apply(kind, (inner, axes), output, "ReducerOptions", keepDims=True)
            return made.same("ADD", (found, made.transpose(output, TO_NHWC)), "AddOptions")
        case "RELU" | "RELU6":
            return made.same(kind, (found,))
    return made.same(kind, (found, made.constant(values)), f"{kind.title()}Options")


STEPS = [
    "CONV_2D",
    "MUL",
    "ADD",
    "SUB",
    "RELU",
    "RELU6",
    "LEAKY_RELU",
    "MAX_POOL_2D",
    "TRANSPOSE",
    "SPLIT",
    "MEAN",
]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(STEPS), min_size=1, max_size=8), st.integers(0, 2**32 - 1), st.integers(-1, 7))
def test_any_graph_answers_as_before(steps: list[str], seed: int, fork: int) -> None:
    random, made = np.random.default_rng(seed), Sketch()
    image = found = made.tensor((1, 5, 6, 2))
    after = []
    for kind in steps:
        found = step(made, found, kind, random)
        after.append(found)
    if 0 <= fork < len(after) and made.shape(after[fork]) == made.shape(found) and after[fork] != found:
        found = made.same("ADD", (found, after[fork]), "AddOptions")
    found = flattened(made, found) if seed % 2 else found
    content = made.file((image,), (found,))
    rewritten, _ = rewrite(content)
    assert_equal_answers(content, rewritten, seeds=2)
    assert "TRANSPOSE" not in kinds(rewritten)
    assert rewrite(rewritten)[0] == rewritten


PADS = st.tuples(st.integers(0, 2), st.integers(0, 2))


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.tuples(st.integers(3, 9), st.integers(3, 9)),
    pads=st.tuples(PADS, PADS),
    window=st.integers(2, 4),
    stride=st.integers(1, 3),
    kind=st.sampled_from(["", "RELU", "LEAKY_RELU"]),
)
def test_a_padded_pooling_answers_as_before(
    sizes: tuple[int, int], pads: tuple[tuple[int, int], tuple[int, int]], window: int, stride: int, kind: str
) -> None:
    made = Sketch()
    image = found = made.tensor((1, *sizes, 2))
    if kind:
        found = made.same(kind, (found,), *(["LeakyReluOptions"] if kind == "LEAKY_RELU" else []))
    padded = made.pad(found, [(0, 0), *pads, (0, 0)], float(np.finfo(np.float32).min))
    content = made.file((image,), (made.pool(padded, window, stride),))
    rewritten, _ = rewrite(content)
    picture = np.random.default_rng(0).normal(size=(1, *sizes, 2)).astype(np.float32) - 1
    assert np.array_equal(answers(rewritten, picture), answers(content, picture))
    if max(map(max, pads)) * 2 <= window:
        assert "PADV2" not in kinds(rewritten)
