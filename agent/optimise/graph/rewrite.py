"""Rewrites of a `.tflite` graph that keep its answers: fewer operations, and operations with fast kernels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from agent.compute.tflite.read import read_modelfile
from agent.errors import ModelError
from agent.optimise.graph.fusion import fuse_activations, fuse_batch_norm
from agent.optimise.graph.identities import remove_identities
from agent.optimise.graph.objects import DAMAGE, Graph, compact, dump, graphs, load
from agent.optimise.graph.padding import fuse_padding, pool_first
from agent.optimise.graph.transposes import cancel_transposes

_OPERATORS = schema.BuiltinOperator
_INTEGERS = (schema.TensorType.INT8, schema.TensorType.UINT8, schema.TensorType.INT16)
_FULLY_CONNECTED_INT4 = 12
"""Version of FULLY_CONNECTED with INT4 weights of one scale per channel."""


def connect_points(graph: Graph) -> int:
    """Turn 1×1 convolutions with INT4 weights into FULLY_CONNECTED, which has fast INT4 kernels.

    The number of input channels has to be even, as these kernels need.
    """
    points = [one for one in graph.operators if graph.kind(one) == _OPERATORS.CONV_2D and _is_point(graph, one)]
    for operator in points:
        shape = graph.shape(operator.inputs[1])
        flat = np.array([shape[0], shape[3]], np.int32)
        operator.inputs[1] = graph.add_tensor(operator.inputs[1], shape=flat, shapeSignature=None)
        connected = schema.FullyConnectedOptionsT()
        connected.keepNumDims = True
        connected.fusedActivationFunction = operator.builtinOptions.fusedActivationFunction
        operator.opcodeIndex = graph.code(_OPERATORS.FULLY_CONNECTED, _FULLY_CONNECTED_INT4)
        operator.builtinOptions = connected
        operator.builtinOptionsType = schema.BuiltinOptions.FullyConnectedOptions
    return len(points)


def _is_point(graph: Graph, operator: Any) -> bool:
    weights, options = operator.inputs[1], operator.builtinOptions
    shape, source = graph.shape(weights), graph.shape(operator.inputs[0])
    is_small = graph.tensor(weights).type == schema.TensorType.INT4 and shape[1:3] == (1, 1) and shape[3] % 2 == 0
    return is_small and options.strideW == options.strideH == 1 and source[-1:] == shape[3:]


def use_integer_ends(graph: Graph) -> int:
    """Take integers where a float input is quantised at once; give them where an output is dequantised last."""
    if graph.is_called():
        return 0
    return sum(_open(graph, one) or _close(graph, one) for one in list(graph.operators))


def _open(graph: Graph, operator: Any) -> bool:
    if graph.kind(operator) != _OPERATORS.QUANTIZE:
        return False
    source, result = operator.inputs[0], operator.outputs[0]
    is_alone = source in graph.inputs and source not in graph.outputs and len(graph.readers(source)) == 1
    if not is_alone or graph.is_end(result) or graph.tensor(source).type != schema.TensorType.FLOAT32:
        return False
    graph.replace_end(source, result)
    graph.remove(operator, result)
    return True


def _close(graph: Graph, operator: Any) -> bool:
    if graph.kind(operator) != _OPERATORS.DEQUANTIZE:
        return False
    source, result = operator.inputs[0], operator.outputs[0]
    is_last = result in graph.outputs and not graph.readers(result) and not graph.is_end(source)
    if not is_last or graph.tensor(source).type not in _INTEGERS or graph.producer(source) is None:
        return False
    graph.replace_end(result, source)
    graph.remove(operator, source)
    return True


REWRITES: Mapping[str, Callable[[Graph], int]] = {
    "identities": remove_identities,
    "transposes": cancel_transposes,
    "batch-norm": fuse_batch_norm,
    "activations": fuse_activations,
    "pool-first": pool_first,
    "padding": fuse_padding,
    "integer-ends": use_integer_ends,
    "points": connect_points,
}
"""By name, in the order in which they are applied."""


def rewrite(content: bytes, names: Iterable[str] = tuple(REWRITES)) -> tuple[bytes, dict[str, int]]:
    """Rewrite all graphs of a model until nothing changes any more.

    Args:
        content: of a `.tflite` file.
        names: of `REWRITES`.

    Returns:
        The new file, or the same bytes if nothing applied; and how often each rewrite did.

    Raises:
        ModelError: the file is damaged, or has custom operations or shapes that may change at run time.
    """
    check(content)
    try:
        with np.errstate(all="ignore"):  # weights may overflow: then the answers differ, and are compared
            return _rewrite(content, names)
    except DAMAGE as error:
        raise ModelError(f"cannot be rewritten, since its parts do not fit together: {error}") from error


def _rewrite(content: bytes, names: Iterable[str]) -> tuple[bytes, dict[str, int]]:
    model, counts = load(content), dict.fromkeys(names, 0)
    while found := {name: sum(map(REWRITES[name], graphs(model))) for name in counts}:
        if not any(found.values()):
            break
        counts = {name: counts[name] + found[name] for name in counts}
    if not any(counts.values()):
        return content, counts
    compact(model)
    return dump(model), counts


def check(content: bytes, done: str = "rewritten") -> None:
    """Check that a model can be rewritten.

    Args:
        content: of a `.tflite` file.
        done: what is to be done with it, for messages.

    Raises:
        ModelError: the file is damaged, or has custom operations or shapes that may change at run time.
    """
    file = read_modelfile(content)
    if custom := sorted({operation.custom for _, operation in file.steps() if operation.custom}):
        raise ModelError(
            f"has custom operations ({', '.join(custom)}), whose meaning is not known: nothing can be {done}"
        )
    for graph in file.subgraphs:
        for index in (*graph.inputs, *graph.outputs):
            if graph.tensors[index].open:
                name = graph.tensors[index].name
                raise ModelError(f"{name!r} has a shape that may change: convert the model with fixed shapes")
