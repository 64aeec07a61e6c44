"""What a model without a manifest most likely needs: conventions of the families that the decoders are for."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from agent.compute.decode.decoder import DECODERS, fitting
from agent.compute.infer.audio.frontend import FRONTENDS
from agent.compute.tensors import TensorSpec
from agent.errors import ModelError, NormalisationError, UndecodableError
from agent.manifest import InputManifest, OutputManifest

_SIGNED = InputManifest(mean=(127.5, 127.5, 127.5), std=(127.5, 127.5, 127.5))
USUAL_INPUTS = {
    "blazeface": replace(_SIGNED, resize="letterbox"),
    "keypoints": InputManifest(resize="letterbox"),
    "nanodet": InputManifest(order="bgr", mean=(103.53, 116.28, 123.675), std=(57.375, 57.12, 58.395)),
    "segment": _SIGNED,
    "ssd": _SIGNED,
    "yolo": InputManifest(resize="letterbox", std=(255.0, 255.0, 255.0)),
}
"""What the published float models were trained with. Classifiers differ too much."""
USUAL_OUTPUTS = {"blazeface": OutputManifest("blazeface", score_threshold=0.5, iou_threshold=0.3)}
"""Thresholds that differ from the manifest's defaults: MediaPipe's."""

_SHOWN, _LONG = 2, 60
"""Tensors in a message, and letters of each."""
_STRIDES = "; a blazeface or nanodet with other strides needs [output] decoder and [output.options] strides"


def guess_output(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> OutputManifest:
    """The output part of a manifest for these tensors.

    Raises:
        UndecodableError: no decoder fits them.
    """
    decoder = fitting(inputs, outputs)
    if decoder is None:
        raise UndecodableError(
            f"Vedette cannot decode outputs {some(outputs)}: none of its decoders ({', '.join(DECODERS)}) fits"
            f"{_STRIDES if any(len(spec.shape) == 3 for spec in outputs) else ''}"
        )
    return USUAL_OUTPUTS.get(decoder, OutputManifest(decoder))


def some(specs: Sequence[TensorSpec]) -> str:
    """The first tensors, and how many more there are."""
    more = f" and {len(specs) - _SHOWN} more" if len(specs) > _SHOWN else ""
    return f"{', '.join(str(spec)[:_LONG] for spec in specs[:_SHOWN]) or 'none'}{more}"


def guess_input(decoder: str, spec: TensorSpec) -> InputManifest:
    """The input part of a manifest for this decoder and input.

    A quantised input takes the pixels as they are, which is what its scale was calibrated for.

    Raises:
        ModelError: it cannot be guessed; says what a manifest must say. NormalisationError: that is mean and std.
    """
    if len(spec.shape) != 4:
        raise ModelError(
            f"input {spec} is no picture; for sound its manifest must say [audio] rate_hz and frontend"
            f" (one of {', '.join(FRONTENDS)}; raw for samples), and [output] labels to name what it hears"
        )
    usual = USUAL_INPUTS.get(decoder, InputManifest())
    if spec.quantised:
        mean = float(spec.zero_point + (128 if spec.dtype == "int8" else 0))
        return replace(usual, mean=(mean,) * 3, std=(1.0 / spec.scale,) * 3)
    if not spec.dtype.startswith("float"):
        return replace(usual, mean=(0.0,) * 3, std=(1.0,) * 3)
    if decoder not in USUAL_INPUTS:
        raise NormalisationError(
            f"the range of float input {spec} is unknown; its manifest must say [input] mean and std: "
            "mean = [127.5, 127.5, 127.5] and std = [127.5, 127.5, 127.5] for -1..1; 0 and 255 for 0..1"
        )
    return usual
