"""Work of one inference by class of operation: what the latency on a processor is predicted from.

The classes follow what libraries for ARM do: a 3×3 convolution of stride 1 may be computed by Winograd's method
(Lavin and Gray, Fast Algorithms for Convolutional Neural Networks, CVPR 2016), a 1×1 one is a product of
matrices, one with a larger kernel gathers its windows first, a depthwise one has few multiply-adds for each value
that it reads, a fully connected layer reads each weight once. What no cache holds comes from memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal

from msgspec import Struct
from msgspec.structs import astuple

from agent.compute.tflite.model import Operation, Subgraph, TensorInfo, multiply_adds_of

Arithmetic = Literal["int8", "float32"]
_CONVOLUTIONS = {"CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV", "FULLY_CONNECTED", "BATCH_MATMUL"}
_FREE = {"RESHAPE", "EXPAND_DIMS", "SQUEEZE"}
"""Operations that copy nothing."""
_IN_PLACE = {"ELU", "GELU", "HARD_SWISH", "LEAKY_RELU", "LOGISTIC", "RELU", "RELU6", "TANH"}
"""Operations whose output may take the place of their input."""
_CACHED = 1_200_000
"""Most values of an operation that caches hold: published times are explained best by it, see
`board_rates.py`."""


class Work(Struct, frozen=True):
    """Work of layers; sums of works are works.

    Attributes:
        point: multiply-adds of 1×1 convolutions and products of matrices, but those with a single row.
        small: of 3×3 convolutions of stride 1.
        dense: of other convolutions with kernels up to 3×3.
        large: of those with larger ones.
        depth: of depthwise convolutions.
        weights: number of weights but those of `small`.
        small_weights: of 3×3 convolutions of stride 1.
        values: read and written by convolutions but those of `small`.
        small_values: by 3×3 convolutions of stride 1.
        moved: values that other operations read and write; half of them if that happens in place.
        far: values of operations with more of them than caches hold; they count among the others as well.
        operations: number of them.
    """

    point: int = 0
    small: int = 0
    dense: int = 0
    large: int = 0
    depth: int = 0
    weights: int = 0
    small_weights: int = 0
    values: int = 0
    small_values: int = 0
    moved: int = 0
    far: int = 0
    operations: int = 0

    def __add__(self, other: Work) -> Work:
        return Work(*map(sum, zip(astuple(self), astuple(other), strict=True)))


def convolution(
    kernel: tuple[int, int], stride: int, groups: int, channels: int, *, products: int, weights: int, values: int
) -> Work:
    """Return the work of a convolution.

    Args:
        kernel: height and width.
        stride: least of both directions.
        groups: number; as many as `channels` for a depthwise one.
        channels: of the input.
        products: multiply-adds.
        weights: number, without biases.
        values: read and written.
    """
    far = far_of(values)
    if groups == channels > 1:
        return Work(depth=products, weights=weights, values=values, far=far, operations=1)
    operations = 1 if groups == 1 else 1 + groups  # each group is a convolution of its own
    if kernel == (1, 1):
        return Work(point=products, weights=weights, values=values, far=far, operations=operations)
    if kernel == (3, 3) and stride == 1:
        return Work(small=products, small_weights=weights, small_values=values, far=far, operations=operations)
    if max(kernel) > 3:
        return Work(large=products, weights=weights, values=values, far=far, operations=operations)
    return Work(dense=products, weights=weights, values=values, far=far, operations=operations)


def moving(values: int) -> Work:
    """Return the work of an operation that reads and writes so many values and multiplies none of them."""
    return Work(moved=values, far=far_of(values), operations=1)


def far_of(values: int) -> int:
    """Return how many of an operation's values come from memory: all, or none."""
    return values if values > _CACHED else 0


def work_of(graph: Subgraph) -> dict[Arithmetic, Work]:
    """Return the work of a graph by the arithmetic of its activations; operations on other types are left out."""
    found: dict[Arithmetic, Work] = {}
    for operation in graph.operations:
        kind = _arithmetic(graph, operation)
        if kind is not None and operation.name not in _FREE:
            found[kind] = found.get(kind, Work()) + _work(graph, operation)
    return found


def added(works: Iterable[dict[Arithmetic, Work]]) -> dict[Arithmetic, Work]:
    """Return the sum by arithmetic: the work of graphs that run one after the other."""
    total: dict[Arithmetic, Work] = {}
    for work in works:
        for kind, one in work.items():
            total[kind] = total.get(kind, Work()) + one
    return total


def _arithmetic(graph: Subgraph, operation: Operation) -> Arithmetic | None:
    """Return what an operation computes in; integer weights of float activations are multiplied as integers."""
    tensors = [graph.tensors[i] for i in operation.inputs if i >= 0]
    moving = next((one for one in tensors if not one.size), None)
    if moving is None or moving.dtype not in ("int8", "uint8", "int16", "float32", "float16"):
        return None
    integers = any(one.size and one.dtype in ("int8", "int4") for one in tensors)
    return "float32" if moving.dtype.startswith("float") and not integers else "int8"


def _work(graph: Subgraph, operation: Operation) -> Work:
    tensors = [graph.tensors[i] for i in operation.inputs if i >= 0]
    outputs = [graph.tensors[i] for i in operation.outputs]
    values = sum(map(_size, [one for one in tensors if not one.size])) + sum(map(_size, outputs))
    products = multiply_adds_of(graph, operation)
    if operation.name not in _CONVOLUTIONS or not products or len(tensors) < 2:
        return moving(values // 2 if operation.name in _IN_PLACE else values)
    weights = sum(_size(one) for one in tensors[:3] if one.size and len(one.shape) > 1)
    if operation.name in ("CONV_2D", "DEPTHWISE_CONV_2D"):
        return _convolution(operation, tensors, outputs[0], products, values)
    if operation.name == "TRANSPOSE_CONV":
        return Work(dense=products, weights=weights, values=values, far=far_of(values), operations=1)
    point = 0 if products == weights else products  # one row: reading the weights takes longer than multiplying
    return Work(point=point, weights=weights, values=values, far=far_of(values), operations=1)


def _convolution(
    operation: Operation, tensors: list[TensorInfo], output: TensorInfo, products: int, values: int
) -> Work:
    inputs, weights = tensors[0].shape, tensors[1].shape
    if len(inputs) != 4 or len(weights) != 4 or len(output.shape) != 4:
        return Work(dense=products, values=values, far=far_of(values), operations=1)
    channels = max(1, inputs[3])
    groups = channels if operation.name == "DEPTHWISE_CONV_2D" else max(1, channels // max(1, weights[3]))
    strides = (
        round(max(1, before) / max(1, after))
        for before, after in zip(inputs[1:3], output.shape[1:3], strict=True)
    )
    kernel = (weights[1], weights[2])
    return convolution(
        kernel, min(strides), groups, channels, products=products, weights=math.prod(weights), values=values
    )


def _size(tensor: TensorInfo) -> int:
    return math.prod(max(1, size) for size in tensor.shape)
