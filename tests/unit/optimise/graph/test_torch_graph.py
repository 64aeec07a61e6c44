"""A float file in PyTorch computes what the runtime computes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs the extra [optimise]")
from ai_edge_litert.interpreter import Interpreter

from agent.errors import ModelError
from agent.optimise.graph.objects import load
from agent.optimise.graph.torch_graph import GraphOverrides, TorchGraph
from tests.support.float_models import SIDE, classifier, float_file
from tests.support.graph_sketch import SAME, TYPES, VALID, Sketch

torch.set_num_threads(1)
SHAPE = (1, 7, 9, 4)


def answers(content: bytes, x: np.ndarray) -> list[np.ndarray]:
    interpreter = Interpreter(model_content=content, num_threads=1)
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], x)
    interpreter.invoke()
    return [interpreter.get_tensor(one["index"]) for one in interpreter.get_output_details()]


def assert_equal(content: bytes, shape: tuple[int, ...]) -> None:
    """Compare one input alone, and in a batch of two."""
    graph = TorchGraph(load(content))
    x = np.random.default_rng(1).normal(size=(2, *shape[1:])).astype(np.float32)
    with torch.inference_mode():
        batch = graph(torch.from_numpy(x))
    for row in (0, 1):
        for found, wanted in zip(batch, answers(content, x[row : row + 1]), strict=True):
            np.testing.assert_allclose(found[row : row + 1].numpy(), wanted, atol=2e-5, rtol=1e-4)


def test_a_classifier_answers_as_in_the_runtime() -> None:
    assert_equal(float_file(classifier()), (1, SIDE, SIDE, 3))


def constant(values: Any, kind: Any = np.int32) -> np.ndarray:
    return np.array(values, kind)


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(2).normal(size=shape).astype(np.float32)


WINDOW = {"strideW": 2, "strideH": 2, "filterWidth": 3, "filterHeight": 2}
CASES: dict[str, tuple[Any, ...]] = {
    "MAX_POOL_2D": ([], (1, 4, 5, 4), "Pool2DOptions", {**WINDOW, "padding": SAME}),
    "AVERAGE_POOL_2D": ([], (1, 4, 5, 4), "Pool2DOptions", {**WINDOW, "padding": SAME}),
    "MEAN": ([constant([1, 2])], (1, 4), "ReducerOptions", {"keepDims": False}),
    "SUM": ([constant([-1])], (1, 7, 9, 1), "ReducerOptions", {"keepDims": True}),
    "REDUCE_MAX": ([constant([1])], (1, 9, 4), "ReducerOptions", {"keepDims": False}),
    "PAD": ([constant([[0, 0], [1, 2], [0, 3], [0, 0]])], (1, 10, 12, 4), "PadOptions", {}),
    "RESHAPE": ([constant([1, 63, 4])], (1, 63, 4), "ReshapeOptions", {"newShape": [1, 63, 4]}),
    "TRANSPOSE": ([constant([0, 3, 1, 2])], (1, 4, 7, 9), "TransposeOptions", {}),
    "SLICE": ([constant([0, 1, 0, 2]), constant([1, 3, -1, 2])], (1, 3, 9, 2), "SliceOptions", {}),
    "STRIDED_SLICE": (
        [constant([0, 1, 0, 0]), constant([1, 7, 9, 4]), constant([1, 2, 1, 1])],
        (1, 3, 9, 4),
        "StridedSliceOptions",
        {},
    ),
    "RESIZE_BILINEAR": (
        [constant([14, 18])],
        (1, 14, 18, 4),
        "ResizeBilinearOptions",
        {"halfPixelCenters": True},
    ),
    "DEPTH_TO_SPACE": ([], (1, 14, 18, 1), "DepthToSpaceOptions", {"blockSize": 2}),
    "RESIZE_NEAREST_NEIGHBOR": ([constant([14, 18])], (1, 14, 18, 4), "ResizeNearestNeighborOptions", {}),
    "LEAKY_RELU": ([], SHAPE, "LeakyReluOptions", {"alpha": 0.1}),
    "PRELU": ([random(1, 1, 4)], SHAPE, "", {}),
    "HARD_SWISH": ([], SHAPE, "", {}),
    "LOGISTIC": ([], SHAPE, "", {}),
    "TANH": ([], SHAPE, "", {}),
    "RELU6": ([], SHAPE, "", {}),
    "SOFTMAX": ([], SHAPE, "SoftmaxOptions", {"beta": 1.0}),
    "ADD": ([random(4)], SHAPE, "AddOptions", {}),
    "SUB": ([random(1, 1, 1, 4)], SHAPE, "SubOptions", {}),
    "MUL": ([random(1, 7, 9, 1)], SHAPE, "MulOptions", {}),
    "MAXIMUM": ([random(4)], SHAPE, "MaximumMinimumOptions", {}),
    "CONCATENATION": ([random(1, 7, 9, 2)], (1, 7, 9, 6), "ConcatenationOptions", {"axis": 3}),
}


def sketched(kind: str) -> bytes:
    operands, shape, options, settings = CASES[kind]
    sketch = Sketch()
    x = sketch.tensor(SHAPE)
    types = {np.dtype(np.int32): TYPES.INT32, np.dtype(np.float32): TYPES.FLOAT32}
    inputs = [sketch.tensor(one.shape, types[one.dtype], one) for one in operands]
    y = sketch.apply(kind, [x, *inputs], sketch.tensor(shape), options, **settings)
    return sketch.file([x], [y])


@pytest.mark.parametrize("kind", CASES)
def test_an_operation_computes_as_in_the_runtime(kind: str) -> None:
    assert_equal(sketched(kind), SHAPE)


@pytest.mark.parametrize(
    ("padding", "stride", "dilation"), [(SAME, 1, 1), (SAME, 2, 1), (VALID, 2, 1), (SAME, 1, 2)]
)
def test_a_convolution_is_padded_as_in_the_runtime(padding: int, stride: int, dilation: int) -> None:
    sketch = Sketch()
    x = sketch.tensor(SHAPE)
    weights, bias = sketch.tensor((6, 3, 2, 4), data=random(6, 3, 2, 4)), sketch.tensor((6,), data=random(6))
    size = [-(-n // stride) if padding == SAME else -(-(n - k + 1) // stride) for n, k in ((7, 3), (9, 2))]
    y = sketch.apply(
        "CONV_2D",
        [x, weights, bias],
        sketch.tensor((1, *size, 6)),
        "Conv2DOptions",
        padding=padding,
        strideW=stride,
        strideH=stride,
        dilationWFactor=dilation,
        dilationHFactor=dilation,
        fusedActivationFunction=1,
    )
    assert_equal(sketch.file([x], [y]), SHAPE)


def test_layers_are_read_with_their_weights() -> None:
    graph = TorchGraph(load(float_file(classifier())))
    assert len(graph.layers) == 5
    assert sum(layer.size for layer in graph.layers) == sum(
        graph.weights(layer).numel() for layer in graph.layers
    )
    assert [layer.groups for layer in graph.layers] == [1, 16, 1, 1, 1]


def test_a_weight_can_be_replaced_for_one_run() -> None:
    graph = TorchGraph(load(float_file(classifier())))
    x = torch.ones((1, SIDE, SIDE, 3))
    zeros = {layer.key: torch.zeros_like(graph.weights(layer)) for layer in graph.layers}
    (found,) = graph(x, overrides=GraphOverrides(weights=zeros))
    last = graph.layers[-1]
    assert torch.equal(found[0], graph.bias(last))


def test_an_operation_that_cannot_be_trained_is_named() -> None:
    sketch = Sketch()
    x = sketch.tensor((1, 4))
    y = sketch.apply("FLOOR", [x], sketch.tensor((1, 4)))
    with pytest.raises(ModelError, match="FLOOR"):
        TorchGraph(load(sketch.file([x], [y])))
