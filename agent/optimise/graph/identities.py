"""The rewrite that removes operations which change nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

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
