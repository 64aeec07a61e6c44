"""What a graph costs: its multiply-adds, read off the shapes of its tensors."""

from __future__ import annotations

import math

from agent.compute.infer.structure import ModelFile, Operation, Subgraph

_WEIGHTED = {"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"}
"""Operations whose every output is a sum over one slice of the weights."""


def multiply_adds(file: ModelFile, signature: str = "") -> int:
    """Multiply-adds of one graph: those of convolutions and matrix products, beside which the others are few.

    Args:
        file: the model.
        signature: of the graph; empty: the first.

    Raises:
        ModelError: there is no such signature.
    """
    graph = file.graph(signature)
    return sum(multiply_adds_of(graph, operation) for operation in graph.operations)


def multiply_adds_of(graph: Subgraph, operation: Operation) -> int:
    """Multiply-adds of one operation of a graph; 0 where they are few, or cannot be told."""
    shapes = [graph.tensors[i].shape if i >= 0 else () for i in operation.inputs]
    out = graph.tensors[operation.outputs[0]].shape if operation.outputs else ()
    if operation.name in _WEIGHTED and len(shapes) > 1 and out:
        return _size(out) * _size(shapes[1]) // max(1, out[-1])
    if operation.name == "TRANSPOSE_CONV" and len(shapes) > 2 and shapes[2]:
        return _size(shapes[2]) * _size(shapes[1]) // max(1, shapes[2][-1])
    if operation.name == "BATCH_MATMUL" and shapes and shapes[0]:
        return _size(out) * shapes[0][-1]
    return 0


def _size(shape: tuple[int, ...]) -> int:
    """Elements of a tensor; a size that is only known at run time counts as one."""
    return math.prod(max(1, size) for size in shape)
