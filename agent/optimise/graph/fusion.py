"""Rewrites that let one operation do the work of two: batch norm and activations.

Each changes one graph in object form and returns how often it applied.

The rewrite that removes operations which change nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from agent.optimise.graph.objects import Graph

_OPERATORS = schema.BuiltinOperator
_CONVERSIONS = {
    _OPERATORS.RESHAPE,
    _OPERATORS.TRANSPOSE,
    _OPERATORS.DEQUANTIZE,
    _OPERATORS.QUANTIZE,
    _OPERATORS.CAST,
}


def remove_identities(graph: Graph) -> int:
    """Remove operations of a graph that change nothing, and return how many.

    These are reshapes to the same shape, transpositions and quantisations that are undone, paddings by nothing,
    concatenations of one tensor, and products with 1 or sums with 0 of floats.
    """
    count = 0
    for operator in list(graph.operators):
        kept = _repeated(graph, operator)
        if kept is not None and _replace(graph, operator, kept):
            count += 1
    return count + _remove_unread(graph)


def _repeated(graph: Graph, operator: Any) -> int | None:
    """Return the tensor that an operation repeats; None: it changes something."""
    test = _IDENTITIES.get(graph.kind(operator))
    return None if test is None or len(operator.outputs) != 1 else test(graph, operator)


def _replace(graph: Graph, operator: Any, kept: int) -> bool:
    """Remove an operation that repeats a tensor; False if its result is an output that nothing else computes."""
    result = operator.outputs[0]
    if not graph.is_end(result):
        graph.remove(operator, kept)
        return True
    producer = graph.producer(kept)
    if producer is None or graph.is_end(kept) or not same_values(graph, kept, result):
        return False
    graph.table.operators = [one for one in graph.operators if one is not operator]
    producer.outputs = [result if index == kept else index for index in producer.outputs]
    for one in graph.operators:
        one.inputs = [result if index == kept else index for index in one.inputs]
    return True


def is_fixed(graph: Graph, one: int, other: int) -> bool:
    """Return True if two tensors always have the same shape."""
    return graph.shape(one) == graph.shape(other) and not graph.is_open(one) and not graph.is_open(other)


def _reshape(graph: Graph, operator: Any) -> int | None:
    source, result = operator.inputs[0], operator.outputs[0]
    if graph.shape(source) != () and is_fixed(graph, source, result):
        return int(source)
    before = graph.producer(source)
    if before is not None and graph.kind(before) == _OPERATORS.RESHAPE and not graph.is_open(result):
        operator.inputs = [before.inputs[0], *operator.inputs[1:]]  # only the last shape counts
    return None


def _transposition(graph: Graph, operator: Any) -> int | None:
    order, source = graph.constant(operator.inputs[1]), operator.inputs[0]
    if order is None:
        return None
    if order.tolist() == list(range(order.size)):
        return int(source)
    before = graph.producer(source)
    if before is None or graph.kind(before) != _OPERATORS.TRANSPOSE:
        return None
    first = graph.constant(before.inputs[1])
    if first is None or first.size != order.size:
        return None
    return int(before.inputs[0]) if first[order].tolist() == list(range(order.size)) else None


def _quantisation(graph: Graph, operator: Any) -> int | None:
    source, result = operator.inputs[0], operator.outputs[0]
    if same_values(graph, source, result):
        return int(source)
    before = graph.producer(source)
    if before is None or graph.kind(before) != _OPERATORS.DEQUANTIZE:
        return None
    first = int(before.inputs[0])
    return first if same_values(graph, first, result) else None


def _same_shape_and_type(graph: Graph, operator: Any) -> int | None:
    """Judge CAST, PAD, PADV2, MIRROR_PAD and CONCATENATION of one tensor: same shape and type, same values."""
    source, result = operator.inputs[0], operator.outputs[0]
    is_one = graph.kind(operator) != _OPERATORS.CONCATENATION or len(operator.inputs) == 1
    is_kept = is_one and is_fixed(graph, source, result) and activation(operator) == 0
    return int(source) if is_kept and same_values(graph, source, result) else None


def _neutral(graph: Graph, operator: Any) -> int | None:
    """Judge ADD, SUB, MUL and DIV of floats."""
    number = float(graph.kind(operator) in (_OPERATORS.MUL, _OPERATORS.DIV))
    value, source = graph.constant(operator.inputs[1]), operator.inputs[0]
    if value is None or value.dtype != np.float32 or not np.all(value == number) or activation(operator):
        return None
    return int(source) if is_fixed(graph, source, operator.outputs[0]) else None


_IDENTITIES: Mapping[int, Callable[[Graph, Any], int | None]] = {
    _OPERATORS.RESHAPE: _reshape,
    _OPERATORS.TRANSPOSE: _transposition,
    _OPERATORS.QUANTIZE: _quantisation,
    _OPERATORS.CAST: _same_shape_and_type,
    _OPERATORS.PAD: _same_shape_and_type,
    _OPERATORS.PADV2: _same_shape_and_type,
    _OPERATORS.MIRROR_PAD: _same_shape_and_type,
    _OPERATORS.CONCATENATION: _same_shape_and_type,
    **dict.fromkeys((_OPERATORS.ADD, _OPERATORS.SUB, _OPERATORS.MUL, _OPERATORS.DIV), _neutral),
}


def _remove_unread(graph: Graph) -> int:
    """Remove conversions whose output nobody reads any more."""
    count = 0
    for operator in reversed(list(graph.operators)):
        is_read = any(graph.readers(index) or graph.is_end(index) for index in operator.outputs)
        if graph.kind(operator) in _CONVERSIONS and not is_read:
            graph.table.operators = [one for one in graph.operators if one is not operator]
            count += 1
    return count


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
