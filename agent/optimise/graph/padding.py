"""Rewrites of paddings: each changes one graph in object form and returns how often it applied."""

from __future__ import annotations

from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from agent.optimise.graph.fusion import activation, quantisation
from agent.optimise.graph.objects import Graph

_OPERATORS = schema.BuiltinOperator
_ACTIVATIONS = schema.ActivationFunctionType
_FLOORED = {_OPERATORS.RELU, _OPERATORS.RELU6, _OPERATORS.LOGISTIC}
"""Operations whose results are at least 0."""
_PADS = {_OPERATORS.PAD, _OPERATORS.PADV2}
_CONVOLUTIONS = {_OPERATORS.CONV_2D, _OPERATORS.DEPTHWISE_CONV_2D}
_LOWEST = {
    schema.TensorType.FLOAT32: float(np.finfo(np.float32).min),
    schema.TensorType.INT8: -128.0,
    schema.TensorType.UINT8: 0.0,
}
"""Lowest stored value by type."""


def fuse_padding(graph: Graph) -> int:
    """Let a convolution or a max-pool pad by itself, where a padding before it is what SAME does.

    Before a convolution that is a padding with zeros, before a max-pool one with the lowest value. Other paddings
    with the lowest value become ones that INT8 can hold and XNNPACK runs: a float -inf, or -3.4e38, would be part
    of the range of the tensor, whose scale would be infinite. They pad zeros where no value is negative, else
    they repeat the border.
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
    if graph.kind(operator) not in (*_CONVOLUTIONS, _OPERATORS.MAX_POOL_2D):
        return None
    before = graph.producer(operator.inputs[0])
    is_padded = before is not None and graph.kind(before) in _PADS and graph.is_inner(operator.inputs[0])
    return before if is_padded and operator.builtinOptions.padding == schema.Padding.VALID else None


def _padded(graph: Graph, padding: Any) -> tuple[NDArray[Any] | None, float | None]:
    """Return how much a padding adds before and after each dimension, and which stored value; None: computed."""
    amounts = graph.constant(padding.inputs[1])
    if len(padding.inputs) < 3:
        return amounts, _zero_point(graph, padding.inputs[0])
    value = graph.constant(padding.inputs[2])
    return amounts, None if value is None or value.size != 1 else float(value.reshape(-1)[0])


def _zero_point(graph: Graph, index: int) -> float:
    _, zero_points = quantisation(graph.tensor(index))
    return float(zero_points[0]) if zero_points else 0.0


def _is_zero(graph: Graph, padding: Any, value: float | None) -> bool:
    return value is not None and value == _zero_point(graph, padding.inputs[0])


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


def _reaches_data(graph: Graph, pool: Any, amounts: NDArray[Any]) -> bool:
    """Return True for a padding of height and width that leaves each window of a pooling a value of its own."""
    if amounts.shape != (4, 2) or amounts[[0, 3]].any():
        return False
    return all(max(pads) < window for pads, window in zip(amounts[1:3], _window(graph, pool), strict=True))


def _pad_without_lowest(graph: Graph, padding: Any, pool: Any, amounts: NDArray[Any]) -> int:
    """Replace a padding with the lowest value before a max-pool; return 0 if that would change the answers."""
    source = padding.inputs[0]
    if not _reaches_data(graph, pool, amounts) or graph.is_open(source):
        return 0
    if _is_floored(graph, source) and graph.tensor(source).type == schema.TensorType.FLOAT32:
        padding.opcodeIndex, padding.inputs = graph.code(_OPERATORS.PAD, 1), padding.inputs[:2]
        padding.builtinOptionsType, padding.builtinOptions = (
            schema.BuiltinOptions.PadOptions,
            schema.PadOptionsT(),
        )
        return 1
    # The repeated rows have to be in the window that reads them, and the input has to have that many.
    windows = zip(amounts[1:3], _window(graph, pool), graph.shape(source)[1:3], strict=True)
    if not all(2 * max(pads) <= window and max(pads) <= size for pads, window, size in windows):
        return 0
    insertion = _Insertion(graph, padding)
    for axis, count in _border(graph, source, pool, amounts):
        source = insertion.repeat_border(source, axis, count)
    graph.remove(padding, source)
    return 1


def _border(graph: Graph, source: int, pool: Any, amounts: NDArray[Any]) -> list[tuple[int, tuple[int, int]]]:
    """Return the axes of height and width, with the number of padded values that a pooling reads on each side."""
    found, options = [], pool.builtinOptions
    for axis, window, stride in zip(
        (1, 2), _window(graph, pool), (options.strideH, options.strideW), strict=True
    ):
        before, results = int(amounts[axis, 0]), graph.shape(pool.outputs[0])[axis]
        reach = (results - 1) * int(stride) - before + window
        found.append((axis, (before, max(0, reach - graph.shape(source)[axis]))))
    return found


class _Insertion:
    """Inserts operations behind one that they replace: a padding, whose amounts are int32."""

    def __init__(self, graph: Graph, padding: Any) -> None:
        self._graph, self._last, self._int32 = graph, padding, int(padding.inputs[1])

    def repeat_border(self, source: int, axis: int, counts: tuple[int, int]) -> int:
        """Put the first and last values of an axis before and behind it once more, and return the result.

        That is SLICE and CONCATENATION, since XNNPACK runs no MIRROR_PAD.
        """
        size = self._graph.shape(source)[axis]
        first = [self._slice(source, axis, 0, counts[0])] if counts[0] else []
        last = [self._slice(source, axis, size - counts[1], counts[1])] if counts[1] else []
        if not first and not last:
            return source
        shape = np.array(self._graph.shape(source), np.int32)
        shape[axis] += sum(counts)
        options = schema.ConcatenationOptionsT()
        options.axis = axis
        output = self._tensor(source, "border", shape)
        return self._insert(_OPERATORS.CONCATENATION, [*first, source, *last], output, options)

    def _slice(self, source: int, axis: int, begin: int, count: int) -> int:
        begins, sizes = np.zeros(4, np.int32), np.array(self._graph.shape(source), np.int32)
        begins[axis], sizes[axis] = begin, count
        constants = [self._graph.add_constant(self._int32, values) for values in (begins, sizes)]
        output = self._tensor(source, "edge", sizes)
        return self._insert(_OPERATORS.SLICE, [source, *constants], output, schema.SliceOptionsT())

    def _tensor(self, like: int, name: str, shape: NDArray[np.int32]) -> int:
        name = f"{self._graph.name(like)}/{name}"
        return self._graph.add_tensor(like, name=name, shape=shape, shapeSignature=None, buffer=0)

    def _insert(self, kind: int, inputs: list[int], output: int, options: Any) -> int:
        operator = schema.OperatorT()
        operator.opcodeIndex = self._graph.code(kind, 2)
        operator.inputs, operator.outputs, operator.builtinOptions = inputs, [output], options
        operator.builtinOptionsType = getattr(schema.BuiltinOptions, type(options).__name__.removesuffix("T"))
        self._graph.insert(operator, self._last)
        self._last = operator
        return output


def _is_floored(graph: Graph, index: int) -> bool:
    """Return True if no value of a tensor is negative, because of the operation that computes it."""
    before = graph.producer(index)
    if before is None:
        return False
    floors = (_ACTIVATIONS.RELU, _ACTIVATIONS.RELU6)
    return graph.kind(before) in _FLOORED or activation(before) in floors
