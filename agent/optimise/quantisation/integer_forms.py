"""Rewrites of a float graph for INT8: operations without an INT8 kernel in XNNPACK become those that have one.

One operation that the delegate leaves to the runtime's own kernels breaks the graph into pieces, and is slow by
itself. The rewritten float graph computes the same, but for the order of a sum.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from agent.optimise.graph.fusion import activation
from agent.optimise.graph.objects import Graph, dump, graphs, load

_OPERATORS, _ACTIVATIONS = schema.BuiltinOperator, schema.ActivationFunctionType
_OPTIONS = {
    _OPERATORS.ADD: "AddOptions",
    _OPERATORS.MUL: "MulOptions",
    _OPERATORS.MEAN: "ReducerOptions",
}


def for_integers(content: bytes) -> bytes:
    """Return a float file with a MEAN for each global average pooling, and products for each HARD_SWISH."""
    model = load(content)
    if not sum(average_by_mean(graph) + multiply_hard_swish(graph) for graph in graphs(model)):
        return content
    return dump(model)


def average_by_mean(graph: Graph) -> int:
    """Turn each average pooling over the whole picture into a MEAN, and return how many."""
    found = [one for one in graph.operators if _is_global(graph, one)]
    for operator in found:
        axes = graph.add_tensor(
            operator.outputs[0],
            name=f"{graph.name(operator.outputs[0])}_axes",
            type=schema.TensorType.INT32,
            quantization=None,
        )
        operator.inputs = [operator.inputs[0], graph.add_constant(axes, np.array([1, 2], np.int32))]
        _become(graph, operator, _OPERATORS.MEAN)
        operator.builtinOptions.keepDims = True
    return len(found)


def _is_global(graph: Graph, operator: Any) -> bool:
    if graph.kind(operator) != _OPERATORS.AVERAGE_POOL_2D or activation(operator) != _ACTIVATIONS.NONE:
        return False
    options, shape = operator.builtinOptions, graph.shape(operator.inputs[0])
    is_whole = (options.filterHeight, options.filterWidth) == shape[1:3]
    return is_whole and graph.shape(operator.outputs[0])[1:3] == (1, 1)


def multiply_hard_swish(graph: Graph) -> int:
    """Turn each HARD_SWISH x into x * min(max(x + 3, 0), 6) / 6, and return how many."""
    found = [one for one in graph.operators if graph.kind(one) == _OPERATORS.HARD_SWISH]
    for operator in found:
        _multiply(graph, operator)
    return len(found)


def _multiply(graph: Graph, operator: Any) -> None:
    source, result = operator.inputs[0], operator.outputs[0]
    name = graph.name(result)
    raised, product = (graph.add_tensor(result, name=f"{name}_{role}") for role in ("raised", "product"))
    raise_ = _operator(graph, _OPERATORS.ADD, [source, _scalar(graph, result, "three", 3.0)], raised)
    raise_.builtinOptions.fusedActivationFunction = _ACTIVATIONS.RELU6
    multiply = _operator(graph, _OPERATORS.MUL, [source, raised], product)
    divide = _operator(graph, _OPERATORS.MUL, [product, _scalar(graph, result, "sixth", 1 / 6)], result)
    at = next(number for number, one in enumerate(graph.operators) if one is operator)
    graph.table.operators = [*graph.operators[:at], raise_, multiply, divide, *graph.operators[at + 1 :]]


def _scalar(graph: Graph, like: int, role: str, value: float) -> int:
    """Add a constant [1, ...] of as many axes as a tensor."""
    stored = np.full((1,) * len(graph.shape(like)), value, np.float32)
    index = graph.add_constant(like, stored)
    graph.tensor(index).name = f"{graph.name(like)}_{role}"
    return index


def _operator(graph: Graph, kind: int, inputs: list[int], output: int) -> Any:
    made = schema.OperatorT()
    made.inputs, made.outputs = inputs, [output]
    _become(graph, made, kind)
    return made


def _become(graph: Graph, operator: Any, kind: int) -> None:
    """Give an operator another kind, and empty options."""
    operator.opcodeIndex = graph.code(kind, 1)
    operator.builtinOptions = getattr(schema, f"{_OPTIONS[kind]}T")()
    operator.builtinOptionsType = getattr(schema.BuiltinOptions, _OPTIONS[kind])
