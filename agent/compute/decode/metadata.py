"""Reads TFLite Metadata: normalisation, rate of sound, labels and threshold.

The metadata is a flatbuffer in a buffer of the model; label files are a zip archive behind the model, in which
Ultralytics' exporter puts a description of its own. None of it is trusted.
Source: tensorflow/tflite-support, tensorflow_lite_support/metadata/metadata_schema.fbs;
ultralytics/ultralytics, ultralytics/engine/exporter.py
"""

from __future__ import annotations

import io
import logging
import math
import zlib
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from agent.compute.tflite.read import ByteSource, FlatTable
from agent.errors import ModelError

log = logging.getLogger(__name__)
_NAME = "TFLITE_METADATA"
_IDENTIFIER = b"M001"
_NORMALISATION, _THRESHOLDING = 1, 3
_AUDIO = 4
"""Type of an input's content: samples of sound."""
_LABEL_FILES = (2, 3)
"""Types of associated file: labels of an axis and of values."""
_LARGEST = 1024 * 1024
"""Largest label file, bytes; ImageNet's 21,000 names take 500 kB."""
_DESCRIPTION = "metadata.json"
"""Ultralytics' description."""
_END_OF_ZIP, _TAIL = b"PK\x05\x06", 65_557
"""Signature of the record at the end of a zip archive, and the most bytes from it to the end."""
_ENTRIES = 1000
"""Most files behind a model."""
_BROKEN_ZIP = (zlib.error, EOFError, NotImplementedError, RuntimeError, OSError)

Triple = tuple[float, float, float]


class Metadata(Struct, frozen=True):
    """Contents of the metadata; empty or None where something is missing.

    Attributes:
        name, description, licence: of the model.
        labels: class names in order.
        mean, std: `(pixel - mean) / std` per channel.
        score_threshold: recommended by the author.
        rate_hz: samples a second, of a model that takes samples of one channel.
    """

    name: str = ""
    description: str = ""
    licence: str = ""
    labels: tuple[str, ...] = ()
    mean: Triple | None = None
    std: Triple | None = None
    score_threshold: float | None = None
    rate_hz: int | None = None


def read_metadata(content: bytes) -> Metadata | None:
    """Read the metadata in a model file; None: there is none. Raises ModelError if it is damaged."""
    if content[4:8] != b"TFL3":
        return None
    described = _read_description(content)
    found = _read_notes(content)
    if described is None or found is None:
        return found or described
    return found if found.labels else replace(found, labels=described.labels)


def _read_notes(content: bytes) -> Metadata | None:
    model = ByteSource(content, "the model file").root()
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


def _read_description(content: bytes) -> Metadata | None:
    """Read the description that Ultralytics' exporter attaches to a model; None: none can be used."""
    if not 0 < entries_of(content) <= _ENTRIES:
        return None
    try:
        text = _read_attached(content, _DESCRIPTION)
        if text is None:
            return None
        if len(text) > _LARGEST:
            raise ValueError(f"more than {_LARGEST} bytes")
        given = msgspec.json.decode(text)
    except (ValueError, msgspec.DecodeError, RecursionError) as error:
        log.warning("the description in the model file cannot be read: %s", error)
        return None
    if not isinstance(given, dict):
        return None
    words = {key: value for key in ("description", "license") if isinstance(value := given.get(key), str)}
    return Metadata("", words.get("description", ""), words.get("license", ""), _names(given.get("names")))


def entries_of(content: bytes) -> int:
    """Return the number of entries that the end of a zip archive states; 0: it is none."""
    at = content.rfind(_END_OF_ZIP, -_TAIL)
    return int.from_bytes(content[at + 10 : at + 12], "little") if at >= 0 else 0


def _read_attached(content: bytes, name: str) -> bytes | None:
    """Return a file behind the model, cut after `_LARGEST` + 1 bytes; None: there is none.

    Raises:
        ValueError: the archive is damaged, or of an unknown kind.
    """
    import zipfile  # with what it loads it takes 1 MB, and few models have files behind them

    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            if name not in archive.namelist():
                return None
            with archive.open(name) as file:
                return file.read(_LARGEST + 1)
    except (zipfile.BadZipFile, *_BROKEN_ZIP) as error:
        raise ValueError(str(error)) from error


def _names(given: Any) -> tuple[str, ...]:
    """Return names by number, as a list or as a dict, if there is one for each number from 0 on."""
    if isinstance(given, dict):
        numbered = {str(key): value for key, value in given.items()}
        given = [numbered.get(str(number)) for number in range(len(numbered))]
    if not isinstance(given, list) or not all(isinstance(one, str) for one in given):
        return ()
    return tuple(one.strip() or "???" for one in given)


def _parse(data: memoryview, content: bytes) -> Metadata:
    if bytes(data[4:8]) != _IDENTIFIER:
        raise ModelError(f"the model's metadata has an unknown format, {bytes(data[4:8])!r}")
    root = ByteSource(data, "the metadata of the model").root()
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
        next(_rates(inputs), None),
    )


def _rates(inputs: Iterable[FlatTable]) -> Iterator[int]:
    for tensor in inputs:
        content = tensor.table(3)
        sound = content.table(1) if content and content.u8(0) == _AUDIO else None
        if sound and sound.u32(1) in (0, 1):
            yield sound.u32(0)


def _units(tensors: Iterable[FlatTable], kind: int) -> Iterator[FlatTable]:
    for tensor in tensors:
        for unit in tensor.tables(4):
            if unit.u8(0) == kind and (options := unit.table(1)):
                yield options


def _triple(options: FlatTable, slot: int, *, nonzero: bool = False) -> Triple | None:
    """Return one value per channel; a single value counts for all."""
    values = [float(value) for value in options.array(slot, "<f4").tolist()]
    values = values * 3 if len(values) == 1 else values
    if len(values) != 3 or not all(math.isfinite(value) and (value or not nonzero) for value in values):
        return None
    return values[0], values[1], values[2]


def _labels(outputs: Iterable[FlatTable], content: bytes) -> tuple[str, ...]:
    """Return the lines of the first file of labels. Its path is harmless, because nothing is extracted."""
    names = [f.string(0) for output in outputs for f in output.tables(6) if f.i8(2) in _LABEL_FILES]
    if not names:
        return ()
    try:
        text = _read_attached(content, names[0])
    except ValueError as error:
        log.warning("file %r of the metadata cannot be read: %s", names[0], error)
        return ()
    if text is None:
        log.warning("file %r of the metadata is not behind the model", names[0])
        return ()
    if len(text) > _LARGEST:
        raise ModelError(f"file {names[0]!r} of the metadata is larger than {_LARGEST} bytes")
    return tuple(line.strip() or "???" for line in text.decode("utf-8", "replace").rstrip().splitlines())
