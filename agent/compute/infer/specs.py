"""The tensors that go into and come out of a model file, without running it."""

from __future__ import annotations

from collections.abc import Iterable

from agent.compute.infer.structure import ModelFile, TensorInfo
from agent.compute.tensors import TensorSpec
from agent.errors import ModelError

Named = Iterable[tuple[str, TensorInfo]]


def specs(file: ModelFile, signature: str, path: str) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Inputs and outputs of a signature, or of the first graph for an empty name.

    Args:
        file: see `agent.compute.infer.modelfile`.
        signature: its name.
        path: of the file, for messages.

    Raises:
        ModelError: there is no such signature.
    """
    inputs, outputs = _named(file, signature, path)
    return tuple(_spec(*item) for item in inputs), tuple(_spec(*item) for item in outputs)


def _named(file: ModelFile, name: str, path: str) -> tuple[Named, Named]:
    if not name:
        graph = file.subgraphs[0]
        first, last = ([(graph.tensors[i].name, graph.tensors[i]) for i in s] for s in (graph.inputs, graph.outputs))
        return first, last
    for signature in file.signatures:
        if signature.name == name:
            tensors = file.subgraphs[signature.subgraph].tensors
            first, last = ([(n, tensors[i]) for n, i in s.items()] for s in (signature.inputs, signature.outputs))
            return first, last
    known = ", ".join(signature.name for signature in file.signatures) or "none"
    raise ModelError(f"{path}: no signature {name!r}; the file has: {known}")


def _spec(name: str, tensor: TensorInfo) -> TensorSpec:
    quantisation = tensor.quantisation
    shape = tuple(max(1, size) for size in tensor.shape)
    return TensorSpec(name, shape, tensor.dtype, quantisation.scale, quantisation.zero_point)
