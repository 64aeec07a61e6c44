"""Writes TFLite Metadata for tests; slots as in tensorflow_lite_support/metadata/metadata_schema.fbs."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Mapping, Sequence

import flatbuffers
import numpy as np


def metadata(
    *,
    name: str = "Birds",
    description: str = "Names birds.",
    licence: str = "Apache-2.0",
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
    threshold: float | None = None,
    label_file: str = "",
    identifier: bytes = b"M001",
) -> bytes:
    """The flatbuffer of a model with one input and one output."""
    builder = flatbuffers.Builder(256)

    def table(offsets: Mapping[int, int], scalars: Callable[[], None] = lambda: None) -> int:
        builder.StartObject(8)
        for slot, offset in offsets.items():
            builder.PrependUOffsetTRelativeSlot(slot, offset, 0)
        scalars()
        return int(builder.EndObject())

    def vector(*offsets: int) -> int:
        builder.StartVector(4, len(offsets), 4)
        for offset in reversed(offsets):
            builder.PrependUOffsetTRelative(offset)
        return int(builder.EndVector())

    def unit(kind: int, options: int) -> int:
        return table({1: options}, lambda: builder.PrependUint8Slot(0, kind, 0))

    floats = [builder.CreateNumpyVector(np.asarray(values, np.float32)) for values in (mean, std)]
    units = vector(unit(1, table(dict(enumerate(floats))))) if mean or std else vector()
    source = table({4: units})
    ends: dict[int, int] = {}
    if threshold is not None:
        options = table({}, lambda: builder.PrependFloat32Slot(0, threshold, -1.0))
        ends[4] = vector(unit(3, options))
    if label_file:
        file = table({0: builder.CreateString(label_file)}, lambda: builder.PrependInt8Slot(2, 2, 0))
        ends[6] = vector(file)
    graph = table({2: vector(source), 3: vector(table(ends))})
    texts = {slot: builder.CreateString(text) for slot, text in ((0, name), (1, description), (5, licence))}
    builder.Finish(table({3: vector(graph), **texts}), identifier)
    return bytes(builder.Output())


def with_files(model: bytes, files: Mapping[str, bytes]) -> bytes:
    """A model with a zip archive behind it."""
    archive = io.BytesIO(model)
    with zipfile.ZipFile(archive, "a", zipfile.ZIP_DEFLATED) as target:
        for name, content in files.items():
            target.writestr(name, content)
    return archive.getvalue()
