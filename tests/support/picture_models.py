"""Small models of pictures that really look: they tell red from green and blue, in every kind of numbers."""

from __future__ import annotations

from typing import Literal

import numpy as np
from flatbuffers import flexbuffers

from tests.support.metadata_builder import metadata, with_files
from tests.support.tflite_builder import Op, T, write

COLOURS = ("red", "green", "blue")
SIDE = 8
"""Height and width of the pictures that they take."""
_GAIN = 4.0
"""A channel of the largest value has a logit of this much, one of the smallest of as much below 0."""
_LOGITS, _INPUT, _WEIGHTS = 1 / 16, 1 / 127.5, 1 / 1024

Numbers = Literal["float32", "int8", "uint8"]
Ending = Literal["", "SOFTMAX", "LOGISTIC"]


def picture(colour: str) -> np.ndarray:
    """A BGR picture of one colour, neither quite dark nor quite bright, with some texture."""
    noise = np.random.default_rng(3).integers(-20, 20, (48, 64, 3))
    found = np.full((48, 64, 3), 60) + noise
    found[:, :, 2 - COLOURS.index(colour)] += 120
    return found.astype(np.uint8)


def classifier(
    numbers: Numbers = "int8",
    ending: Ending = "SOFTMAX",
    *,
    described: bool = True,
    batch: int = 1,
    shape: tuple[int, ...] = (1, 3),
    labels: tuple[str, ...] = COLOURS,
) -> bytes:
    """A classifier of colours that was trained on pictures in -1..1.

    Args:
        numbers: of its input and its output.
        ending: last operation; empty: it gives logits.
        described: whether TFLite Metadata tells its normalisation and its labels.
        batch: in the signature of its shapes; -1: left open.
        shape: of the output as the file says it; the runtime works it out anew.
        labels: in the metadata.
    """
    tensors, operations, scores = _logits(numbers, batch)
    if ending:
        tensors.append(T("scores", shape, numbers, scale=_scale(numbers, 1 / 256), zero_point=_zero(numbers, 0)))
        operations.append(Op(ending, (scores,), (len(tensors) - 1,), 1 if numbers == "float32" else 2))
    notes = {"TFLITE_METADATA": _metadata()} if described else {}
    content = write(tensors, operations, (0,), (len(tensors) - 1 if ending else scores,), metadata=notes)
    return with_files(content, {"labels.txt": "\n".join(labels).encode()}) if described else content


def detector(*, described: bool = True, sigmoid: bool = True, boxes: int = 2) -> bytes:
    """An SSD in floats, which finds a whole picture of one colour, by `TFLite_Detection_PostProcess`.

    As converters leave it, the file does not say the shapes of the outputs.
    """
    tensors, operations, scores = _logits("float32", 1)
    anchors = np.array([[0.5, 0.5, 0.8, 0.8]], np.float32)
    first = len(tensors)
    tensors += [
        T("background", (1, 1), data=np.full((1, 1), -_GAIN, np.float32)),
        T("with background", (1, 4)),
        T("predictions shape", (3,), "int32", np.array((1, 1, 4), np.int32)),
        T("raw predictions", (1, 1, 4)),
        T("predictions", (1, 1, 4)),
        T("encodings", (1, 1, 4), data=np.zeros((1, 1, 4), np.float32)),
        T("anchors", (1, 4), data=anchors),
        *(T(f"TFLite_Detection_PostProcess{end}", ()) for end in ("", ":1", ":2", ":3")),
    ]
    predictions = first + 4 if sigmoid else first + 3
    operations += [
        Op("CONCATENATION", (first, scores), (first + 1,)),
        Op("RESHAPE", (first + 1, first + 2), (first + 3,)),
    ]
    operations += [Op("LOGISTIC", (first + 3,), (first + 4,))] if sigmoid else []
    ends = tuple(range(first + 7, first + 11))
    operations.append(
        Op("TFLite_Detection_PostProcess", (first + 5, predictions, first + 6), ends, options=_options(boxes))
    )
    notes = {"TFLITE_METADATA": _metadata()} if described else {}
    content = write(tensors, operations, (0,), ends, metadata=notes)
    return with_files(content, {"labels.txt": "\n".join(("???", *COLOURS)).encode()}) if described else content


def _logits(numbers: Numbers, batch: int) -> tuple[list[T], list[Op], int]:
    """A picture to three logits: the mean of each channel; tensors, operations, and index of the logits."""
    size = SIDE * SIDE * 3
    weights = np.zeros((3, size), np.float32)
    for channel in range(3):
        weights[channel, channel::3] = _GAIN / (SIDE * SIDE)
    quantised = numbers != "float32"
    kind = numbers if quantised else "float32"
    stored = np.rint(weights / _WEIGHTS)
    zero = 128 if numbers == "uint8" else 0
    signature = (batch, SIDE, SIDE, 3) if batch != 1 else ()
    tensors = [
        T("image", (1, SIDE, SIDE, 3), kind, scale=_scale(numbers, _INPUT), zero_point=zero, signature=signature),
        T("flat shape", (2,), "int32", np.array((1, size), np.int32)),
        T("flat", (1, size), kind, scale=_scale(numbers, _INPUT), zero_point=zero),
        T("weights", (3, size), data=weights),
        T("logits", (1, 3), kind, scale=_scale(numbers, _LOGITS), zero_point=zero),
    ]
    if quantised:
        tensors[3] = T("weights", (3, size), kind, (stored + zero).astype(kind), (_WEIGHTS,), zero)
    flatten = Op("RESHAPE", (0, 1), (2,))
    return tensors, [flatten, Op("FULLY_CONNECTED", (2, 3, -1), (4,), 4 if numbers == "int8" else 1)], 4


def _scale(numbers: Numbers, scale: float) -> tuple[float, ...]:
    return () if numbers == "float32" else (scale,)


def _zero(numbers: Numbers, least: int) -> int:
    """Zero point of an output that begins at 0."""
    return least - 128 if numbers == "int8" else least


def _metadata() -> bytes:
    return metadata(name="Colours", mean=(127.5,), std=(127.5,), label_file="labels.txt")


def _options(boxes: int) -> bytes:
    builder = flexbuffers.Builder()
    with builder.Map():
        for key, number in {
            "max_detections": boxes,
            "max_classes_per_detection": 1,
            "detections_per_class": 10,
            "num_classes": 3,
        }.items():
            builder.Int(key, number)
        builder.Bool("use_regular_nms", False)
        for key, real in {"nms_score_threshold": 0.1, "nms_iou_threshold": 0.6}.items():
            builder.Float(key, real)
        for key, real in {"y_scale": 10.0, "x_scale": 10.0, "h_scale": 5.0, "w_scale": 5.0}.items():
            builder.Float(key, real)
    return bytes(builder.Finish())
