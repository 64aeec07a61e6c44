"""Finds the tensors at which a graph can be cut in two, and counts multiply-adds.

A tensor is a cut if every path from the input to the answer passes it: a dominator of the answer. What lies
behind it then needs nothing else that lies before it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from ai_edge_litert import schema_py_generated as schema

from agent.optimise.graph.objects import Graph, load

_KINDS = {number: name for name, number in vars(schema.BuiltinOperator).items() if isinstance(number, int)}
_WEIGHTED = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV")


class Cut(NamedTuple):
    """A place where a graph can be cut in two: all that the rest needs is one tensor.

    Attributes:
        tensor: its index.
        name: of the tensor.
        shape: of the tensor, batch first.
        multiply_adds: of all operations that it is computed by.
        share: of those of the whole graph, 0..1.
    """

    tensor: int
    name: str
    shape: tuple[int, ...]
    multiply_adds: int
    share: float


def cuts(graph: Graph) -> list[Cut]:
    """Return the tensors between input and output that every path passes, in the order of execution.

    Each has axes besides batch and channels, so that a head can average over them.

    Args:
        graph: of one input, whose last output is the model's answer.
    """
    costs = {id(one): multiply_adds(graph, one) for one in graph.operators}
    whole = sum(costs.values())
    found = []
    for index in _passed(graph):
        done = sum(costs[id(one)] for one in operations_before(graph, [index]))
        shape = graph.shape(index)
        if len(shape) > 2 and math.prod(shape[1:-1]) > 1 and 0 < done < whole:
            found.append(Cut(index, graph.name(index), shape, done, done / whole))
    return found


def _passed(graph: Graph) -> list[int]:
    """Return the tensors on all paths from the input to the last output: its dominators."""
    passed: dict[int, frozenset[int]] = {graph.inputs[0]: frozenset()}
    for operator in graph.operators:
        sources = [passed[index] for index in operator.inputs if index in passed]
        common = frozenset.intersection(*sources) if sources else frozenset[int]()
        for index in operator.outputs if sources else ():
            passed[index] = common | {index}
    wanted = passed.get(graph.outputs[-1], frozenset()) - {graph.outputs[-1]}
    return [index for one in graph.operators for index in one.outputs if index in wanted]


def operations_before(graph: Graph, tensors: Iterable[int], entry: int = -1) -> list[Any]:
    """Return the operations that compute some tensors, from tensor `entry` on, in the order of execution."""
    wanted, found = {*tensors} - {entry}, []
    for operator in reversed(graph.operators):
        if not wanted.isdisjoint(operator.outputs):
            found.append(operator)
            wanted.update(index for index in operator.inputs if index != entry)
    return found[::-1]


def multiply_adds(graph: Graph, operator: Any) -> int:
    """Return the multiply-adds of one operation: those of kernels and matrices, and elementwise products."""
    kind, size = _KINDS.get(graph.kind(operator), "?"), math.prod(graph.shape(operator.outputs[0]))
    if kind in ("CONV_2D", "FULLY_CONNECTED"):
        return size * math.prod(graph.shape(operator.inputs[1])[1:])
    if kind == "DEPTHWISE_CONV_2D":
        return size * math.prod(graph.shape(operator.inputs[1])[1:3])
    if kind == "TRANSPOSE_CONV":
        weights = graph.shape(operator.inputs[1])
        return math.prod(graph.shape(operator.inputs[2])) * math.prod(weights[:3])
    if kind == "BATCH_MATMUL":
        left = graph.shape(operator.inputs[0])
        return size * left[-2 if operator.builtinOptions.adjX else -1]
    return size if kind == "MUL" else 0


def weighted_layers(content: bytes, tensors: Sequence[str]) -> list[int]:
    """Return the number of layers with weights up to each of some tensors, and of all."""
    model = load(content)
    graph = Graph(model, model.subgraphs[0])
    known = {graph.name(index): index for one in graph.operators for index in one.outputs}
    ends = [*(known[name] for name in tensors), graph.outputs[-1]]
    return [
        sum(_KINDS.get(graph.kind(one)) in _WEIGHTED for one in operations_before(graph, [end])) for end in ends
    ]
