"""The rewrite that removes transpositions which undo each other, also around other operations."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from agent.optimise.graph.fusion import remove_identities
from agent.optimise.graph.objects import Graph

_OPERATORS = schema.BuiltinOperator
_ELEMENTWISE = """
ABS ADD CAST CEIL COS DEQUANTIZE DIV ELU EXP FLOOR GELU HARD_SWISH LEAKY_RELU LOG LOGISTIC MAXIMUM MINIMUM MUL NEG
POW PRELU QUANTIZE RELU RELU6 RELU_N1_TO_1 ROUND RSQRT SIN SQRT SQUARE SQUARED_DIFFERENCE SUB TANH
"""
_POINTWISE = {getattr(_OPERATORS, name) for name in _ELEMENTWISE.split()}
"""Operations that compute each value of their result from those at the same place."""
_PADDINGS = {_OPERATORS.PAD, _OPERATORS.PADV2, _OPERATORS.MIRROR_PAD}
_REDUCTIONS = {_OPERATORS.MEAN, _OPERATORS.SUM, _OPERATORS.REDUCE_MAX, _OPERATORS.REDUCE_MIN}
_DATA_AT = {
    **dict.fromkeys(_PADDINGS | _REDUCTIONS, 0),
    _OPERATORS.SPLIT: 1,
    _OPERATORS.SPLIT_V: 0,
}
"""Which input is transposed, of operations with one such input."""
_MOVABLE = {*_POINTWISE, *_DATA_AT, _OPERATORS.CONCATENATION}
_LAYOUT = {_OPERATORS.TRANSPOSE, _OPERATORS.RESHAPE}
_CHAIN = 6
"""Longest chain of transpositions and reshapes that is examined."""
_LARGEST = 1 << 24
"""Largest tensor whose order is computed."""


def cancel_transposes(graph: Graph) -> int:
    """Remove transpositions of a graph that undo each other, and return how many.

    A transposition moves behind operations that know no layout, whose constants and axes are transposed instead,
    until it meets its inverse. If fewer values are transposed then, the graph stays so; otherwise all returns to
    its place. A chain of transpositions and reshapes that leaves the values in their order becomes one reshape.
    """
    before, kept = _transposed(graph), _snapshot(graph)
    count = len(_transpositions(graph))
    while remove_identities(graph) or _move_one(graph) or _join_chain(graph):
        pass
    if _transposed(graph) < before:
        return max(1, count - len(_transpositions(graph)))
    graph.table.tensors, graph.table.operators, graph.table.outputs = kept
    return 0


def _transpositions(graph: Graph) -> list[Any]:
    return [one for one in graph.operators if graph.kind(one) == _OPERATORS.TRANSPOSE]


def _transposed(graph: Graph) -> int:
    """Return how many values are transposed."""
    return sum(int(np.prod(graph.shape(one.outputs[0]))) for one in _transpositions(graph))


def _snapshot(graph: Graph) -> tuple[list[Any], list[Any], list[int]]:
    return list(graph.table.tensors), copy.deepcopy(graph.operators), list(graph.outputs)


def _join_chain(graph: Graph) -> int:
    """Turn the last operation of a chain that leaves all values in their order into a reshape."""
    for operator in graph.operators:
        if graph.kind(operator) not in _LAYOUT or graph.is_open(operator.outputs[0]):
            continue
        chain = _chain(graph, operator)
        for length in range(len(chain), 0, -1):
            links = chain[:length]
            if any(graph.kind(one) == _OPERATORS.TRANSPOSE for one in links) and _keeps_order(graph, links):
                _become_reshape(graph, operator, links[-1].inputs[0])
                return 1
    return 0


def _chain(graph: Graph, operator: Any) -> list[Any]:
    """Return an operation and the transpositions and reshapes before it, from the last to the first."""
    found = [operator]
    while len(found) < _CHAIN:
        before = graph.producer(found[-1].inputs[0])
        if before is None or graph.kind(before) not in _LAYOUT:
            break
        found.append(before)
    return found


def _keeps_order(graph: Graph, links: Sequence[Any]) -> bool:
    """Return True if the values are in the same order in memory before and after a chain."""
    shape = graph.shape(links[-1].inputs[0])
    if not shape or np.prod(shape, dtype=np.int64) > _LARGEST or graph.is_open(links[-1].inputs[0]):
        return False
    order = np.arange(np.prod(shape)).reshape(shape)
    for one in reversed(links):
        if graph.kind(one) == _OPERATORS.RESHAPE:
            order = order.reshape(graph.shape(one.outputs[0]))
            continue
        axes = graph.constant(one.inputs[1])
        if axes is None:
            return False
        order = order.transpose(axes)
    return bool(np.all(np.diff(order.reshape(-1)) == 1))


def _become_reshape(graph: Graph, operator: Any, source: int) -> None:
    shape = np.array(graph.shape(operator.outputs[0]), np.int32)
    like = next(one.inputs[1] for one in _transpositions(graph) if graph.constant(one.inputs[1]) is not None)
    options = schema.ReshapeOptionsT()
    options.newShape = shape
    operator.opcodeIndex, operator.inputs = (
        graph.code(_OPERATORS.RESHAPE, 1),
        [source, graph.add_constant(like, shape)],
    )
    operator.builtinOptions, operator.builtinOptionsType = options, schema.BuiltinOptions.ReshapeOptions


def _move_one(graph: Graph) -> int:
    """Move the transposition before an operation behind it; 0 if there is none left to move."""
    for operator in graph.operators:
        if graph.kind(operator) in _MOVABLE:
            order = _common_order(graph, operator)
            if order is not None and _can_move(graph, operator, order):
                _move(graph, operator, order)
                return 1
    return 0


def _data(graph: Graph, operator: Any) -> list[int]:
    """Return the inputs of an operation that are transposed: the computed ones, or the one of `_DATA_AT`."""
    at = _DATA_AT.get(graph.kind(operator))
    inputs = operator.inputs if at is None else operator.inputs[at : at + 1]
    return [index for index in inputs if graph.constant(index) is None]


def _common_order(graph: Graph, operator: Any) -> list[int] | None:
    """Return the order of the transpositions that compute all data of an operation; None: there is none."""
    orders = []
    for index in _data(graph, operator):
        before = graph.producer(index)
        order = (
            graph.constant(before.inputs[1]) if before and graph.kind(before) == _OPERATORS.TRANSPOSE else None
        )
        if order is None:
            return None
        orders.append(order.tolist())
    return orders[0] if orders and all(order == orders[0] for order in orders) else None


def _can_move(graph: Graph, operator: Any, order: Sequence[int]) -> bool:
    """Return True if an operation can compute its results in the layout before the transpositions."""
    kind, data = graph.kind(operator), _data(graph, operator)
    if any(map(graph.is_open, (*data, *operator.outputs))):
        return False
    if any(len(graph.shape(index)) != len(order) for index in data):
        return False
    others = [index for index in operator.inputs if index not in data]
    if any(graph.constant(index) is None for index in others):
        return False
    if kind in _REDUCTIONS:
        return True
    is_ranked = all(len(graph.shape(index)) == len(order) for index in operator.outputs)
    return is_ranked and not any(_is_per_channel(graph, index) for index in others)


def _is_per_channel(graph: Graph, index: int) -> bool:
    found = graph.tensor(index).quantization
    return found is not None and found.scale is not None and len(found.scale) > 1


def _move(graph: Graph, operator: Any, order: Sequence[int]) -> None:
    """Move the transpositions of `order` before an operation behind it."""
    transposition = next(one for one in map(graph.producer, _data(graph, operator)) if one is not None)
    sources = {index: before.inputs[0] for index in _data(graph, operator) if (before := graph.producer(index))}
    adapted = _ADAPTED.get(graph.kind(operator), _turn_constants)(graph, operator, order)
    operator.inputs = [sources.get(index, index) for index in adapted]
    behind = _kept_order(graph, operator, order)
    for at, result in enumerate(list(operator.outputs)):
        if behind == list(range(len(behind))):
            continue
        shape = np.array(graph.shape(result), np.int32)[np.argsort(behind)]
        inner = graph.add_tensor(result, name=f"{graph.name(result)}/moved", shape=shape, shapeSignature=None)
        operator.outputs[at] = inner
        moved = copy.copy(transposition)
        axes = graph.add_constant(transposition.inputs[1], np.array(behind, np.int32))
        moved.inputs, moved.outputs = [inner, axes], [result]
        graph.insert(moved, operator)


def _kept_order(graph: Graph, operator: Any, order: Sequence[int]) -> list[int]:
    """Return the order of the transposition behind an operation, whose axes are those before it by now."""
    if graph.kind(operator) not in _REDUCTIONS or operator.builtinOptions.keepDims:
        return list(order)
    axes = graph.constant(operator.inputs[1])
    assert axes is not None
    gone = {int(axis) % len(order) for axis in axes.reshape(-1)}
    kept = [axis for axis in order if axis not in gone]
    return [sorted(kept).index(axis) for axis in kept]


def _turn_constants(graph: Graph, operator: Any, order: Sequence[int]) -> list[int]:
    """Return the inputs of a pointwise operation, its constants in the layout before the transposition."""
    inverse = np.argsort(order)
    return [
        index if graph.constant(index) is None else _turned(graph, index, inverse) for index in operator.inputs
    ]


def _turned(graph: Graph, index: int, inverse: NDArray[np.int64]) -> int:
    """Return a constant in the layout before the transposition; one of a single value stays."""
    value = graph.constant(index)
    assert value is not None
    if value.size == 1:
        return index
    whole = value.reshape((1,) * (inverse.size - value.ndim) + value.shape)
    return graph.add_constant(index, np.ascontiguousarray(whole.transpose(inverse)))


def _turn_amounts(graph: Graph, operator: Any, order: Sequence[int]) -> list[int]:
    """Of a padding: its rows are the dimensions."""
    amounts = graph.constant(operator.inputs[1])
    assert amounts is not None
    turned = np.ascontiguousarray(amounts[np.argsort(order)])
    return [operator.inputs[0], graph.add_constant(operator.inputs[1], turned), *operator.inputs[2:]]


def _turn_axes(at: int) -> Callable[[Graph, Any, Sequence[int]], list[int]]:
    """Of an operation whose input number `at` names axes."""

    def turn(graph: Graph, operator: Any, order: Sequence[int]) -> list[int]:
        axes = graph.constant(operator.inputs[at])
        assert axes is not None
        named = np.array(order)[axes % len(order)].astype(axes.dtype).reshape(axes.shape)
        turned = graph.add_constant(operator.inputs[at], named)
        return [turned if number == at else index for number, index in enumerate(operator.inputs)]

    return turn


def _turn_option(graph: Graph, operator: Any, order: Sequence[int]) -> list[int]:
    """Of a concatenation: its axis is an option. Its constants are parts of the result."""
    operator.builtinOptions.axis = order[operator.builtinOptions.axis % len(order)]
    return _turn_constants(graph, operator, order)


_ADAPTED: Mapping[int, Callable[[Graph, Any, Sequence[int]], list[int]]] = {
    **dict.fromkeys(_PADDINGS, _turn_amounts),
    **dict.fromkeys(_REDUCTIONS, _turn_axes(1)),
    _OPERATORS.SPLIT: _turn_axes(0),
    _OPERATORS.SPLIT_V: _turn_axes(2),
    _OPERATORS.CONCATENATION: _turn_option,
}
"""How an operation other than a pointwise one computes in the layout before the transposition."""
