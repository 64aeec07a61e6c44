"""What a `.tflite` file says about itself, as frozen structs; `agent.compute.infer.modelfile` reads them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

from msgspec import Struct

from agent.compute.tensors import TensorSpec
from agent.errors import ModelError

CUSTOM = "CUSTOM"
POSTPROCESS = "TFLite_Detection_PostProcess"
_FOUND = ((1, -1, 4), (1, -1), (1, -1), (1,))
"""Shapes of its outputs: boxes, classes, scores, count. Its file mostly leaves them empty: the operation has the
number of boxes among its options."""
_MULTIPLY = {
    "BATCH_MATMUL",
    "BIDIRECTIONAL_SEQUENCE_LSTM",
    "BIDIRECTIONAL_SEQUENCE_RNN",
    "CONV_2D",
    "CONV_3D",
    "DEPTHWISE_CONV_2D",
    "FULLY_CONNECTED",
    "LSTM",
    "RNN",
    "SVDF",
    "TRANSPOSE_CONV",
    "UNIDIRECTIONAL_SEQUENCE_LSTM",
    "UNIDIRECTIONAL_SEQUENCE_RNN",
}
"""Operations with kernels for float activations and integer weights; others only move or widen integers."""
_INTEGERS = frozenset({"int8", "uint8", "int4", "int2", "uint4"})
_ITEM_BYTES = {
    **dict.fromkeys(("bool", "int8", "uint8"), 1),
    **dict.fromkeys(("bfloat16", "float16", "int16", "uint16"), 2),
    **dict.fromkeys(("float32", "int32", "uint32"), 4),
    **dict.fromkeys(("complex64", "float64", "int64", "uint64"), 8),
    "complex128": 16,
}


class Quantisation(Struct, frozen=True):
    """How integers stand for reals.

    Attributes:
        kind: `tensor`: one scale; `channel`: one per slice of `dimension`; `block`: one per `block` values.
        scales, zero_points: how many of each; equal in a sound file.
        scale, zero_point: the first.
        dimension: that the scales of `channel` belong to.
        block: values per scale of `block`.
    """

    kind: Literal["none", "tensor", "channel", "block"] = "none"
    scales: int = 0
    zero_points: int = 0
    scale: float = 0.0
    zero_point: int = 0
    dimension: int = 0
    block: int = 0


class TensorInfo(Struct, frozen=True):
    """One tensor.

    Attributes:
        name: may be empty.
        shape: sizes that the runtime begins with; -1 where the file does not say them.
        dtype: numpy name, or `int4`, `string` …
        buffer: index of its bytes; 0 for none.
        size: bytes of its constant value, 0 when it is computed.
        quantisation: see `Quantisation`.
        open: whether a size, such as the batch, may be another at each inference.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    buffer: int
    size: int
    quantisation: Quantisation
    open: bool = False


class Operation(Struct, frozen=True):
    """One operation.

    Attributes:
        name: of the builtin, such as `CONV_2D`, or `CUSTOM`.
        custom: code of a custom operation.
        version: of the kernel that it needs.
        inputs, outputs: tensor indices; -1 for an optional input that is left out.
    """

    name: str
    custom: str
    version: int
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


class Subgraph(Struct, frozen=True):
    """One graph of a file: tensors, operations, and indices of the tensors that go in and out."""

    name: str
    tensors: tuple[TensorInfo, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    operations: tuple[Operation, ...]


class Signature(Struct, frozen=True):
    """A named way into a subgraph; its inputs and outputs map names to tensor indices."""

    name: str
    subgraph: int
    inputs: dict[str, int]
    outputs: dict[str, int]


class ModelFile(Struct, frozen=True):
    """What a `.tflite` file says about itself.

    Attributes:
        size: bytes of the file.
        version: of the schema, 3 in every file of today.
        description: as the converter wrote it.
        subgraphs, signatures: see each.
        metadata: names of the metadata buffers.
        weights: bytes of constants by dtype, shared ones once.
    """

    size: int
    version: int
    description: str
    subgraphs: tuple[Subgraph, ...]
    signatures: tuple[Signature, ...]
    metadata: tuple[str, ...]
    weights: dict[str, int]

    def steps(self) -> Iterator[tuple[Subgraph, Operation]]:
        """Every operation with its subgraph."""
        for graph in self.subgraphs:
            for operation in graph.operations:
                yield graph, operation

    def ends(self, signature: str = "") -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        """Inputs and outputs as a backend would show them, as far as the file tells; a size of -1 is not known.

        Args:
            signature: that names them; empty: the first graph, whose tensors have names of their own.

        Raises:
            ModelError: there is no such signature.
        """
        graph = self.graph(signature)
        if not signature:
            inputs = {graph.tensors[i].name: i for i in graph.inputs}
            outputs = {graph.tensors[i].name: i for i in graph.outputs}
            return _specs(graph, inputs), _specs(graph, outputs)
        known = next(known for known in self.signatures if known.name == signature)
        # Backends keep signatures in sorted maps: so does this, whatever the file's order.
        inputs, outputs = dict(sorted(known.inputs.items())), dict(sorted(known.outputs.items()))
        return _specs(graph, inputs), _specs(graph, outputs)

    def output_tensors(self, signature: str = "") -> tuple[int, ...]:
        """Indices of the outputs in the graph, in the order of `ends`.

        Raises:
            ModelError: there is no such signature.
        """
        graph = self.graph(signature)
        if not signature:
            return tuple({graph.tensors[i].name: i for i in graph.outputs}.values())
        known = next(known for known in self.signatures if known.name == signature)
        return tuple(index for _, index in sorted(known.outputs.items()))

    def graph(self, signature: str = "") -> Subgraph:
        """The graph of a signature; the first for an empty name.

        Raises:
            ModelError: there is no such signature.
        """
        if not signature:
            return self.subgraphs[0]
        for known in self.signatures:
            if known.name == signature:
                return self.subgraphs[known.subgraph]
        names = ", ".join(known.name for known in self.signatures) or "none"
        raise ModelError(f"the model file has no signature {signature!r}; it has: {names}")

    @property
    def least_memory(self) -> int:
        """Bytes that computed tensors take at the least while it runs: those of the largest step."""
        return max((_bytes(graph, operation) for graph, operation in self.steps()), default=0)

    @property
    def int4(self) -> bool:
        """Whether a tensor is of 4-bit integers."""
        return any(t.dtype == "int4" for graph in self.subgraphs for t in graph.tensors)

    @property
    def dynamic_range(self) -> bool:
        """Whether an operation multiplies float activations with integer weights."""
        return any(_hybrid(graph, operation) for graph, operation in self.steps())

    @property
    def custom(self) -> tuple[str, ...]:
        """Codes of the custom operations, each once."""
        return tuple(dict.fromkeys(op.custom for _, op in self.steps() if op.name == CUSTOM))


def _bytes(graph: Subgraph, operation: Operation) -> int:
    """Memory of the computed tensors of a step, as far as the file tells their shapes and types."""
    tensors = (graph.tensors[i] for i in {*operation.inputs, *operation.outputs} if i >= 0)
    return sum(
        math.prod(tensor.shape) * _ITEM_BYTES.get(tensor.dtype, 0)
        for tensor in tensors
        if not tensor.size and min(tensor.shape, default=0) >= 0
    )


def _specs(graph: Subgraph, names: dict[str, int]) -> tuple[TensorSpec, ...]:
    found = {
        index: shape
        for operation in graph.operations
        if operation.custom == POSTPROCESS
        for index, shape in zip(operation.outputs, _FOUND, strict=False)
    }
    tensors = ((name, graph.tensors[i], found.get(i)) for name, i in names.items())
    return tuple(
        TensorSpec(
            name, shape or tensor.shape, tensor.dtype, tensor.quantisation.scale, tensor.quantisation.zero_point
        )
        for name, tensor, shape in tensors
    )


def _hybrid(graph: Subgraph, operation: Operation) -> bool:
    there = [graph.tensors[i] for i in operation.inputs if i >= 0]
    if operation.name not in _MULTIPLY or not there:
        return False
    first, *rest = there
    return first.dtype == "float32" and any(t.size and t.dtype in _INTEGERS for t in rest)
