"""Rewrites that let one operation do the work of two: batch norm, activations and padding.

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
_INCREASING = {_OPERATORS.RELU, _OPERATORS.RELU6, _OPERATORS.RELU_N1_TO_1, _OPERATORS.LEAKY_RELU}
"""Operations that never turn a larger value into a smaller one; LEAKY_RELU for slopes of at least 0."""
_FLOORED = {_OPERATORS.RELU, _OPERATORS.RELU6, _OPERATORS.LOGISTIC}
"""Operations whose results are at least 0."""
_PADS = {_OPERATORS.PAD, _OPERATORS.PADV2}


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
    return first.type == second.type and _quantisation(first) == _quantisation(second)


def _quantisation(tensor: Any) -> tuple[tuple[float, ...], tuple[int, ...]]:
    found = tensor.quantization
    if found is None or found.scale is None:
        return (), ()
    zero_points = () if found.zeroPoint is None else found.zeroPoint
    return tuple(map(float, found.scale)), tuple(map(int, zero_points))


def pool_first(graph: Graph) -> int:
    """Move an activation behind the max-pool that reads it, where it has fewer values to compute.

    The answers stay, since the activation never turns a larger value into a smaller one; nor does a padding of
    the border or of zeros between them matter, since the activation keeps 0.
    """
    count = 0
    for operator in list(graph.operators):
        if graph.kind(operator) != _OPERATORS.MAX_POOL_2D or activation(operator) != _ACTIVATIONS.NONE:
            continue
        between = graph.producer(operator.inputs[0])
        is_padded = between is not None and graph.kind(between) in _ZERO_OR_BORDER
        steps = [between, operator] if is_padded else [operator]
        before = graph.producer(steps[0].inputs[0])
        if before is None or not _may_follow(graph, before):
            continue
        if all(graph.is_inner(one.inputs[0]) for one in steps):
            for one in steps:
                _swap(graph, before, one)
            count += 1
    return count


_ZERO_OR_BORDER = {_OPERATORS.PAD, _OPERATORS.MIRROR_PAD}


def _may_follow(graph: Graph, operator: Any) -> bool:
    is_falling = getattr(operator.builtinOptions, "alpha", 0.0) < 0.0
    return graph.kind(operator) in _INCREASING and not is_falling


def _swap(graph: Graph, first: Any, second: Any) -> None:
    """Swap an operation and the one that reads it."""
    source, result = first.inputs[0], second.outputs[0]
    tensor, name = graph.tensor(result), f"{graph.name(result)}/before"
    sizes = {"shape": tensor.shape, "shapeSignature": tensor.shapeSignature}
    inner = graph.add_tensor(source, name=name, buffer=0, **sizes)
    second.inputs, second.outputs = [source, *second.inputs[1:]], [inner]
    first.inputs, first.outputs = [inner, *first.inputs[1:]], [result]
    graph.move_behind(first, second)


def fuse_padding(graph: Graph) -> int:
    """Let a convolution or a max-pool pad by itself, where a padding before it is what SAME does.

    Before a convolution that is a padding with zeros, before a max-pool one with the lowest value. Other paddings
    with the lowest value become ones that INT8 can hold: a float -inf, or -3.4e38, would be part of the range of
    the tensor, whose scale would be infinite. They pad zeros where no value is negative, else repeat the border.
    """
    count = 0
    for operator in list(graph.operators):
        before = _padding_before(graph, operator)
        if before is None:
            continue
        is_pool = graph.kind(operator) == _OPERATORS.MAX_POOL_2D
        amounts, value = _padded(graph, before)
        if amounts is None or not (
            _is_lowest(graph, before, value) if is_pool else _is_zero(graph, before, value)
        ):
            continue
        if amounts.tolist() == _same_padding(graph, before.inputs[0], operator):
            operator.builtinOptions.padding = schema.Padding.SAME
            graph.remove(before, before.inputs[0])
            count += 1
        elif is_pool and graph.kind(before) == _OPERATORS.PADV2:
            count += _pad_without_lowest(graph, before, operator, amounts)
    return count


def _padding_before(graph: Graph, operator: Any) -> Any | None:
    """Return the padding before a convolution or max-pool that pads nothing; None: there is none for it alone."""
    if graph.kind(operator) not in (*_WINDOWED, _OPERATORS.MAX_POOL_2D):
        return None
    before = graph.producer(operator.inputs[0])
    is_padded = before is not None and graph.kind(before) in _PADS and graph.is_inner(operator.inputs[0])
    return before if is_padded and operator.builtinOptions.padding == schema.Padding.VALID else None


_WINDOWED = {_OPERATORS.CONV_2D: (1, 2), _OPERATORS.DEPTHWISE_CONV_2D: (1, 2)}
"""Dimensions of the height and width in the weights."""


def _padded(graph: Graph, padding: Any) -> tuple[NDArray[Any] | None, float | None]:
    """Return how much a padding adds before and after each dimension, and which stored value; None: computed."""
    amounts = graph.constant(padding.inputs[1])
    if len(padding.inputs) < 3:
        return amounts, _zero_point(graph, padding.inputs[0])
    value = graph.constant(padding.inputs[2])
    return amounts, None if value is None or value.size != 1 else float(value.reshape(-1)[0])


def _zero_point(graph: Graph, index: int) -> float:
    _, zero_points = _quantisation(graph.tensor(index))
    return float(zero_points[0]) if zero_points else 0.0


def _is_zero(graph: Graph, padding: Any, value: float | None) -> bool:
    return value is not None and value == _zero_point(graph, padding.inputs[0])


_LOWEST = {
    schema.TensorType.FLOAT32: float(np.finfo(np.float32).min),
    schema.TensorType.INT8: -128.0,
    schema.TensorType.UINT8: 0.0,
}


def _is_lowest(graph: Graph, padding: Any, value: float | None) -> bool:
    """Return True if no value that is padded is lower than the padding's own."""
    lowest = _LOWEST.get(graph.tensor(padding.inputs[0]).type)
    is_floor = (
        value == 0.0 and _is_floored(graph, padding.inputs[0]) and lowest == _LOWEST[schema.TensorType.FLOAT32]
    )
    return is_floor or (value is not None and lowest is not None and value <= lowest)


def _same_padding(graph: Graph, source: int, operator: Any) -> list[list[int]] | None:
    """Return what SAME adds before and after each dimension of an input [batch, height, width, channels]."""
    if graph.is_open(source):
        return None
    found, options = [[0, 0]], operator.builtinOptions
    for size, window, stride in zip(
        graph.shape(source)[1:3], _window(graph, operator), (options.strideH, options.strideW), strict=True
    ):
        total = max(0, (-(-size // stride) - 1) * stride + window - size)
        found.append([total // 2, total - total // 2])
    return [*found, [0, 0]]


def _window(graph: Graph, operator: Any) -> tuple[int, int]:
    """Return height and width of what a convolution or pooling reads for one result."""
    options = operator.builtinOptions
    if graph.kind(operator) == _OPERATORS.MAX_POOL_2D:
        return int(options.filterHeight), int(options.filterWidth)
    height, width = graph.shape(operator.inputs[1])[1:3]
    return (height - 1) * int(options.dilationHFactor) + 1, (width - 1) * int(options.dilationWFactor) + 1


def _pad_without_lowest(graph: Graph, padding: Any, pool: Any, amounts: NDArray[Any]) -> int:
    """Replace a padding with the lowest value before a max-pool; return 0 if that would change the answers."""
    is_spatial = amounts.shape == (4, 2) and not amounts[[0, 3]].any()
    if not is_spatial or graph.tensor(padding.inputs[0]).type != schema.TensorType.FLOAT32:
        return 0
    windows = list(zip(amounts[1:3], _window(graph, pool), graph.shape(padding.inputs[0])[1:3], strict=True))
    if any(max(pads) >= window for pads, window, _ in windows):
        return 0  # a window without any value answers the padding's
    if _is_floored(graph, padding.inputs[0]):
        padding.opcodeIndex, padding.inputs = graph.code(_OPERATORS.PAD, 1), padding.inputs[:2]
        padding.builtinOptions, padding.builtinOptionsType = (
            schema.PadOptionsT(),
            schema.BuiltinOptions.PadOptions,
        )
        return 1
    # The repeated rows have to be in the window that reads them, and the input has to have that many.
    if not all(2 * max(pads) <= window and max(pads) <= size for pads, window, size in windows):
        return 0
    options = schema.MirrorPadOptionsT()
    options.mode = schema.MirrorPadMode.SYMMETRIC
    padding.opcodeIndex, padding.inputs = graph.code(_OPERATORS.MIRROR_PAD, 1), padding.inputs[:2]
    padding.builtinOptions, padding.builtinOptionsType = options, schema.BuiltinOptions.MirrorPadOptions
    return 1


def _is_floored(graph: Graph, index: int) -> bool:
    """Return True if no value of a tensor is negative, because of the operation that computes it."""
    before = graph.producer(index)
    if before is None:
        return False
    floors = (_ACTIVATIONS.RELU, _ACTIVATIONS.RELU6)
    return graph.kind(before) in _FLOORED or activation(before) in floors
