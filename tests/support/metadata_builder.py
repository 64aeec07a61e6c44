"""Writes TFLite Metadata for tests; slots as in tensorflow_lite_support/metadata/metadata_schema.fbs."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial

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
    rate_hz: int = 0,
    calibration: str | None = None,
    calibration_file: str = "",
    identifier: bytes = b"M001",
) -> bytes:
    """The flatbuffer of a model with one input, of sound if it has a rate, and one output.

    calibration: transformation of the scores before it: empty, `log` or `logit`; None: there is none.
    """
    builder = flatbuffers.Builder(256)

    def table(offsets: Mapping[int, int], scalars: Callable[[], object] = lambda: None) -> int:
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
    start = {4: units}
    if rate_hz:
        counts = (partial(builder.PrependUint32Slot, 0, rate_hz, 0), partial(builder.PrependUint32Slot, 1, 1, 0))
        sound = table({}, lambda: [one() for one in counts])
        start[3] = table({1: sound}, lambda: builder.PrependUint8Slot(0, 4, 0))
    source = table(start)
    steps, files = [], []
    if threshold is not None:
        steps.append(unit(3, table({}, lambda: builder.PrependFloat32Slot(0, threshold, -1.0))))
    if calibration is not None:
        transform = ("", "log", "logit").index(calibration)
        numbers = (
            partial(builder.PrependInt8Slot, 0, transform, 0),
            partial(builder.PrependFloat32Slot, 1, 0.25, 0),
        )
        steps.append(unit(2, table({}, lambda: [one() for one in numbers])))
    for name_of_file, kind in ((label_file, 2), (calibration_file, 4)):
        if name_of_file:
            text = builder.CreateString(name_of_file)
            files.append(table({0: text}, partial(builder.PrependInt8Slot, 2, kind, 0)))
    ends = {slot: vector(*found) for slot, found in ((4, steps), (6, files)) if found}
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
