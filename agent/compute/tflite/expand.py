"""Expands INT4 weights of a `.tflite` file to INT8 constants at the same scales.

LiteRT has fast INT4 kernels for FULLY_CONNECTED alone. Other operations use reference kernels, several times
slower, and tflite-runtime 2.14 computes wrong results from any INT4. So the file has half the size on disk and in
an update, and INT8 runs.

An INT4 tensor holds two values per byte, the first in the low half. Source: tensorflow/tensorflow,
tensorflow/lite/kernels/internal/portable_tensor_utils.cc, `UnpackDenseInt4IntoInt8`.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from agent.compute.tflite.model import TYPES, ModelFile, TensorInfo
from agent.compute.tflite.read import ByteSource, FlatTable, Runtime, read_modelfile

_GRAPHS, _BUFFERS, _TENSORS = 2, 4, 0
_TYPE, _BUFFER, _DATA = 1, 2, 0
_INT8 = TYPES.index("int8")
_KEPT = "FULLY_CONNECTED"
_CODES, _VERSION, _BUILTIN = 1, 2, 3
_CONVOLUTIONS = (3, 4)
"""CONV_2D and DEPTHWISE_CONV_2D."""
_WITHOUT_INT4 = 6
"""Last version of both before INT4: GPU backends refuse later ones, whatever the weights are."""
_LENGTH, _ALIGNMENT = 4, 16
"""Bytes of the number of values before a vector, and of what its values are aligned to."""


def expandable(file: ModelFile, runtime: Runtime | None) -> dict[int, int]:
    """Find the INT4 weights that are faster, or only right, as INT8.

    Weights that FULLY_CONNECTED alone reads stay INT4, but for tflite-runtime. Blockwise ones always stay: INT8
    has no blocks of scales.

    Returns:
        Number of values by index of the buffer.
    """
    users: dict[int, set[str]] = {}
    found: dict[int, int] = {}
    for graph in file.subgraphs:
        read_by: dict[int, set[str]] = {}
        for operation in graph.operations:
            for index in operation.inputs:
                read_by.setdefault(index, set()).add(operation.name)
        for index, tensor in enumerate(graph.tensors):
            if tensor.buffer and tensor.size:
                users.setdefault(tensor.buffer, set()).update(read_by.get(index, ()))
                if _is_int4(tensor):
                    found[tensor.buffer] = math.prod(tensor.shape)
    mixed = {t.buffer for graph in file.subgraphs for t in graph.tensors if t.size and not _is_int4(t)}
    return {
        buffer: count
        for buffer, count in found.items()
        if buffer not in mixed and (runtime == "tflite-runtime" or users[buffer] - {_KEPT})
    }


def _is_int4(tensor: TensorInfo) -> bool:
    return (
        tensor.dtype == "int4"
        and tensor.quantisation.kind in ("tensor", "channel")
        and min(tensor.shape, default=0) >= 0
        and tensor.size == (math.prod(tensor.shape) + 1) // 2
    )


def expand_int4(content: bytes, runtime: Runtime | None) -> bytes:
    """Return a model file whose slow INT4 weights are INT8; the same bytes if it has none.

    The new constants are appended. Nothing else moves, so that all other offsets stay valid. INT4 weights at the
    end of the file, where `vedette optimise` writes them, are left out: the memory is then that of INT8.

    Raises:
        ModelError: the file is damaged.
    """
    if content[4:8] != b"TFL3":
        return content
    file = read_modelfile(content)
    wanted = expandable(file, runtime) if file.int4 else {}
    if not wanted:
        return content
    source = ByteSource(content, "the model file")
    root = source.root()
    buffers = root.tables(_BUFFERS)
    packed = {index: buffers[index].data(_DATA) for index in wanted}
    # In a file beyond 2 GB they lie elsewhere.
    wanted = {index: count for index, count in wanted.items() if len(packed[index]) == (count + 1) // 2}
    expanded = bytearray(content[: _end_of_rest(len(content), [buffers[index] for index in wanted])])
    for index, count in wanted.items():
        _append(expanded, buffers[index], unpack_int4(packed[index], count))
    for graph in root.tables(_GRAPHS):
        for tensor in graph.tables(_TENSORS):
            if tensor.u32(_BUFFER) in wanted:
                struct.pack_into("<b", expanded, tensor.position(_TYPE), _INT8)
    for code in root.tables(_CODES):
        if code.i32(_BUILTIN, 0) in _CONVOLUTIONS and code.i32(_VERSION, 1) > _WITHOUT_INT4:
            struct.pack_into("<i", expanded, code.position(_VERSION), _WITHOUT_INT4)
    return bytes(expanded)


def _end_of_rest(size: int, buffers: Sequence[FlatTable]) -> int:
    """Return where the data of these buffers begins if nothing else lies behind; else the size of the file."""
    spans = sorted(buffer.vector(_DATA) for buffer in buffers)
    starts = [at - _LENGTH for at, _ in spans]
    ends = [*starts[1:], size]
    gaps = (end - at - length for (at, length), end in zip(spans, ends, strict=True))
    return starts[0] if starts and all(0 <= gap < _ALIGNMENT for gap in gaps) else size


def unpack_int4(packed: memoryview | bytes, count: int) -> NDArray[np.int8]:
    """Return `count` values, int8 of -8..7, out of two per byte."""
    pairs = np.frombuffer(packed, np.uint8)
    values = np.empty((len(pairs), 2), np.int8)
    values[:, 0] = (pairs << 4).view(np.int8) >> 4
    values[:, 1] = pairs.view(np.int8) >> 4
    return values.reshape(-1)[:count]


def _append(expanded: bytearray, buffer: FlatTable, values: NDArray[np.int8]) -> None:
    """Write a vector behind the file, 16 bytes aligned as constants must be, and let the buffer point to it."""
    expanded += bytes(-(len(expanded) + 4) % 16)
    vector, at = len(expanded), buffer.position(_DATA)
    expanded += struct.pack("<I", values.size) + values.tobytes()
    struct.pack_into("<I", expanded, at, vector - at)
