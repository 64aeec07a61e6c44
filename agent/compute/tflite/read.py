"""Reads untrusted `.tflite` files without a runtime, finds incompatibilities, and extracts single signatures.

Slot numbers are those of the public schema, tensorflow/compiler/mlir/lite/schema/schema.fbs in
tensorflow/tensorflow, and of its successor in google-ai-edge/LiteRT for blockwise quantisation.

Every offset of the FlatBuffer is checked, and the work is bounded. The `flatbuffers` package's own reader trusts
the file, and generated classes for the schema cost 150 ms to import or a further dependency; the layout itself is
small: https://flatbuffers.dev/internals/
"""

from __future__ import annotations

import hashlib
import struct
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from agent.compute.tflite.model import (
    CUSTOM,
    OPERATORS,
    RECURRENT,
    TYPES,
    ModelFile,
    Operation,
    Quantisation,
    Signature,
    Subgraph,
    TensorInfo,
)
from agent.errors import ModelError

_WORK = 500_000
"""Most tables, vectors and strings read from one file: offsets may share targets, so that a small hostile file
could describe a huge tree. The largest models in use have some 100,000."""
_GRAIN = 256
"""Bytes of a vector or string that cost one more unit of work."""
_U8, _I8, _U16, _I32, _U32, _U64 = (struct.Struct(f"<{code}") for code in "BbHiIQ")


class ByteSource:
    """The bytes of a file, and the remaining units of work."""

    def __init__(self, content: bytes | memoryview, what: str) -> None:
        self.content = memoryview(content)
        self.what = what
        self._work = _WORK

    def unpack(self, form: struct.Struct, at: int) -> int:
        """Return the number at a byte position. Raises ModelError if it lies outside the file."""
        self.check(at, form.size)
        value: int = form.unpack_from(self.content, at)[0]
        return value

    def slice(self, at: int, size: int) -> memoryview:
        """Return `size` bytes. Raises ModelError if some lie outside the file, or it needs too much work."""
        self.check(at, size)
        self.spend(size // _GRAIN)
        return self.content[at : at + size]

    def check(self, at: int, size: int) -> None:
        """Check that `size` bytes exist. Raises ModelError if some lie outside the file."""
        if not 0 <= at <= len(self.content) - size:
            raise self.outside(at + size)

    def follow(self, at: int) -> int:
        """Return the target of the offset at a byte position."""
        return at + self.unpack(_U32, at)

    def spend(self, extra: int = 0) -> None:
        """Spend one unit of work and `extra` more. Raises ModelError if none is left."""
        self._work -= 1 + extra
        if self._work < 0:
            raise ModelError(f"{self.what} describes more than it can hold: it is damaged or hostile")

    def outside(self, at: int) -> ModelError:
        """Return the error for a byte position that does not exist."""
        size = len(self.content)
        return ModelError(f"{self.what} is truncated or damaged: invalid offset {at}; it has {size} bytes")

    def root(self) -> FlatTable:
        """Return the root table."""
        return FlatTable(self, self.follow(0))


class FlatTable:
    """One table. Its methods raise `ModelError` if the file is damaged; an absent field has a default."""

    __slots__ = ("_at", "_slots", "_source", "_vtable")

    def __init__(self, source: ByteSource, at: int) -> None:
        source.spend()
        self._source = source
        self._at = at
        self._vtable = at - source.unpack(_I32, at)
        size = source.unpack(_U16, self._vtable)
        if size < 4 or self._vtable + size > len(source.content):
            raise source.outside(self._vtable + size)
        self._slots = (size - 4) // 2

    def position(self, slot: int) -> int:
        """Return the byte position of a field; 0 if absent."""
        if slot >= self._slots:
            return 0
        offset = self._source.unpack(_U16, self._vtable + 4 + 2 * slot)
        return self._at + offset if offset else 0

    def _scalar(self, slot: int, form: struct.Struct, default: int) -> int:
        at = self.position(slot)
        return self._source.unpack(form, at) if at else default

    def u8(self, slot: int) -> int:
        """Read an unsigned byte, 0 by default."""
        return self._scalar(slot, _U8, 0)

    def i8(self, slot: int) -> int:
        """Read a signed byte, 0 by default."""
        return self._scalar(slot, _I8, 0)

    def i32(self, slot: int, default: int = 0) -> int:
        """Read a signed 32-bit number."""
        return self._scalar(slot, _I32, default)

    def u32(self, slot: int) -> int:
        """Read an unsigned 32-bit number, 0 by default."""
        return self._scalar(slot, _U32, 0)

    def u64(self, slot: int) -> int:
        """Read an unsigned 64-bit number, 0 by default."""
        return self._scalar(slot, _U64, 0)

    def f32(self, slot: int) -> float | None:
        """Read a 32-bit float, None if absent."""
        at = self.position(slot)
        return float(np.frombuffer(self._source.slice(at, 4), "<f4")[0]) if at else None

    def string(self, slot: int) -> str:
        """Read text, empty by default; bytes that are not UTF-8 are replaced."""
        return bytes(self.data(slot)).decode("utf-8", "replace")

    def data(self, slot: int) -> memoryview:
        """Read a vector of bytes, empty by default."""
        at, count = self.vector(slot)
        return self._source.slice(at, count)

    def length(self, slot: int) -> int:
        """Return the length of a vector of bytes after checking that it exists; 0 by default."""
        at, count = self.vector(slot)
        self._source.check(at, count)
        return count

    def array(self, slot: int, dtype: str) -> NDArray[np.generic]:
        """Read a vector of numbers of a little-endian dtype such as `<i4`; empty by default."""
        at, count = self.vector(slot)
        kind = np.dtype(dtype)
        return np.frombuffer(self._source.slice(at, count * kind.itemsize), kind)

    def table(self, slot: int) -> FlatTable | None:
        """Read a table, None if absent."""
        at = self.position(slot)
        return FlatTable(self._source, self._source.follow(at)) if at else None

    def tables(self, slot: int) -> list[FlatTable]:
        """Read a vector of tables, empty by default."""
        at, count = self.vector(slot)
        self._source.slice(at, 4 * count)
        return [FlatTable(self._source, self._source.follow(at + 4 * i)) for i in range(count)]

    def vector(self, slot: int) -> tuple[int, int]:
        """Return byte position and number of elements of a vector; zeros if absent."""
        at = self.position(slot)
        if not at:
            return 0, 0
        self._source.spend()
        start = self._source.follow(at)
        return start + 4, self._source.unpack(_U32, start)


Runtime = Literal["litert", "tflite-runtime"]
"""Same as in `agent.compute.infer.litert`."""
_IDENTIFIER = b"TFL3"

_FOREIGN: tuple[tuple[bytes, str], ...] = (
    (b"version https://git-lfs", "a Git-LFS pointer, not the model: run `git lfs pull` where it came from"),
    (b"<", "a web page, not the model: download the raw file"),
    (b"{", "JSON, not a TFLite model"),
    (b"PK\x03\x04", "a zip archive: unpack the `.tflite` file from it"),
    (b"\x1f\x8b", "gzip-compressed: unpack it"),
    (b"\x89HDF", "a Keras HDF5 file: convert it to TFLite"),
)
"""Starts of files that are often mistaken for models, and their descriptions."""


def diagnose(content: bytes) -> str | None:
    """Describe a file that cannot be a TFLite model; None if it may be one."""
    if not content:
        return "the model file is empty"
    if content[4:8] == _IDENTIFIER:
        return None
    start = content[:64].lstrip(b"\xef\xbb\xbf \t\r\n")
    for prefix, what in _FOREIGN:
        if start.startswith(prefix):
            return f"the model file is {what}"
    return f"the model file is not a TFLite model: expected identifier TFL3 at byte 4, found {content[4:8]!r}"


_KNOWN: dict[Runtime, frozenset[str]] = {
    "tflite-runtime": frozenset({"TFLite_Detection_PostProcess", "Mfcc", "AudioSpectrogram", "NumericVerify"})
}
_KNOWN["litert"] = _KNOWN["tflite-runtime"] | {
    "Convolution2DTransposeBias",
    "MaxPoolingWithArgmax2D",
    "MaxUnpooling2D",
}
"""Custom operations of each runtime: the resolver of TensorFlow's lite/core/kernels/register.cc, and
those that LiteRT's XNNPACK takes (tensorflow/lite/delegates/xnnpack/README.md)."""

_OPERANDS = {"BATCH_MATMUL": 2, "SLICE": 3, "SPLIT": 2, "SPLIT_V": 3, "STRIDED_SLICE": 4}
"""Number of inputs that the runtime reads without checking that they are there."""
_FIRST_OPTIONAL = {
    **dict.fromkeys(("CONV_2D", "CONV_3D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"), 2),
    **dict.fromkeys(("CONV_3D_TRANSPOSE", "TRANSPOSE_CONV"), 3),
    **dict.fromkeys((CUSTOM, *RECURRENT), 0),
}
"""First input that may be left out, such as a bias. The runtime takes that of other operations for a tensor."""
_LONG = 60
"""Most characters of a tensor's name in a message, from its end, which is more specific."""


def _lacks_inputs(operation: Operation) -> bool:
    needed = operation.inputs[: _FIRST_OPTIONAL.get(operation.name, len(operation.inputs))]
    return -1 in needed or len(operation.inputs) < _OPERANDS.get(operation.name, 0)


def incompatibilities(modelfile: ModelFile, runtime: Runtime) -> list[str]:
    """List what the runtime would refuse in a model, or silently compute wrongly; empty: nothing is known."""
    found = [_unresolved(code) for code in modelfile.custom if code not in _KNOWN[runtime]]
    if unknown := dict.fromkeys(op.name for _, op in modelfile.steps() if op.name.startswith("#")):
        found.append(f"operation {', '.join(unknown)} is newer than this reader: update vedette and the runtime")
    lacking = dict.fromkeys(op.name for _, op in modelfile.steps() if _lacks_inputs(op))
    found += [f"operation {name} lacks an input: convert again" for name in lacking]
    found += [
        f"tensor {tensor.name[-_LONG:]!r}: {fault}"
        for graph in modelfile.subgraphs
        for tensor in graph.tensors
        if (fault := _bad_quantisation(tensor))
    ]
    if runtime == "tflite-runtime":
        kinds = {"INT4": modelfile.int4, "dynamic-range INT8 (float activations)": modelfile.dynamic_range}
        found += [
            f"{kind} weights: tflite-runtime 2.14 silently computes wrong results from them; use"
            " ai-edge-litert, or quantise statically to INT8"
            for kind, there in kinds.items()
            if there
        ]
    return found


def _unresolved(code: str) -> str:
    if code == "edgetpu-custom-op":
        return "compiled for the Edge TPU (custom operation edgetpu-custom-op): use the file it was compiled from"
    if code.startswith("Flex"):
        return f"operation {code} needs TensorFlow itself: convert again with TFLITE_BUILTINS only"
    return f"custom operation {code or '(no name)'} is unknown to the runtime"


def _bad_quantisation(tensor: TensorInfo) -> str:
    """Check as `ParseQuantization` does.

    Source: tensorflow/tensorflow, tensorflow/lite/core/interpreter_builder.cc
    """
    quantisation, shape = tensor.quantisation, tensor.shape
    if quantisation.scales != quantisation.zero_points:
        return f"{quantisation.scales} scales, but {quantisation.zero_points} zero points: convert again"
    if quantisation.kind != "channel":
        return ""
    if not 0 <= quantisation.dimension < len(shape):
        return f"quantised dimension must be in 0..{len(shape) - 1}, is {quantisation.dimension}: convert again"
    if quantisation.scales != shape[quantisation.dimension]:
        return f"{quantisation.scales} scales for {shape[quantisation.dimension]} channels: convert again"
    return ""


_BLOCKWISE = 2


_read: OrderedDict[bytes, ModelFile] = OrderedDict()
_MOST_READ = 4
"""Most files whose contents are kept, by hash: a check and a start ask for those of one model several times."""


def read_modelfile(content: bytes) -> ModelFile:
    """Read a model file. Raises ModelError if the file is not a TFLite model, or damaged."""
    if complaint := diagnose(content):
        raise ModelError(complaint)
    key = hashlib.sha256(content).digest()
    found = _read.get(key) or _parse(content)
    _read[key] = found
    with suppress(KeyError):  # another thread has removed it
        _read.move_to_end(key)
        while len(_read) > _MOST_READ:
            _read.popitem(last=False)
    return found


def _parse(content: bytes) -> ModelFile:
    source = ByteSource(content, "the model file")
    root = source.root()
    sizes = [_buffer_size(source, buffer) for buffer in root.tables(4)]
    codes = [_code(code) for code in root.tables(1)]
    graphs = tuple(_subgraph(graph, codes, sizes) for graph in root.tables(2))
    if not graphs:
        raise ModelError("the model file has no graph: it is damaged, or only metadata")
    signatures = tuple(_signature(signature, graphs) for signature in root.tables(7))
    names = tuple(note.string(0) for note in root.tables(6))
    return ModelFile(len(content), root.u32(0), root.string(3), graphs, signatures, names, _weights(graphs))


def _buffer_size(source: ByteSource, buffer: FlatTable) -> int:
    """Return the bytes of a constant. In files beyond 2 GB it lies behind the flatbuffer."""
    offset, size = buffer.u64(1), buffer.u64(2)
    if offset > 1:
        source.check(offset, size)
        return size
    return buffer.length(0)


class _Code(NamedTuple):
    name: str
    custom: str
    version: int


def _code(table: FlatTable) -> _Code:
    # Codes below 127 are also in the first field, and in old files only there.
    number = max(table.i8(0), table.i32(3))
    name = OPERATORS[number] if 0 <= number < len(OPERATORS) else f"#{number}"
    return _Code(name, table.string(1) if name == CUSTOM else "", table.i32(2, 1))


def _subgraph(table: FlatTable, codes: Sequence[_Code], sizes: Sequence[int]) -> Subgraph:
    tensors = tuple(_tensor(tensor, sizes) for tensor in table.tables(0))
    count = len(tensors)
    operations = tuple(_operation(operation, codes, count) for operation in table.tables(3))
    return Subgraph(table.string(4), tensors, _indices(table, 1, count), _indices(table, 2, count), operations)


def _tensor(table: FlatTable, sizes: Sequence[int]) -> TensorInfo:
    # The runtime uses the first; the second tells which sizes callers may change.
    shape, signature = _numbers(table, 0), _numbers(table, 7)
    kind, buffer = table.i8(1), table.u32(2)
    return TensorInfo(
        table.string(3),
        shape,
        TYPES[kind] if 0 <= kind < len(TYPES) else f"#{kind}",
        buffer,
        sizes[_index(buffer, len(sizes), "buffer")] if buffer else 0,
        _quantisation(table.table(4)),
        signature,
    )


def _quantisation(table: FlatTable | None) -> Quantisation:
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


def _operation(table: FlatTable, codes: Sequence[_Code], tensors: int) -> Operation:
    code = codes[_index(table.u32(0), len(codes), "kind of operation")]
    return Operation(*code, _indices(table, 1, tensors, optional=True), _indices(table, 2, tensors))


def _signature(table: FlatTable, graphs: Sequence[Subgraph]) -> Signature:
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


def _numbers(table: FlatTable, slot: int) -> tuple[int, ...]:
    return tuple(table.array(slot, "<i4").tolist())


def _indices(table: FlatTable, slot: int, count: int, *, optional: bool = False) -> tuple[int, ...]:
    numbers = _numbers(table, slot)
    for number in numbers:
        if number != -1 or not optional:
            _index(number, count, "tensor")
    return numbers


def _index(number: int, count: int, what: str) -> int:
    if not 0 <= number < count:
        raise ModelError(f"the model file is damaged: it names {what} {number} of {count}")
    return number


_GRAPHS, _SIGNATURES = 2, 7
_SIGNATURE_NAME, _SIGNATURE_GRAPH = 2, 4
_CALLS = {"IF", "WHILE", "CALL", "CALL_ONCE"}
"""Operations that run another graph of the file."""


def only_signature(content: bytes, name: str) -> bytes:
    """Return the file with one signature and its graph only, so that the runtime allocates no other graph.

    The vectors of graphs and of signatures are cut to one element each. Nothing moves, so that all other
    offsets stay valid. A file whose graphs run each other is returned unchanged.

    Raises:
        ModelError: the file is damaged, or has no such signature.
    """
    file = read_modelfile(content)
    if len(file.subgraphs) == 1 or any(_calls(op.name) for graph in file.subgraphs for op in graph.operations):
        return content
    source = ByteSource(content, "the model file")
    root = source.root()
    for index, signature in enumerate(root.tables(_SIGNATURES)):
        if signature.string(_SIGNATURE_NAME) == name:
            cut = bytearray(content)
            _keep(source, root, cut, _GRAPHS, signature.u32(_SIGNATURE_GRAPH))
            _keep(source, root, cut, _SIGNATURES, index)
            if at := signature.position(_SIGNATURE_GRAPH):
                struct.pack_into("<I", cut, at, 0)
            return bytes(cut)
    raise ModelError(f"the model file has no signature {name!r}")


def _calls(operation: str) -> bool:
    return operation in _CALLS or operation.startswith("STABLEHLO_")


def _keep(source: ByteSource, root: FlatTable, cut: bytearray, slot: int, index: int) -> None:
    """Cut the vector in a slot of the root to one element."""
    first, _ = root.vector(slot)
    element = source.follow(first + 4 * index)
    struct.pack_into("<II", cut, first - 4, 1, element - first)
