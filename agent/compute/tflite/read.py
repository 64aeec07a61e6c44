"""Reads a `.tflite` file without running it. Nothing in the file is trusted.

Slot numbers are those of the public schema, tensorflow/compiler/mlir/lite/schema/schema.fbs in
tensorflow/tensorflow, and of its successor in google-ai-edge/LiteRT for blockwise quantisation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from agent.compute.flatbuffer import Source, Table
from agent.compute.infer.operators import OPERATORS, TYPES
from agent.compute.infer.refusals import Runtime, diagnose, refusals
from agent.compute.infer.structure import (
    CUSTOM,
    ModelFile,
    Operation,
    Quantisation,
    Signature,
    Subgraph,
    TensorInfo,
)
from agent.errors import ModelError

__all__ = ["ModelFile", "Runtime", "diagnose", "read_modelfile", "refusals"]

_BLOCKWISE = 2


def read_modelfile(content: bytes) -> ModelFile:
    """Read a file. Nothing in it is trusted.

    Raises:
        ModelError: it is no TFLite model, or damaged.
    """
    if complaint := diagnose(content):
        raise ModelError(complaint)
    source = Source(content, "the model file")
    root = source.root()
    sizes = [_buffer_size(source, buffer) for buffer in root.tables(4)]
    codes = [_code(code) for code in root.tables(1)]
    graphs = tuple(_subgraph(graph, codes, sizes) for graph in root.tables(2))
    if not graphs:
        raise ModelError("the model file has no graph: it is damaged, or only metadata")
    signatures = tuple(_signature(signature, graphs) for signature in root.tables(7))
    names = tuple(note.string(0) for note in root.tables(6))
    return ModelFile(len(content), root.u32(0), root.string(3), graphs, signatures, names, _weights(graphs))


def _buffer_size(source: Source, buffer: Table) -> int:
    """Bytes of a constant. Those of files beyond 2 GB lie behind the flatbuffer, at an offset of the file."""
    offset, size = buffer.u64(1), buffer.u64(2)
    if offset > 1:
        source.check(offset, size)
        return size
    return buffer.length(0)


class _Code(NamedTuple):
    """A kind of operation: builtin name, custom code, version."""

    name: str
    custom: str
    version: int


def _code(table: Table) -> _Code:
    # Codes below 127 are in the first field for old readers' sake, and in old files only there.
    number = max(table.i8(0), table.i32(3))
    name = OPERATORS[number] if 0 <= number < len(OPERATORS) else f"#{number}"
    return _Code(name, table.string(1) if name == CUSTOM else "", table.i32(2, 1))


def _subgraph(table: Table, codes: Sequence[_Code], sizes: Sequence[int]) -> Subgraph:
    tensors = tuple(_tensor(tensor, sizes) for tensor in table.tables(0))
    count = len(tensors)
    operations = tuple(_operation(operation, codes, count) for operation in table.tables(3))
    return Subgraph(table.string(4), tensors, _indices(table, 1, count), _indices(table, 2, count), operations)


def _tensor(table: Table, sizes: Sequence[int]) -> TensorInfo:
    # The runtime goes by the first; the second says which of these sizes callers may change.
    shape, signature = _numbers(table, 0), _numbers(table, 7)
    kind, buffer = table.i8(1), table.u32(2)
    return TensorInfo(
        table.string(3),
        shape,
        TYPES[kind] if 0 <= kind < len(TYPES) else f"#{kind}",
        buffer,
        sizes[_index(buffer, len(sizes), "buffer")] if buffer else 0,
        _quantisation(table.table(4)),
        -1 in (*shape, *signature),
    )


def _quantisation(table: Table | None) -> Quantisation:
    if table is None:
        return Quantisation()
    if table.u8(4) == _BLOCKWISE and (details := table.table(5)):
        return Quantisation("block", block=details.i32(2))
    scales, points = table.array(2, "<f4"), table.array(3, "<i8")
    if not scales.size:
        return Quantisation()
    return Quantisation(
        "channel" if scales.size > 1 else "tensor",
        scales.size,
        points.size,
        float(scales[0]),
        int(points[0]) if points.size else 0,
        table.i32(6),
    )


def _operation(table: Table, codes: Sequence[_Code], tensors: int) -> Operation:
    code = codes[_index(table.u32(0), len(codes), "kind of operation")]
    return Operation(*code, _indices(table, 1, tensors, optional=True), _indices(table, 2, tensors))


def _signature(table: Table, graphs: Sequence[Subgraph]) -> Signature:
    number = _index(table.u32(4), len(graphs), "graph")
    count = len(graphs[number].tensors)
    inputs, outputs = (
        {item.string(0): _index(item.u32(1), count, "tensor") for item in table.tables(slot)} for slot in (0, 1)
    )
    return Signature(table.string(2), number, inputs, outputs)


def _weights(graphs: Sequence[Subgraph]) -> dict[str, int]:
    constants = {t.buffer: t for graph in reversed(graphs) for t in reversed(graph.tensors) if t.size}
    weights: dict[str, int] = {}
    for tensor in constants.values():
        weights[tensor.dtype] = weights.get(tensor.dtype, 0) + tensor.size
    return weights


def _numbers(table: Table, slot: int) -> tuple[int, ...]:
    return tuple(table.array(slot, "<i4").tolist())


def _indices(table: Table, slot: int, count: int, *, optional: bool = False) -> tuple[int, ...]:
    numbers = _numbers(table, slot)
    for number in numbers:
        if number != -1 or not optional:
            _index(number, count, "tensor")
    return numbers


def _index(number: int, count: int, what: str) -> int:
    if not 0 <= number < count:
        raise ModelError(f"the model file is damaged: it names {what} {number} of {count}")
    return number
