"""Rewrites that let one operation do the work of two: batch norm and activations.

Each changes one graph in object form and returns how often it applied.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from agent.optimise.graph.objects import Graph

_OPERATORS = schema.BuiltinOperator
_ACTIVATIONS = schema.ActivationFunctionType
_FUSED = {
    _OPERATORS.RELU: _ACTIVATIONS.RELU,
    _OPERATORS.RELU6: _ACTIVATIONS.RELU6,
    _OPERATORS.RELU_N1_TO_1: _ACTIVATIONS.RELU_N1_TO_1,
}
"""Activation that a kernel computes with its result, by the operation that it replaces."""
_FUSING = {
    _OPERATORS.CONV_2D,
    _OPERATORS.DEPTHWISE_CONV_2D,
    _OPERATORS.FULLY_CONNECTED,
    _OPERATORS.ADD,
    _OPERATORS.SUB,
    _OPERATORS.MUL,
    _OPERATORS.DIV,
    _OPERATORS.MAX_POOL_2D,
    _OPERATORS.AVERAGE_POOL_2D,
}
_WEIGHTED = {_OPERATORS.CONV_2D: 0, _OPERATORS.DEPTHWISE_CONV_2D: 3, _OPERATORS.FULLY_CONNECTED: 0}
"""Dimension of the output channels in the weights."""
_FACTORS, _OFFSETS = {_OPERATORS.MUL, _OPERATORS.DIV}, {_OPERATORS.ADD, _OPERATORS.SUB}
_SYMMETRIC = {_OPERATORS.MUL, _OPERATORS.ADD}
"""Operations whose constant may come first."""


def fuse_batch_norm(graph: Graph) -> int:
    """Fold MUL, DIV, ADD and SUB with a constant per channel into the float weights and bias before them.

    A batch norm behind a pooling stays, since the convolution is not what it scales.
    """
    count = 0
    for operator in list(graph.operators):
        if graph.kind(operator) not in _FACTORS | _OFFSETS:
            continue
        data, value = _data_and_value(graph, operator)
        before = None if value is None else graph.producer(data)
        if value is not None and before is not None and _fold(graph, before, operator, data, value):
            count += 1
    return count


def _data_and_value(graph: Graph, operator: Any) -> tuple[int, NDArray[np.float32] | None]:
    """Return the computed input, and the finite float constant that is the other one; None: there is none."""
    first, second = operator.inputs
    if graph.constant(second) is None and graph.kind(operator) in _SYMMETRIC:
        first, second = second, first
    value = graph.constant(second)
    if value is None or value.dtype != np.float32 or not np.all(np.isfinite(value)):
        return first, None
    return first, value


def _fold(graph: Graph, before: Any, operator: Any, data: int, value: NDArray[np.float32]) -> bool:
    """Fold an operation into the weighted one before it, if that keeps the answers."""
    kind, after = graph.kind(before), graph.kind(operator)
    if kind not in _WEIGHTED or not graph.is_inner(data) or activation(before) != _ACTIVATIONS.NONE:
        return False
    weights = graph.constant(before.inputs[1])
    if weights is None or weights.dtype != np.float32 or (after == _OPERATORS.DIV and not np.all(value)):
        return False
    channels = weights.shape[_WEIGHTED[kind]]
    if graph.shape(operator.outputs[0]) != graph.shape(data) or not _is_per_channel(value, channels):
        return False
    bias_at = before.inputs[2] if len(before.inputs) > 2 else -1
    bias = np.zeros(channels, np.float32) if bias_at < 0 else graph.constant(bias_at)
    if bias is None:
        return False
    factor, offset = _factor_and_offset(after, np.broadcast_to(value.reshape(-1), bias.shape))
    _scale(graph, before, weights, bias * factor + offset, None if after in _OFFSETS else factor)
    set_activation(before, activation(operator))
    before.outputs = list(operator.outputs)
    graph.remove(operator, operator.outputs[0])
    return True


def _is_per_channel(value: NDArray[np.float32], channels: int) -> bool:
    return value.size == 1 or (value.size == channels == value.shape[-1])


def _factor_and_offset(kind: int, value: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    if kind in _OFFSETS:
        return np.ones_like(value), value if kind == _OPERATORS.ADD else -value
    return (value if kind == _OPERATORS.MUL else np.float32(1) / value), np.zeros_like(value)


def _scale(
    graph: Graph,
    operator: Any,
    weights: NDArray[np.float32],
    bias: NDArray[np.float32],
    factor: NDArray[np.float32] | None,
) -> None:
    """Give a weighted operation another bias, and weights with one factor per output channel."""
    if factor is not None:
        sizes = [1] * weights.ndim
        sizes[_WEIGHTED[graph.kind(operator)]] = -1
        scaled = (weights * factor.reshape(sizes)).astype(np.float32)
        operator.inputs[1] = graph.add_constant(operator.inputs[1], scaled)
    has_bias = len(operator.inputs) > 2 and operator.inputs[2] >= 0
    like = operator.inputs[2] if has_bias else operator.inputs[1]
    operator.inputs = [
        *operator.inputs[:2],
        graph.add_constant(like, bias.astype(np.float32)),
        *operator.inputs[3:],
    ]


def activation(operator: Any) -> int:
    """Return the `ActivationFunctionType` that an operation computes with its result."""
    return int(getattr(operator.builtinOptions, "fusedActivationFunction", _ACTIVATIONS.NONE))


def set_activation(operator: Any, kind: int) -> None:
    """Let an operation that has options for it compute an activation with its result."""
    operator.builtinOptions.fusedActivationFunction = kind


def fuse_activations(graph: Graph) -> int:
    """Let an operation compute the ReLU after it, where both have one quantisation."""
    count = 0
    for operator in list(graph.operators):
        fused = _FUSED.get(graph.kind(operator))
        before = graph.producer(operator.inputs[0]) if fused is not None else None
        if fused is None or before is None or graph.kind(before) not in _FUSING:
            continue
        if before.builtinOptions is None or activation(before) != _ACTIVATIONS.NONE:
            continue
        source, result = operator.inputs[0], operator.outputs[0]
        if graph.is_inner(source) and same_values(graph, source, result):
            set_activation(before, fused)
            before.outputs = list(operator.outputs)
            graph.remove(operator, result)
            count += 1
    return count


def same_values(graph: Graph, one: int, other: int) -> bool:
    """Return True if equal stored values of two tensors mean equal real values."""
    first, second = graph.tensor(one), graph.tensor(other)
    return first.type == second.type and quantisation(first) == quantisation(second)


def quantisation(tensor: Any) -> tuple[tuple[float, ...], tuple[int, ...]]:
    """Return scales and zero points of a tensor (`TensorT`); both empty: it is not quantised."""
    found = tensor.quantization
    if found is None or found.scale is None:
        return (), ()
    zero_points = () if found.zeroPoint is None else found.zeroPoint
    return tuple(map(float, found.scale)), tuple(map(int, zero_points))
