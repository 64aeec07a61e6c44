"""Give every tensor of a graph a fixed shape, and replace what is computed from shapes alone by constants.

Converters leave the batch free, and have the network compute with its size. Kernels for integers, and rewrites,
need fixed shapes. The runtime finds them: the graph runs once on zeros.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from agent.compute.infer.session import SessionOptions
from agent.compute.infer.vetting import VETTING
from agent.compute.manifest import Manifest, Model
from agent.errors import ModelError
from agent.optimise.graph.objects import DTYPES, Graph, compact, dump, entry_numbers, graphs, load

_SHAPE = schema.BuiltinOperator.SHAPE
_WHOLE = (schema.TensorType.INT32, schema.TensorType.INT64, schema.TensorType.BOOL)
"""Types of what is folded: constants of floats may be larger than what they are computed from."""


def fix_shapes(content: bytes, shapes: Sequence[Sequence[int]] = ()) -> bytes:
    """Return a file whose first graph has fixed shapes; the same bytes if they are fixed already.

    Args:
        content: of a `.tflite` file. It runs in another process before it runs in this one.
        shapes: of the inputs, such as [1, 96, 96, 3]; none: a free batch is 1, and no other size may be free.

    Raises:
        ModelError: a size is free that `shapes` does not give, or the runtime cannot run the model.
    """
    model = load(content)
    graph = graphs(model)[0]
    computes = any(graph.kind(one) == _SHAPE for one in graph.operators)
    if not (computes or any(map(graph.is_open, range(len(graph.table.tensors))))):
        return content
    VETTING.check(Model(content, hashlib.sha256(content).hexdigest(), Manifest(), "the model"), SessionOptions())
    _run(content, graph, list(shapes) or [_stored(graph, index) for index in graph.inputs])
    others = set(entry_numbers(model)) - {0}  # variants; bodies of loops get their shapes from this graph
    for table in (one for number, one in enumerate(model.subgraphs) if number not in others):
        for tensor in table.tensors:
            tensor.shapeSignature = None
    compact(model)
    return dump(model)


def _stored(graph: Graph, index: int) -> list[int]:
    """Return the shape of an input with a batch of 1."""
    signature = graph.tensor(index).shapeSignature
    sizes = [int(size) for size in (graph.shape(index) if signature is None else signature)]
    if min(sizes[1:], default=0) < 0:
        shape = ", ".join("?" if size < 0 else str(size) for size in sizes)
        raise ModelError(f"{graph.name(index)!r} has the shape [{shape}]: convert the model with fixed sizes")
    return [abs(size) for size in sizes]


def _run(content: bytes, graph: Graph, shapes: Sequence[Sequence[int]]) -> None:
    """Run the graph once, write the shapes that are found into it, and fold what no input changes."""
    try:
        runner = Interpreter(
            model_content=content,
            experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
            experimental_preserve_all_tensors=True,
        )
        for index, shape in zip(graph.inputs, shapes, strict=True):
            runner.resize_tensor_input(index, shape)
        runner.allocate_tensors()
        for index, shape in zip(graph.inputs, shapes, strict=True):
            runner.set_tensor(index, np.zeros(shape, DTYPES[graph.tensor(index).type]))
        runner.invoke()
    except (ValueError, RuntimeError) as error:
        raise ModelError(f"the runtime cannot run it with inputs {list(map(list, shapes))}: {error}") from error
    found = {one["index"]: one["shape"] for one in runner.get_tensor_details()}
    for index, tensor in enumerate(graph.table.tensors):
        if tensor.shapeSignature is not None and index in found:
            tensor.shape = np.asarray(found[index], np.int32)
    kept: list[Any] = []
    for operator in graph.operators:
        known = [graph.constant(one) is not None for one in operator.inputs]
        is_known = graph.kind(operator) == _SHAPE or (bool(known) and all(known) and not graph.calls(operator))
        is_inner = all(graph.tensor(one).type in _WHOLE and one not in graph.outputs for one in operator.outputs)
        if not (is_known and is_inner):
            kept.append(operator)
            continue
        for index in operator.outputs:
            graph.set_constant(index, runner.get_tensor(index))
    graph.table.operators = kept
