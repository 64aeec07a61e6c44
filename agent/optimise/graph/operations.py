"""The operations of a float graph as plain values, and its layers: those with weights that can be quantised."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from agent.optimise.graph.objects import Graph

KINDS = {number: name for name, number in vars(schema.BuiltinOperator).items() if isinstance(number, int)}
"""Name of each operation of the schema, such as `CONV_2D`, by its number."""
WEIGHTED = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
_FIRST = """
ABS ELU EXPAND_DIMS HARD_SWISH NEG RELU_N1_TO_1 RESHAPE RSQRT SQRT SQUARE SQUEEZE
"""
_SECOND = """
ADD AVERAGE_POOL_2D BATCH_MATMUL CONCATENATION DEPTH_TO_SPACE DIV EXP GELU LEAKY_RELU LOGISTIC MAXIMUM
MAX_POOL_2D MEAN MINIMUM MUL PAD PADV2 QUANTIZE REDUCE_MAX RELU RELU6 SLICE SOFTMAX SPACE_TO_DEPTH SPLIT
STRIDED_SLICE SUB SUM TANH TRANSPOSE
"""
_THIRD = "CONV_2D DEPTHWISE_CONV_2D RESIZE_BILINEAR RESIZE_NEAREST_NEIGHBOR"
VERSIONS: Mapping[str, int] = {
    name: version
    for version, names in enumerate((_FIRST, _SECOND, _THIRD, "FULLY_CONNECTED"), 1)
    for name in names.split()
}
"""First version of each operation that takes INT8, or else the first; of resizes, with half-pixel centres."""
_INTEGERS = """
ADD AVERAGE_POOL_2D BATCH_MATMUL CONCATENATION CONV_2D DEPTHWISE_CONV_2D DEPTH_TO_SPACE EXPAND_DIMS
FULLY_CONNECTED HARD_SWISH LEAKY_RELU LOGISTIC MAXIMUM MAX_POOL_2D MEAN MINIMUM MUL PAD PADV2 REDUCE_MAX RELU
RELU6 RESHAPE RESIZE_BILINEAR RESIZE_NEAREST_NEIGHBOR SLICE SOFTMAX SPLIT SQUEEZE STRIDED_SLICE SUB TANH
TRANSPOSE
"""
INTEGERS = frozenset(_INTEGERS.split())
"""Operations with INT8 kernels that are used. All others stay float."""

Key = tuple[int, int]
"""Buffers of a layer's weights and bias: the same in all graphs of a file that share them."""


class GraphOperation(NamedTuple):
    """One operation of a graph.

    Attributes:
        kind: name in the schema, such as `CONV_2D`.
        inputs, outputs: indices of tensors; -1 for an input that is left out.
        options: of the schema's object form.
    """

    kind: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: Any


class WeightedLayer(NamedTuple):
    """One operation with constant float weights.

    Attributes:
        name: of its output tensor.
        operation: itself.
        weights: index of the buffer of the weights.
        bias: index of the buffer of the bias; 0: it has none.
        shape: of the weights in the file: [out, height, width, in], [1, height, width, out] or [out, in].
        groups: number of groups of channels that do not see each other; depthwise: the input's channels.
    """

    name: str
    operation: GraphOperation
    weights: int
    bias: int
    shape: tuple[int, ...]
    groups: int

    @property
    def key(self) -> Key:
        """Return what the layer has in common with those of other graphs that share its weights."""
        return self.weights, self.bias

    @property
    def channel_axis(self) -> int:
        """Return the axis of the output channels in the weights."""
        return 3 if self.operation.kind == "DEPTHWISE_CONV_2D" else 0

    @property
    def size(self) -> int:
        """Return the number of weights."""
        return math.prod(self.shape)


def read_operation(graph: Graph, operator: Any) -> GraphOperation:
    """Return an operator of the object form."""
    inputs, outputs = (tuple(map(int, ends)) for ends in (operator.inputs, operator.outputs))
    return GraphOperation(KINDS.get(graph.kind(operator), "?"), inputs, outputs, operator.builtinOptions)


def read_layer(graph: Graph, operation: GraphOperation) -> WeightedLayer | None:
    """Return the layer that an operation is; None: it has no weights, or they are computed or no float32."""
    if operation.kind not in WEIGHTED:
        return None
    source, weights, *rest = operation.inputs
    bias = rest[0] if rest and rest[0] >= 0 else -1
    for index in (weights, *(one for one in (bias,) if one >= 0)):
        value = graph.constant(index)
        if value is None or value.dtype != np.float32:
            return None
    shape, channels = graph.shape(weights), graph.shape(source)[-1]
    groups = {"FULLY_CONNECTED": 1, "DEPTHWISE_CONV_2D": channels}.get(operation.kind) or channels // shape[3]
    buffers = [int(graph.tensor(index).buffer) if index >= 0 else 0 for index in (weights, bias)]
    return WeightedLayer(graph.name(operation.outputs[0]), operation, buffers[0], buffers[1], shape, groups)


def strides(options: Any) -> tuple[int, int]:
    """Return the strides of a convolution or pooling, (vertical, horizontal)."""
    return int(options.strideH), int(options.strideW)


def dilations(options: Any) -> tuple[int, int]:
    """Return the dilations of a convolution, (vertical, horizontal)."""
    return int(options.dilationHFactor or 1), int(options.dilationWFactor or 1)


def paddings(
    lengths: tuple[int, int],
    padding: int,
    size: tuple[int, int],
    stride: tuple[int, int],
    dilation: tuple[int, int] = (1, 1),
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return how many pixels SAME puts before and behind a picture of (height, width); VALID: none.

    Source: https://www.tensorflow.org/api_docs/python/tf/nn#notes_on_padding_2
    """
    if padding != schema.Padding.SAME:
        return (0, 0), (0, 0)
    found = []
    for axis in (0, 1):
        extent = (size[axis] - 1) * dilation[axis] + 1
        total = max(0, (-(-lengths[axis] // stride[axis]) - 1) * stride[axis] + extent - lengths[axis])
        found.append((total // 2, total - total // 2))
    return found[0], found[1]
