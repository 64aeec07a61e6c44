"""TFLite Metadata: what some files say about their own normalisation and labels. Nothing in it is trusted.

The metadata is a flatbuffer in a buffer of the model; label files are a zip archive behind the model.
Source: tensorflow/tflite-support, tensorflow_lite_support/metadata/metadata_schema.fbs
"""

from __future__ import annotations

import io
import logging
import math
import zipfile
import zlib
from collections.abc import Iterable, Iterator

from msgspec import Struct

from agent.compute.flatbuffer import Source, Table
from agent.errors import ModelError

log = logging.getLogger(__name__)

_NAME = "TFLITE_METADATA"
_IDENTIFIER = b"M001"
_NORMALISATION, _THRESHOLDING = 1, 3
_LABEL_FILES = (2, 3)
"""Types of associated file: labels of an axis, and labels of values."""
_LARGEST = 1024 * 1024
"""Bytes of a label file; ImageNet's 21,000 names take 500 kB."""
_BROKEN_ZIP = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError, ValueError)

Triple = tuple[float, float, float]


class Metadata(Struct, frozen=True):
    """What the metadata says; empty or None where it is silent.

    Attributes:
        name, description, licence: of the model.
        labels: class names in order.
        mean, std: `(pixel - mean) / std` per channel.
        score_threshold: as the author recommends.
    """

    name: str = ""
    description: str = ""
    licence: str = ""
    labels: tuple[str, ...] = ()
    mean: Triple | None = None
    std: Triple | None = None
    score_threshold: float | None = None


def read_metadata(content: bytes) -> Metadata | None:
    """The metadata inside a file; None when there is none.

    Raises:
        ModelError: the file or its metadata is damaged.
    """
    if content[4:8] != b"TFL3":
        return None
    model = Source(content, "the model file").root()
    for note in model.tables(6):
        if note.string(0) == _NAME:
            buffers = model.tables(4)
            number = note.u32(1)
            if number >= len(buffers):
                raise ModelError(
                    f"the model file is damaged: its metadata is in buffer {number} of {len(buffers)}"
                )
            return _parse(buffers[number].data(0), content)
    return None


def _parse(data: memoryview, content: bytes) -> Metadata:
    if bytes(data[4:8]) != _IDENTIFIER:
        raise ModelError(f"the metadata of the model is of an unknown kind, {bytes(data[4:8])!r}")
    root = Source(data, "the metadata of the model").root()
    graph = next(iter(root.tables(3)), None)
    inputs, outputs = (graph.tables(2), graph.tables(3)) if graph else ([], [])
    normalisation = next(_units(inputs, _NORMALISATION), None)
    threshold = next(_units(outputs, _THRESHOLDING), None)
    score = threshold.f32(0) if threshold else None
    return Metadata(
        root.string(0),
        root.string(1),
        root.string(5),
        _labels(outputs, content),
        _triple(normalisation, 0) if normalisation else None,
        _triple(normalisation, 1, nonzero=True) if normalisation else None,
        score if score is not None and 0.0 <= score <= 1.0 else None,
    )


def _units(tensors: Iterable[Table], kind: int) -> Iterator[Table]:
    """Options of the processing units of one kind."""
    for tensor in tensors:
        for unit in tensor.tables(4):
            if unit.u8(0) == kind and (options := unit.table(1)):
                yield options


def _triple(options: Table, slot: int, *, nonzero: bool = False) -> Triple | None:
    """One value per channel; a single value stands for all of them."""
    values = [float(value) for value in options.array(slot, "<f4").tolist()]
    values = values * 3 if len(values) == 1 else values
    if len(values) != 3 or not all(math.isfinite(value) and (value or not nonzero) for value in values):
        return None
    return values[0], values[1], values[2]


def _labels(outputs: Iterable[Table], content: bytes) -> tuple[str, ...]:
    """Lines of the first label file of an output; it is only read, so its path can do no harm."""
    names = [f.string(0) for output in outputs for f in output.tables(6) if f.i8(2) in _LABEL_FILES]
    if not names:
        return ()
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive, archive.open(names[0]) as file:
            text = file.read(_LARGEST + 1)
    except (KeyError, *_BROKEN_ZIP) as error:
        log.warning("label file %r of the metadata cannot be read: %s", names[0], error)
        return ()
    if len(text) > _LARGEST:
        raise ModelError(f"label file {names[0]!r} of the metadata is larger than {_LARGEST} bytes")
    lines = text.decode("utf-8", "replace").rstrip().splitlines()
    return tuple(line.strip() or "???" for line in lines)
