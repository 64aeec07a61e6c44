"""The table of decoders, which turn output arrays and a manifest into detections. Nothing here knows a runtime.

A decoder is built once for a model's tensors and called per inference. Its module is imported when a manifest
names it. To add one, write its module and its row in `DECODERS`.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from agent.compute.decode.decoder import Decoder, DecoderContext, DecoderOptions, ShapeMismatchError
from agent.compute.manifest import FEATURES, InputManifest, Manifest, OutputManifest
from agent.compute.tflite.model import TensorSpec
from agent.config import DecodeConfig
from agent.errors import ModelError
from agent.text import plural


class DecoderRow(Struct, frozen=True):
    """The facts of a decoder that need no import of it.

    Attributes:
        place: module here and class, whose `Options` are those of the manifest. The class is called with a
            `DecoderContext` and gives a `Decoder`, or raises ShapeMismatchError.
        tasks: that a model with this decoder may have.
        is_telling: tensors that it fits are seldom anything else, so that it may be guessed.
        label: of what it finds where the manifest names nothing; empty: it needs labels.
        input: normalisation of the published float models; None: they differ too much.
        other_pixels: the same by the last size of an output, where models of a family differ.
        output: thresholds of the published models.
    """

    place: str
    tasks: tuple[str, ...]
    is_telling: bool = True
    label: str | None = None
    input: InputManifest | None = None
    other_pixels: dict[int, InputManifest] = {}
    output: OutputManifest = OutputManifest()


_SIGNED = InputManifest(mean=(127.5, 127.5, 127.5), std=(127.5, 127.5, 127.5))
_UNIT = InputManifest(std=(255.0, 255.0, 255.0))
_BOXED_UNIT = replace(_UNIT, resize="letterbox")
_NANODET = InputManifest(order="bgr", mean=(103.53, 116.28, 123.675), std=(57.375, 57.12, 58.395))

DECODERS: Mapping[str, DecoderRow] = {
    "ssd": DecoderRow("ssd.Ssd", ("detection",), input=_SIGNED),
    "blazeface": DecoderRow(
        "blazeface.BlazeFace",
        ("face detection",),
        label="face",
        input=replace(_SIGNED, resize="letterbox"),
        other_pixels={18: _BOXED_UNIT},
        output=OutputManifest(score_threshold=0.5, iou_threshold=0.3),
    ),
    "keypoints": DecoderRow(
        "points.Keypoints", ("pose",), label="person", input=InputManifest(resize="letterbox")
    ),
    "landmarks": DecoderRow("points.Landmarks", ("landmarks", "pose"), False, label="", input=_BOXED_UNIT),
    "nanodet": DecoderRow("nanodet.NanoDet", ("detection",), input=_NANODET),
    "yolo": DecoderRow("yolo.Yolo", ("detection",), input=_BOXED_UNIT),
    "segment": DecoderRow("maps.Segment", ("segmentation",), input=_SIGNED, other_pixels={1: _UNIT}),
    "fomo": DecoderRow("maps.Fomo", ("detection",), is_telling=False),
    "anomaly": DecoderRow("maps.Anomaly", ("anomalies",)),
    "classify": DecoderRow("classes.Classify", ("classification",)),
    "keyword": DecoderRow("classes.Keyword", ("keywords",), is_telling=False),
    "ctc": DecoderRow("ctc.Ctc", ("text",), is_telling=False),
    "regression": DecoderRow("numbers.Regression", ("measurement",), is_telling=False),
    "raw": DecoderRow("numbers.RawOutputs", ("raw outputs",), is_telling=False, label=""),
}
"""Decoders by their name in a manifest. The most specific first: `find_fitting` tries them in this order."""


def build_decoder(
    manifest: Manifest, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], config: DecodeConfig
) -> Decoder:
    """Build the decoder that the manifest names for these tensors.

    Raises:
        ModelError: the decoder is unknown, its options are wrong, the model lacks a label of `config`, or the
            tensors do not fit. The error names what was expected, what was found, and a decoder that would fit.
    """
    context = DecoderContext(manifest.output, tuple(inputs), tuple(outputs), config)
    name = manifest.output.decoder
    try:
        return create_decoder(name, context)
    except ShapeMismatchError as error:
        other = find_fitting(context.inputs, context.outputs)
        hint = f"; these tensors would fit decoder {other!r}" if other not in (None, name) else ""
        labels = f" ({plural(len(manifest.output.labels), 'label')})" if manifest.output.labels else ""
        raise ModelError(f"model {manifest.name}: decoder {name!r}: {error}{labels}{hint}") from None
    except ModelError as error:
        raise ModelError(f"model {manifest.name}: {error}") from None


def create_decoder(name: str, context: DecoderContext) -> Decoder:
    """Build a decoder by its name. Raises ShapeMismatchError if the tensors do not fit it, else ModelError."""
    if name == FEATURES:
        raise ModelError(
            "it gives features, which are no detections: `vedette optimise anomaly` makes a model of it; of "
            "sound, `vedette teach` makes words"
        )
    if name not in DECODERS:
        near = difflib.get_close_matches(name, DECODERS, 1)
        meant = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(DECODERS)}"
        raise ModelError(f"no decoder {name!r}{meant}")
    decoder: Decoder = _decoder_class(name)(context)
    return decoder


def options_kind(name: str) -> type[DecoderOptions]:
    """Return the struct of the options of a decoder in `DECODERS`, or of `FEATURES`."""
    kind: type[DecoderOptions] = DecoderOptions if name == FEATURES else _decoder_class(name).Options
    return kind


def _decoder_class(name: str) -> Any:
    module, _, called = DECODERS[name].place.partition(".")
    return getattr(importlib.import_module(f"{__name__}.{module}"), called)


def find_fitting(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> str | None:
    """Return the most specific decoder that these tensors fit without options; None: there is none."""
    for name, row in DECODERS.items():
        context = DecoderContext(OutputManifest(name), tuple(inputs), tuple(outputs), DecodeConfig())
        try:
            if row.is_telling and create_decoder(name, context):
                return name
        except ModelError:
            continue
    return None


def lacks_labels(output: OutputManifest) -> bool:
    """Return True if a model has no labels and its decoder does not name its class either."""
    return not output.labels and output.decoder in DECODERS and DECODERS[output.decoder].label is None
