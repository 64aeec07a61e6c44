"""Writes tiny `.tflite` files for tests: runnable one-op models, and models that must be refused.

Slot numbers are the public schema's, tensorflow/compiler/mlir/lite/schema/schema.fbs. Only `flatbuffers` is
needed, so the helper works beside either runtime.

    content = write(
        [T("image", (1, 4)), T("scores", (1, 4)), T("bias", (4,), data=np.ones(4, np.float32))],
        [Op("ADD", (0, 2), (1,))],
        inputs=(0,),
        outputs=(1,),
    )
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import flatbuffers
import numpy as np

TYPES = {
    "float32": 0,
    "float16": 1,
    "int32": 2,
    "uint8": 3,
    "int64": 4,
    "string": 5,
    "bool": 6,
    "int16": 7,
    "int8": 9,
    "int4": 17,
}
CODES = {
    "ADD": 0,
    "AVERAGE_POOL_2D": 1,
    "CONCATENATION": 2,
    "CONV_2D": 3,
    "DEPTHWISE_CONV_2D": 4,
    "DEQUANTIZE": 6,
    "FULLY_CONNECTED": 9,
    "L2_NORMALIZATION": 11,
    "LOGISTIC": 14,
    "MUL": 18,
    "RELU": 19,
    "RESHAPE": 22,
    "SOFTMAX": 25,
    "SVDF": 27,
    "TANH": 28,
    "CUSTOM": 32,
    "PAD": 34,
    "NON_MAX_SUPPRESSION_V4": 120,
    "MEAN": 40,
    "LOG_SOFTMAX": 50,
    "TRANSPOSE_CONV": 67,
    "CAST": 53,
    "SLICE": 65,
    "LESS": 58,
    "SHAPE": 77,
    "FILL": 94,
    "RANGE": 96,
    "WHILE": 119,
    "BATCH_MATMUL": 126,
}
OPTIONS = {
    "CONV_2D": 1,
    "DEPTHWISE_CONV_2D": 2,
    "FULLY_CONNECTED": 8,
    "SOFTMAX": 9,
    "CONCATENATION": 10,
    "ADD": 11,
    "RESHAPE": 17,
    "MUL": 21,
    "WHILE": 93,
}
"""The member of the `BuiltinOptions` union that a kernel insists on; its table may be empty."""


def _strides(builder: flatbuffers.Builder) -> None:
    builder.PrependInt32Slot(1, 1, 0)
    builder.PrependInt32Slot(2, 1, 0)


def _strides_and_multiplier(builder: flatbuffers.Builder) -> None:
    _strides(builder)
    builder.PrependInt32Slot(3, 1, 0)


_SETTINGS: dict[str, Callable[[flatbuffers.Builder], object]] = {
    "CONV_2D": _strides,
    "DEPTHWISE_CONV_2D": _strides_and_multiplier,
    "SOFTMAX": lambda builder: builder.PrependFloat32Slot(0, 1.0, 0.0),  # beta
    "CONCATENATION": lambda builder: builder.PrependInt32Slot(0, 1, 0),  # axis
    "WHILE": lambda builder: (builder.PrependInt32Slot(0, 1, 0), builder.PrependInt32Slot(1, 2, 0)),  # graphs
}


@dataclass(frozen=True)
class T:
    """A tensor. `scale` with several values is per channel along `dimension`; `block` makes it blockwise.

    `signature` is the shape with -1 where callers may change a size. `data` makes it a constant; its bytes are
    stored as they are, whatever `dtype` says. `raw_buffer` points at a buffer index of your choice, to make
    broken files.
    """

    name: str
    shape: Sequence[int]
    dtype: str = "float32"
    data: np.ndarray | bytes | None = None
    scale: float | Sequence[float] = ()
    zero_point: int | Sequence[int] = 0
    dimension: int = 0
    block: int = 0
    raw_buffer: int | None = None
    signature: Sequence[int] = ()


@dataclass(frozen=True)
class Op:
    """One operation; `name` in `CODES`, or anything else for a custom operation of that code, with `options`."""

    name: str
    inputs: Sequence[int]
    outputs: Sequence[int]
    version: int = 1
    options: bytes = b""


@dataclass(frozen=True)
class Graph:
    """A further subgraph."""

    tensors: Sequence[T]
    operations: Sequence[Op]
    inputs: Sequence[int]
    outputs: Sequence[int]


@dataclass(frozen=True)
class Signature:
    """Signature `key` of a subgraph, the first by default: names to tensor indices."""

    key: str
    inputs: Mapping[str, int]
    outputs: Mapping[str, int]
    subgraph: int = 0


def write(
    tensors: Sequence[T],
    operations: Sequence[Op],
    inputs: Sequence[int],
    outputs: Sequence[int],
    signatures: Sequence[Signature] = (),
    metadata: Mapping[str, bytes] | None = None,
    description: str = "test",
    identifier: bytes = b"TFL3",
    more: Sequence[Graph] = (),
) -> bytes:
    """The file's bytes. Nothing is checked, so that broken files can be written too."""
    graphs = (Graph(tensors, operations, inputs, outputs), *more)
    return _Writer().model(graphs, signatures, metadata or {}, description, identifier)


def add_model(
    shape: Sequence[int] = (1, 4),
    *,
    dtype: str = "float32",
    scale: float = 0.0,
    zero_point: int = 0,
    input_name: str = "image",
    output_name: str = "scores",
    signature: str = "",
) -> bytes:
    """Runnable: output = input + 1 (stored constant 1 for quantised types). One op, ADD, version 2."""
    quant = (scale,) if scale else ()
    one = np.ones(shape[-1], dtype)
    tensors = [
        T(input_name, shape, dtype, scale=quant, zero_point=zero_point),
        T(output_name, shape, dtype, scale=quant, zero_point=zero_point),
        T("one", one.shape, dtype, one, quant, zero_point),
    ]
    keys = [Signature(signature, {input_name: 0}, {output_name: 1})] if signature else []
    return write(tensors, [Op("ADD", (0, 2), (1,), 2)], (0,), (1,), keys)


def fully_connected_model(
    weights: np.ndarray | None = None, *, hybrid: bool = False, input_name: str = "x", output_name: str = "y"
) -> bytes:
    """Runnable: y = x·Wᵀ in float; `hybrid` stores int8 weights for a float input (dynamic range)."""
    matrix = np.arange(8, dtype=np.float32).reshape(2, 4) if weights is None else weights
    rows, columns = matrix.shape
    stored = T("w", matrix.shape, "float32", matrix.astype(np.float32))
    if hybrid:
        stored = T("w", matrix.shape, "int8", matrix.astype(np.int8), (1.0,))
    tensors = [T(input_name, (1, columns)), stored, T(output_name, (1, rows))]
    return write(tensors, [Op("FULLY_CONNECTED", (0, 1, -1), (2,), 3 if hybrid else 1)], (0,), (2,))


def constant_model(
    outputs: Mapping[str, np.ndarray], input_shape: Sequence[int] = (1, 8, 8, 3), signature: str = ""
) -> bytes:
    """Runnable: takes a uint8 picture, looks away, and always gives `outputs`: any model for a decoder's sake."""
    graph = constant_graph(outputs, input_shape)
    ends = dict(zip(outputs, graph.outputs, strict=True))
    keys = [Signature(signature, {"image": 0}, ends)] if signature else []
    return write(graph.tensors, graph.operations, graph.inputs, graph.outputs, keys)


def constant_graph(outputs: Mapping[str, np.ndarray], input_shape: Sequence[int] = (1, 8, 8, 3)) -> Graph:
    """The graph of `constant_model`, for a file of several."""
    tensors = [
        T("image", input_shape, "uint8", scale=(1 / 255,)),
        T("copy", input_shape, "uint8", scale=(1 / 255,)),
    ]
    tensors.append(T("shape", (len(input_shape),), "int32", np.array(input_shape, np.int32)))
    operations, ends = [Op("RESHAPE", (0, 2), (1,))], list[int]()
    for name, value in outputs.items():
        first = len(tensors)
        tensors += [
            T(f"{name}/value", value.shape, value.dtype.name, value),
            T(f"{name}/shape", (value.ndim,), "int32", np.array(value.shape, np.int32)),
            T(name, value.shape, value.dtype.name),
        ]
        operations.append(Op("RESHAPE", (first, first + 1), (first + 2,)))
        ends.append(first + 2)
    return Graph(tensors, operations, (0,), ends)


def looping_model() -> bytes:
    """Runnable: x (1, 4096) to y (1,), the mean less 0.5, squared. Never returns if that is above 0.001."""
    tensors = [
        T("x", (1, 4096)),
        T("axes", (2,), "int32", np.array([0, 1], np.int32)),
        T("mean", (1,)),
        T("-0.5", (1,), data=np.array([-0.5], np.float32)),
        T("apart", (1,)),
        T("square", (1,)),
        T("y", (1,)),
    ]
    operations = [
        Op("MEAN", (0, 1), (2,)),
        Op("ADD", (2, 3), (4,)),
        Op("MUL", (4, 4), (5,)),
        Op("WHILE", (5,), (6,)),
    ]
    limit = T("limit", (1,), data=np.array([0.001], np.float32))
    one = T("one", (1,), data=np.ones(1, np.float32))
    condition = Graph([T("a", (1,)), limit, T("less", (1,), "bool")], [Op("LESS", (1, 0), (2,))], (0,), (2,))
    body = Graph([T("a", (1,)), one, T("same", (1,))], [Op("MUL", (0, 1), (2,))], (0,), (2,))
    return write(tensors, operations, (0,), (6,), more=[condition, body])


def filling_model() -> bytes:
    """Runnable: x (1,) to y, as many zeros as x says, which are one in the file."""
    tensors = [
        T("x", (1,)),
        T("count", (1,), "int32"),
        T("zero", (), data=np.zeros((), np.float32)),
        T("y", (1,)),
    ]
    return write(tensors, [Op("CAST", (0,), (1,)), Op("FILL", (1, 2), (3,))], (0,), (3,))


def custom_model(code: str) -> bytes:
    """Not runnable by a runtime that does not know custom operation `code`."""
    return write([T("x", (1, 4)), T("y", (1, 4))], [Op(code, (0,), (1,))], (0,), (1,))


def bad_dimension_model(dimension: int = 5) -> bytes:
    """To be refused: per-channel weights whose quantised dimension does not exist."""
    weights = T("w", (2, 4), "int8", np.ones((2, 4), np.int8), (0.5, 0.25), (0, 0), dimension)
    tensors = [T("x", (1, 4), "int8", scale=(1.0,)), weights, T("y", (1, 2), "int8", scale=(1.0,))]
    return write(tensors, [Op("FULLY_CONNECTED", (0, 1, -1), (2,), 4)], (0,), (2,))


class _Writer:
    def __init__(self) -> None:
        self._builder = flatbuffers.Builder(4096)
        self._buffers: list[bytes] = [b""]

    def model(
        self,
        graphs: Sequence[Graph],
        signatures: Sequence[Signature],
        metadata: Mapping[str, bytes],
        description: str,
        identifier: bytes,
    ) -> bytes:
        codes = list(dict.fromkeys((op.name, op.version) for graph in graphs for op in graph.operations))
        tables = [self._graph(graph, codes) for graph in graphs]
        notes = [self._note(name, data) for name, data in metadata.items()]
        fields = {
            1: self._offsets([self._code(name, version) for name, version in codes]),
            2: self._offsets(tables),
            3: self._builder.CreateString(description),
            4: self._offsets([self._buffer(data) for data in self._buffers]),
            6: self._offsets(notes),
            7: self._offsets([self._signature(s) for s in signatures]),
        }
        root = self._table(fields, lambda b: b.PrependUint32Slot(0, 3, 0))
        self._builder.Finish(root, identifier)
        return bytes(self._builder.Output())

    def _graph(self, graph: Graph, codes: Sequence[tuple[str, int]]) -> int:
        return self._table(
            {
                0: self._offsets([self._tensor(t) for t in graph.tensors]),
                1: self._ints(graph.inputs),
                2: self._ints(graph.outputs),
                3: self._offsets([self._operation(op, codes) for op in graph.operations]),
                4: self._builder.CreateString("main"),
            }
        )

    def _table(
        self, offsets: Mapping[int, int], scalars: Callable[[flatbuffers.Builder], object] | None = None
    ) -> int:
        self._builder.StartObject(14)
        for slot, offset in offsets.items():
            self._builder.PrependUOffsetTRelativeSlot(slot, offset, 0)
        if scalars:
            scalars(self._builder)
        return int(self._builder.EndObject())

    def _offsets(self, offsets: Sequence[int]) -> int:
        self._builder.StartVector(4, len(offsets), 4)
        for offset in reversed(offsets):
            self._builder.PrependUOffsetTRelative(offset)
        return int(self._builder.EndVector())

    def _ints(self, values: Sequence[int]) -> int:
        return int(self._builder.CreateNumpyVector(np.asarray(values, np.int32)))

    def _buffer(self, data: bytes) -> int:
        if not data:
            return self._table({})
        self._builder.StartVector(1, len(data), 16)
        self._builder.head -= len(data)
        self._builder.Bytes[self._builder.head : self._builder.head + len(data)] = data
        return self._table({0: int(self._builder.EndVector())})

    def _add_buffer(self, data: bytes) -> int:
        self._buffers.append(data)
        return len(self._buffers) - 1

    def _tensor(self, tensor: T) -> int:
        index = 0
        if tensor.data is not None:
            index = self._add_buffer(tensor.data if isinstance(tensor.data, bytes) else tensor.data.tobytes())
        index = index if tensor.raw_buffer is None else tensor.raw_buffer
        fields = {0: self._ints(tensor.shape), 3: self._builder.CreateString(tensor.name)}
        scales = np.atleast_1d(np.asarray(tensor.scale, np.float32))
        if scales.size or tensor.block:
            fields[4] = self._quantisation(tensor, scales)
        if tensor.signature:
            fields[7] = self._ints(tensor.signature)

        def scalars(builder: flatbuffers.Builder) -> None:
            builder.PrependInt8Slot(1, TYPES[tensor.dtype], 0)
            builder.PrependUint32Slot(2, index, 0)

        return self._table(fields, scalars)

    def _quantisation(self, tensor: T, scales: np.ndarray) -> int:
        points = np.asarray(tensor.zero_point, np.int64)
        points = points if points.ndim else np.full(scales.size, points)
        fields = {2: self._builder.CreateNumpyVector(scales), 3: self._builder.CreateNumpyVector(points)}
        if tensor.block:
            fields[5] = self._table({}, lambda b: b.PrependInt32Slot(2, tensor.block, 0))

        def scalars(builder: flatbuffers.Builder) -> None:
            builder.PrependUint8Slot(4, 2 if tensor.block else 0, 0)
            builder.PrependInt32Slot(6, tensor.dimension, 0)

        return self._table(fields, scalars)

    def _code(self, name: str, version: int) -> int:
        builtin = CODES.get(name, CODES["CUSTOM"])
        custom = {} if name in CODES else {1: self._builder.CreateString(name)}

        def scalars(builder: flatbuffers.Builder) -> None:
            builder.PrependInt8Slot(0, builtin, 0)
            builder.PrependInt32Slot(2, version, 1)
            builder.PrependInt32Slot(3, builtin, 0)

        return self._table(custom, scalars)

    def _operation(self, op: Op, codes: Sequence[tuple[str, int]]) -> int:
        fields = {1: self._ints(op.inputs), 2: self._ints(op.outputs)}
        kind = OPTIONS.get(op.name, 0)
        if kind:
            fields[4] = self._table({}, _SETTINGS.get(op.name))
        if op.options:
            fields[5] = self._builder.CreateByteVector(op.options)

        def scalars(builder: flatbuffers.Builder) -> None:
            builder.PrependUint32Slot(0, codes.index((op.name, op.version)), 0)
            builder.PrependUint8Slot(3, kind, 0)

        return self._table(fields, scalars)

    def _note(self, name: str, data: bytes) -> int:
        index = self._add_buffer(data)
        return self._table({0: self._builder.CreateString(name)}, lambda b: b.PrependUint32Slot(1, index, 0))

    def _signature(self, signature: Signature) -> int:
        fields = {
            0: self._offsets([self._map(*item) for item in signature.inputs.items()]),
            1: self._offsets([self._map(*item) for item in signature.outputs.items()]),
            2: self._builder.CreateString(signature.key),
        }
        return self._table(fields, lambda b: b.PrependUint32Slot(4, signature.subgraph, 0))

    def _map(self, name: str, tensor: int) -> int:
        return self._table({0: self._builder.CreateString(name)}, lambda b: b.PrependUint32Slot(1, tensor, 0))


def crashing_model() -> bytes:
    """Passes our reader and can be opened; every runtime dies with SIGSEGV when it is run."""
    return unknown_to_xnnpack(write([T("x", (5, 0)), T("y", (1, 4))], [Op("SOFTMAX", (0,), (1,))], (0,), (1,)))


def unknown_to_xnnpack(softmax: bytes) -> bytes:
    """A file whose only SOFTMAX has a beta of 2, so that the runtime's own kernel runs."""
    one, two = np.float32(1).tobytes(), np.float32(2).tobytes()
    assert softmax.count(one) == 1
    return softmax.replace(one, two)
