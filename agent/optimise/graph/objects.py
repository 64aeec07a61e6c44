"""The object form of a `.tflite` file, and questions about its graphs.

The classes are those that ai-edge-litert generates from the schema. Source of names and layouts:
tensorflow/tensorflow, tensorflow/compiler/mlir/lite/schema/schema.fbs.
"""

from __future__ import annotations

import copy
import io
import struct
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from agent.compute.tflite.expand import unpack_int4
from agent.compute.tflite.read import read_modelfile
from agent.errors import ModelError

_ALIGNMENT = 16
"""Of constants in the file, bytes: `force_align` of the schema's Buffer.data, which its own packer forgets."""
_TYPES = schema.TensorType
DTYPES = {
    _TYPES.FLOAT32: "<f4",
    _TYPES.FLOAT16: "<f2",
    _TYPES.FLOAT64: "<f8",
    _TYPES.INT8: "i1",
    _TYPES.INT16: "<i2",
    _TYPES.INT32: "<i4",
    _TYPES.INT64: "<i8",
    _TYPES.UINT8: "u1",
    _TYPES.BOOL: "?",
}
"""numpy's name by `TensorType`. INT4, two values in a byte, is read as int8."""
_METADATA = -1
"""In place of a `TensorType`."""
DAMAGE = (struct.error, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, MemoryError)
"""Errors of code that meets numbers which cannot be right, such as a shape of more values than there are."""
_CALLING = {"IF", "WHILE", "CALL", "CALL_ONCE", "STABLEHLO_COMPOSITE", "STABLEHLO_WHILE", "STABLEHLO_REDUCE"}
_CALLS = {getattr(schema.BuiltinOperator, name) for name in _CALLING if hasattr(schema.BuiltinOperator, name)}


def load(content: bytes) -> Any:
    """Return the object form (`ModelT`) of a file. Constants behind the flatbuffer are read in.

    Inputs and outputs of operators and graphs are lists, and constants uint8 arrays. Files that TFLite Metadata
    has attached are kept as `attached`.

    Raises:
        ModelError: the file is damaged, or no `.tflite` file.
    """
    read_modelfile(content)
    try:
        model = schema.ModelT.InitFromPackedBuf(content, 0)
        model.operatorCodes = model.operatorCodes or []
        for buffer in model.buffers:
            if buffer.offset > 1:
                buffer.data = np.frombuffer(content[buffer.offset : buffer.offset + buffer.size], np.uint8)
            buffer.offset = buffer.size = 0
        for graph in model.subgraphs:
            graph.tensors, graph.operators = graph.tensors or [], graph.operators or []
            for table in (graph, *graph.operators):
                table.inputs, table.outputs = _numbers(table.inputs), _numbers(table.outputs)
        model.attached = _attached(content)
    except DAMAGE as error:
        raise ModelError(f"the model file is damaged: {error}") from error
    return model


def _attached(content: bytes) -> bytes:
    """Return the files of TFLite Metadata, such as labels: a zip archive behind the model; empty: no files."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            return content[min((one.header_offset for one in archive.infolist()), default=len(content)) :]
    except zipfile.BadZipFile:
        return b""


def _numbers(values: Sequence[int] | None) -> list[int]:
    return [] if values is None else [int(value) for value in values]


class _AlignedBuffer:
    """Packs a buffer with its bytes at a multiple of `_ALIGNMENT`."""

    def __init__(self, buffer: Any) -> None:
        self._data = None if buffer.data is None else np.asarray(_as_array(buffer.data), np.uint8).tobytes()
        self._offset = 0

    def write_data(self, builder: Any) -> None:
        """Write the bytes now; what is written first lies at the end of the file."""
        if self._data is not None and not self._offset:
            builder.StartVector(1, len(self._data), _ALIGNMENT)
            builder.head -= len(self._data)
            builder.Bytes[builder.head : builder.head + len(self._data)] = self._data
            self._offset = int(builder.EndVector())

    def Pack(self, builder: Any) -> int:  # noqa: N802 - the generated packer calls it by this name
        self.write_data(builder)
        schema.BufferStart(builder)
        if self._offset:
            schema.BufferAddData(builder, self._offset)
        return int(schema.BufferEnd(builder))


def _as_array(data: Any) -> Any:
    return np.frombuffer(data, np.uint8) if isinstance(data, bytes | bytearray | memoryview) else data


class _SharedTable:
    """Packs a table once for all tables that point to it."""

    def __init__(self, table: Any) -> None:
        self._table, self._offset = table, 0

    def Pack(self, builder: Any) -> int:  # noqa: N802 - the generated packer calls it by this name
        self._offset = self._offset or int(self._table.Pack(builder))
        return self._offset


def dump(model: Any) -> bytes:
    """Return the file of a model in object form. The model is not changed.

    Constants are aligned to 16 bytes. INT4 ones lie at the end, where `expand_int4` can leave them out.
    Quantisations that are equal are stored once: graphs of several input sizes have the same scales, which else
    take a tenth of the file.
    """
    packed, shared = copy.copy(model), dict[tuple[Any, ...], _SharedTable]()
    packed.buffers = [_AlignedBuffer(buffer) for buffer in model.buffers]
    packed.subgraphs = [copy.copy(graph) for graph in model.subgraphs]
    for graph in packed.subgraphs:
        graph.tensors = [copy.copy(tensor) for tensor in graph.tensors]
        for tensor in graph.tensors:
            if tensor.quantization is not None:
                key = _content(tensor.quantization)
                tensor.quantization = shared.setdefault(key, _SharedTable(tensor.quantization))
    builder = flatbuffers.Builder(1 << 20)
    tensors = (tensor for graph in model.subgraphs for tensor in graph.tensors)
    for index in sorted({tensor.buffer for tensor in tensors if tensor.type == _TYPES.INT4}):
        packed.buffers[index].write_data(builder)
    builder.Finish(packed.Pack(builder), b"TFL3")
    return bytes(builder.Output()) + getattr(model, "attached", b"")


def _content(table: Any) -> tuple[Any, ...]:
    """Return what tells a quantisation from others."""
    if table.details is not None:
        return (id(table),)
    vectors = (table.min, table.max, table.scale, table.zeroPoint)
    return (*(None if one is None else np.asarray(one).tobytes() for one in vectors), table.quantizedDimension)


def compact(model: Any, *, merge: bool = True) -> None:
    """Drop unused tensors, operator codes and buffers; merge buffers of equal bytes. The rest is renumbered.

    Args:
        model: in object form.
        merge: False: buffers of equal bytes stay apart, such as biases that a training will change.
    """
    for number, graph in enumerate(model.subgraphs):
        _drop_tensors(model, number, graph)
    operators = [operator for graph in model.subgraphs for operator in graph.operators]
    used = sorted({operator.opcodeIndex for operator in operators})
    model.operatorCodes = [model.operatorCodes[index] for index in used]
    for operator in operators:
        operator.opcodeIndex = used.index(operator.opcodeIndex)
    _collect_buffers(model, merge=merge)


def _drop_tensors(model: Any, number: int, graph: Any) -> None:
    tables = [graph, *graph.operators]
    ends = [
        end for known in _signatures(model, number) for end in (*(known.inputs or ()), *(known.outputs or ()))
    ]
    used = {end.tensorIndex for end in ends} | {i for one in tables for i in (*one.inputs, *one.outputs)}
    inner = [one for one in graph.operators if one.intermediates is not None]
    kept = sorted((used | {int(i) for one in inner for i in one.intermediates}) - {-1})
    numbers = {old: new for new, old in enumerate(kept)} | {-1: -1}
    graph.tensors = [graph.tensors[index] for index in kept]
    for one in tables:
        one.inputs, one.outputs = [numbers[i] for i in one.inputs], [numbers[i] for i in one.outputs]
    for one in inner:
        one.intermediates = [numbers[int(i)] for i in one.intermediates]
    for end in ends:
        end.tensorIndex = numbers[end.tensorIndex]


def _collect_buffers(model: Any, *, merge: bool) -> None:
    """Drop unused buffers. Merged is what tensors of one type have: weights of one type may be expanded."""
    kept: list[Any] = [schema.BufferT()]
    numbers: dict[tuple[int, int, bytes], int] = {}

    def number(old: int, kind: int) -> int:
        data = model.buffers[old].data
        content = b"" if data is None else np.asarray(_as_array(data), np.uint8).tobytes()
        key = (kind, 0 if merge else old, content)
        if content and key not in numbers:
            numbers[key] = len(kept)
            kept.append(model.buffers[old])
        return numbers.get(key, 0)

    for tensor in (one for graph in model.subgraphs for one in graph.tensors):
        tensor.buffer = number(tensor.buffer, tensor.type)
    for one in model.metadata or ():
        one.buffer = number(one.buffer, _METADATA)
    if model.metadataBuffer is not None:
        model.metadataBuffer = [number(int(index), _METADATA) for index in model.metadataBuffer]
    model.buffers = kept


def _signatures(model: Any, number: int) -> Iterator[Any]:
    """Yield the signatures of a graph."""
    for signature in model.signatureDefs or ():
        if signature.subgraphIndex == number:
            yield signature


def text(name: bytes | str | None) -> str:
    """Return a name of the object form as a string."""
    return name.decode(errors="replace") if isinstance(name, bytes) else name or ""


def graphs(model: Any) -> list[Graph]:
    """Return all graphs of a model, in the file's order."""
    return [Graph(model, graph) for graph in model.subgraphs]


def entry_numbers(model: Any) -> list[int]:
    """Return the graphs that a caller runs: the first, and those with a signature. Others are bodies of loops."""
    return sorted({0, *(one.subgraphIndex for one in model.signatureDefs or ())})


class Graph:
    """One graph of a model in object form: questions about it, and changes that keep it whole.

    Tensors are named by their index, as in the file; operators are the objects (`OperatorT`).

    Attributes:
        model: the whole (`ModelT`).
        table: the graph in it (`SubGraphT`).
    """

    def __init__(self, model: Any, table: Any) -> None:
        self.model, self.table = model, table

    @property
    def number(self) -> int:
        """Index of the graph in its model."""
        return next(number for number, table in enumerate(self.model.subgraphs) if table is self.table)

    @property
    def operators(self) -> list[Any]:
        """All operators, in the order in which they run."""
        operators: list[Any] = self.table.operators
        return operators

    @property
    def inputs(self) -> list[int]:
        """Tensors that the caller writes."""
        inputs: list[int] = self.table.inputs
        return inputs

    @property
    def outputs(self) -> list[int]:
        """Tensors that the caller reads."""
        outputs: list[int] = self.table.outputs
        return outputs

    def kind(self, operator: Any) -> int:
        """Return the `BuiltinOperator` of an operator."""
        code = self.model.operatorCodes[operator.opcodeIndex]
        return max(int(code.builtinCode), int(code.deprecatedBuiltinCode))

    def tensor(self, index: int) -> Any:
        """Return a tensor's table (`TensorT`)."""
        return self.table.tensors[index]

    def name(self, index: int) -> str:
        """Return a tensor's name."""
        return text(self.tensor(index).name)

    def shape(self, index: int) -> tuple[int, ...]:
        """Return a tensor's sizes; () for a scalar and for a tensor of unknown shape."""
        shape = self.tensor(index).shape
        return () if shape is None else tuple(map(int, shape))

    def is_open(self, index: int) -> bool:
        """Return True if a size of the tensor, such as the batch, may change at each inference."""
        signature = self.tensor(index).shapeSignature
        return signature is not None and any(int(size) < 0 for size in signature)

    def producer(self, index: int) -> Any | None:
        """Return the operator that computes a tensor; None: an input, a constant or a variable."""
        return next((one for one in self.operators if index in one.outputs), None)

    def readers(self, index: int) -> list[Any]:
        """Return the operators that read a tensor."""
        return [one for one in self.operators if index in one.inputs]

    def is_end(self, index: int) -> bool:
        """Return True for an input or output of the graph."""
        return index in self.inputs or index in self.outputs

    def is_inner(self, index: int) -> bool:
        """Return True for a tensor that one operation reads once, and no caller."""
        return not self.is_end(index) and sum(one.inputs.count(index) for one in self.operators) == 1

    def is_called(self) -> bool:
        """Return True if an operator such as WHILE may call this graph: its ends then have to stay."""
        return any(one.calls(operator) for one in graphs(self.model) for operator in one.operators)

    def calls(self, operator: Any) -> bool:
        """Return True if an operator runs another graph of the model, such as the body of a loop."""
        return self.kind(operator) in _CALLS

    def constant(self, index: int) -> NDArray[Any] | None:
        """Return the stored value of a constant, INT4 as int8; None: it is computed, or of another type."""
        if index < 0:
            return None
        tensor, shape = self.tensor(index), self.shape(index)
        data = self.model.buffers[tensor.buffer].data if tensor.buffer else None
        if data is None:
            return None
        raw = np.asarray(_as_array(data), np.uint8).tobytes()
        if tensor.type == _TYPES.INT4:
            return unpack_int4(raw, int(np.prod(shape, dtype=np.int64))).reshape(shape)
        return np.frombuffer(raw, DTYPES[tensor.type]).reshape(shape) if tensor.type in DTYPES else None

    def add_tensor(self, like: int, **changes: Any) -> int:
        """Add a tensor that is another one's copy but for some attributes of `TensorT`, and return its index."""
        added = copy.deepcopy(self.tensor(like))
        for name, value in changes.items():
            setattr(added, name, value)
        self.table.tensors.append(added)
        return len(self.table.tensors) - 1

    def add_constant(self, like: int, value: NDArray[Any]) -> int:
        """Add a constant with a tensor's name, type and quantisation, and return its index.

        Args:
            like: index of the tensor.
            value: of that type, of any shape; INT4 as int8.
        """
        index = self.add_tensor(like, shapeSignature=None)
        self.set_constant(index, value)
        return index

    def set_constant(self, index: int, value: NDArray[Any]) -> None:
        """Make a tensor a constant: a value of its type, of any shape; INT4 as int8."""
        stored = schema.BufferT()
        stored.data = np.frombuffer(np.ascontiguousarray(value).tobytes(), np.uint8)
        if self.tensor(index).type == _TYPES.INT4:
            stored.data = pack_int4(value.astype(np.int8))
        self.model.buffers.append(stored)
        self.tensor(index).buffer = len(self.model.buffers) - 1
        self.tensor(index).shape = np.array(value.shape, np.int32)

    def remove(self, operator: Any, kept: int) -> None:
        """Remove an operation of one output; those that read it read `kept` instead."""
        gone = operator.outputs[0]
        self.table.operators = [one for one in self.operators if one is not operator]
        for one in self.operators:
            one.inputs = [kept if index == gone else index for index in one.inputs]

    def insert(self, operator: Any, behind: Any) -> None:
        """Insert an operation behind another one."""
        self.operators.insert(next(n for n, one in enumerate(self.operators) if one is behind) + 1, operator)

    def replace_end(self, old: int, new: int) -> None:
        """Make another tensor the input or output of the graph and of its signatures, under the old name."""
        self.tensor(new).name, self.tensor(old).name = self.tensor(old).name, self.tensor(new).name
        self.table.inputs = [new if index == old else index for index in self.inputs]
        self.table.outputs = [new if index == old else index for index in self.outputs]
        for signature in _signatures(self.model, self.number):
            for end in (*(signature.inputs or ()), *(signature.outputs or ())):
                end.tensorIndex = new if end.tensorIndex == old else end.tensorIndex

    def code(self, kind: int, version: int) -> int:
        """Return the index of an operator code of that version or a later one; it is added if there is none."""
        codes = self.model.operatorCodes
        for index, code in enumerate(codes):
            if max(int(code.builtinCode), int(code.deprecatedBuiltinCode)) == kind and code.version >= version:
                return index
        added = schema.OperatorCodeT()
        added.builtinCode, added.deprecatedBuiltinCode, added.version = kind, min(kind, 127), version
        codes.append(added)
        return len(codes) - 1


def pack_int4(values: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Return INT4 values as they are stored: two in a byte, the first in its low half; row after row.

    Args:
        values: -8 to 7, of any shape.
    """
    flat = np.append(values.reshape(-1), np.zeros(values.size % 2, np.int8))
    return ((flat[0::2] & 15) | ((flat[1::2] & 15) << 4)).astype(np.uint8)


def input_names(model: Any, graph: Graph) -> list[str]:
    """Return the names of the inputs of a graph, in its signature if it has one."""
    stated = {
        end.tensorIndex: text(end.name)
        for one in model.signatureDefs or ()
        if one.subgraphIndex == graph.number
        for end in one.inputs or ()
    }
    return [stated.get(index) or graph.name(index) for index in graph.inputs]


def make_signature(name: str, number: int, inputs: Mapping[str, int], outputs: Mapping[str, int]) -> Any:
    """Return a signature (`SignatureDefT`) of subgraph `number`, from names to tensors."""
    made = schema.SignatureDefT()
    made.signatureKey, made.subgraphIndex = name, number
    made.inputs, made.outputs = ([_end(*one) for one in ends.items()] for ends in (inputs, outputs))
    return made


def _end(name: str, index: int) -> Any:
    made = schema.TensorMapT()
    made.name, made.tensorIndex = name, index
    return made
