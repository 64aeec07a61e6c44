"""Rewrites that remove operations which change nothing, and transpositions that undo each other.

Each changes one graph in object form and returns how often it applied.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from agent.optimise.graph.fusion import activation, same_values
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
    """Remove operations that change nothing.

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


def _is_fixed(graph: Graph, one: int, other: int) -> bool:
    """Return True if two tensors always have the same shape."""
    return graph.shape(one) == graph.shape(other) and not graph.is_open(one) and not graph.is_open(other)


def _reshape(graph: Graph, operator: Any) -> int | None:
    source, result = operator.inputs[0], operator.outputs[0]
    if graph.shape(source) != () and _is_fixed(graph, source, result):
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
    """Of CAST, PAD, PADV2, MIRROR_PAD and CONCATENATION of one tensor: unchanged is what keeps shape and type."""
    source, result = operator.inputs[0], operator.outputs[0]
    is_one = graph.kind(operator) != _OPERATORS.CONCATENATION or len(operator.inputs) == 1
    is_kept = is_one and _is_fixed(graph, source, result) and activation(operator) == 0
    return int(source) if is_kept and same_values(graph, source, result) else None


def _neutral(graph: Graph, operator: Any) -> int | None:
    """Of ADD, SUB, MUL and DIV of floats."""
    number = float(graph.kind(operator) in (_OPERATORS.MUL, _OPERATORS.DIV))
    value, source = graph.constant(operator.inputs[1]), operator.inputs[0]
    if value is None or value.dtype != np.float32 or not np.all(value == number) or activation(operator):
        return None
    return int(source) if _is_fixed(graph, source, operator.outputs[0]) else None


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


_ELEMENTWISE = """
ABS ADD CAST CEIL COS DEQUANTIZE DIV ELU EXP FLOOR GELU HARD_SWISH LEAKY_RELU LOG LOGISTIC MAXIMUM MINIMUM MUL NEG
POW PRELU QUANTIZE RELU RELU6 RELU_N1_TO_1 ROUND RSQRT SIN SQRT SQUARE SQUARED_DIFFERENCE SUB TANH
"""
_POINTWISE = {getattr(_OPERATORS, name) for name in _ELEMENTWISE.split()}
"""Operations that compute each value of their result from those at the same place."""
_PADDINGS = {_OPERATORS.PAD, _OPERATORS.PADV2, _OPERATORS.MIRROR_PAD}
_MOVABLE = _POINTWISE | _PADDINGS | {_OPERATORS.CONCATENATION}


def cancel_transposes(graph: Graph) -> int:
    """Remove pairs of transpositions, also where operations without a notion of layout lie between them.

    A transposition moves behind such operations, whose constants are transposed instead, until it meets its
    inverse. If fewer values are transposed then, the graph stays so; otherwise all returns to its place.
    """
    before, kept = _transposed(graph), _snapshot(graph)
    count = len(_transpositions(graph))
    while remove_identities(graph) + _move_one(graph):
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


def _move_one(graph: Graph) -> int:
    """Move the transposition before an operation behind it; 0 if there is none left to move."""
    for operator in graph.operators:
        if graph.kind(operator) in _MOVABLE and len(operator.outputs) == 1:
            order = _common_order(graph, operator)
            if order is not None and _can_move(graph, operator, order):
                _move(graph, operator, order)
                return 1
    return 0


def _data(graph: Graph, operator: Any) -> list[int]:
    """Return the inputs of an operation that are not constants and not what a padding takes besides."""
    inputs = operator.inputs[:1] if graph.kind(operator) in _PADDINGS else operator.inputs
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
    """Return True if an operation can compute its result in the layout before the transpositions."""
    kind = graph.kind(operator)
    is_ranked = all(
        len(graph.shape(index)) == len(order) for index in (*_data(graph, operator), operator.outputs[0])
    )
    if not is_ranked or any(map(graph.is_open, (*_data(graph, operator), operator.outputs[0]))):
        return False
    if kind in _PADDINGS:
        return graph.constant(operator.inputs[1]) is not None
    constants = [index for index in operator.inputs if graph.constant(index) is not None]
    return all(not _is_per_channel(graph, index) for index in constants)


def _is_per_channel(graph: Graph, index: int) -> bool:
    found = graph.tensor(index).quantization
    return found is not None and found.scale is not None and len(found.scale) > 1


def _move(graph: Graph, operator: Any, order: Sequence[int]) -> None:
    """Move the transpositions of `order` before an operation behind it, as one."""
    inverse, result = np.argsort(order), operator.outputs[0]
    data = set(_data(graph, operator))
    last = next(before for before in map(graph.producer, data) if before is not None)
    sources = {index: before.inputs[0] for index in data if (before := graph.producer(index)) is not None}
    if graph.kind(operator) in _PADDINGS:
        amounts = graph.constant(operator.inputs[1])
        assert amounts is not None
        moved = graph.add_constant(operator.inputs[1], np.ascontiguousarray(amounts[inverse]))
        operator.inputs = [sources[operator.inputs[0]], moved, *operator.inputs[2:]]
    else:
        operator.inputs = [
            sources.get(i, i) if i in data else _turned(graph, i, inverse) for i in operator.inputs
        ]
    if graph.kind(operator) == _OPERATORS.CONCATENATION:
        options = operator.builtinOptions
        options.axis = order[options.axis % len(order)]
    shape = np.array(graph.shape(result), np.int32)[inverse]
    inner = graph.add_tensor(result, name=f"{graph.name(result)}/moved", shape=shape, shapeSignature=None)
    operator.outputs = [inner]
    transposition = copy.copy(last)
    transposition.inputs, transposition.outputs = [inner, last.inputs[1]], [result]
    graph.insert(transposition, operator)


def _turned(graph: Graph, index: int, inverse: NDArray[np.int64]) -> int:
    """Return a constant in the layout before the transposition; one of a single value stays."""
    value = graph.constant(index)
    assert value is not None
    if value.size == 1:
        return index
    whole = value.reshape((1,) * (inverse.size - value.ndim) + value.shape)
    return graph.add_constant(index, np.ascontiguousarray(whole.transpose(inverse)))
