"""Guesses what a model takes and gives by the shapes of its tensors, where neither manifest nor metadata says it.

Guesses follow the published models of each family.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from msgspec.structs import replace

from agent.compute.decode.decoder import DECODERS, find_fitting
from agent.compute.manifest import AudioManifest, InputManifest, OutputManifest
from agent.compute.tflite.model import TensorSpec
from agent.errors import ModelError, NormalisationError, UndecodableError

_SIGNED = InputManifest(mean=(127.5, 127.5, 127.5), std=(127.5, 127.5, 127.5))
USUAL_INPUTS = {
    "blazeface": replace(_SIGNED, resize="letterbox"),
    "keypoints": InputManifest(resize="letterbox"),
    "landmarks": InputManifest(resize="letterbox", std=(255.0, 255.0, 255.0)),
    "nanodet": InputManifest(order="bgr", mean=(103.53, 116.28, 123.675), std=(57.375, 57.12, 58.395)),
    "segment": _SIGNED,
    "ssd": _SIGNED,
    "yolo": InputManifest(resize="letterbox", std=(255.0, 255.0, 255.0)),
}
"""Normalisation of the published float models. Classifiers differ too much."""
_OTHER_PIXELS = {
    ("blazeface", 18): InputManifest(resize="letterbox", std=(255.0, 255.0, 255.0)),
    ("segment", 1): InputManifest(std=(255.0, 255.0, 255.0)),
}
"""Normalisation by decoder and last size of an output, where models of a family differ: MediaPipe's of 0..1."""
USUAL_OUTPUTS = {"blazeface": OutputManifest("blazeface", score_threshold=0.5, iou_threshold=0.3)}
"""Thresholds that differ from the manifest's defaults: MediaPipe's."""
_SHOWN, _LONG = 2, 60
"""Tensors in a message, and characters of each."""
_STRIDES = "; a blazeface or nanodet with other strides needs [output] decoder and [output.options] strides"


class Sound(NamedTuple):
    """Front end and words of a family of sound models.

    Attributes:
        audio: front end.
        family: name, for people.
        decoder: of scores.
        labels: in the order of the family's training; empty: its models have words of their own.
    """

    audio: AudioManifest
    family: str
    decoder: str = "keyword"
    labels: tuple[str, ...] = ()


_SPEECH_HZ = 16_000
_MFCC = {"window_ms": 30, "hop_ms": 20, "mels": 40, "low_hz": 20, "high_hz": 4000, "coefficients": 10}
_LFBE = {"window_ms": 64, "hop_ms": 32, "mels": 40, "low_hz": 0, "high_hz": 8000, "preemphasis": 0.96875}
_FAMILIES = {
    (49, 10): Sound(
        AudioManifest(_SPEECH_HZ, "mfcc", 0.1, options={**_MFCC, "magnitude": True, "offset": 1e-6}),
        "MLPerf Tiny's keyword spotting",
        labels=("down", "go", "left", "no", "off", "on", "right", "stop", "up", "yes", "silence", "unknown"),
    ),
    (30, 40): Sound(  # (10 log10(energy) + 52) / 64, of a window of another energy
        AudioManifest(_SPEECH_HZ, "logmel", 0.096, -11.05, 14.737, {**_LFBE, "offset": 1e-30}),
        "MLPerf Tiny's streaming wake word",
        labels=("marvin", "silence", "unknown"),
    ),
    (49, 40): Sound(
        AudioManifest(_SPEECH_HZ, "micro", 0.1, options={"hop_ms": 20}),
        "TensorFlow Lite Micro's micro_speech",
        labels=("silence", "unknown", "yes", "no"),
    ),
    (1, 40): Sound(AudioManifest(_SPEECH_HZ, "micro", options={"hop_ms": 20}), "microWakeWord 1"),
    (2, 40): Sound(AudioManifest(_SPEECH_HZ, "micro"), "microWakeWord"),
    (3, 40): Sound(AudioManifest(_SPEECH_HZ, "micro"), "microWakeWord"),
}
"""Families that take features of sound, by rows and columns. Sources: mlcommons/tiny, benchmark/training,
`get_dataset.py` of each; tensorflow/tflite-micro, examples/micro_speech; esphome/esphome, micro_wake_word."""
_RATES = {44_032: 44_100, 144_000: 48_000, 160_000: 32_000}
"""Samples of a window → a second, of those that do not hear 16 kHz: TensorFlow.js' words, BirdNET and Perch."""
_LEAST_SAMPLES = 4000
"""A vector of fewer numbers is no window of samples."""
_LEAST_SIDE = 8
"""A grey picture with a shorter side is a table of something else."""
_FLAT = 1500
"""A vector of fewer numbers is no flattened table of features."""
_BANDS = {**dict.fromkeys((10, 12, 13, 20), "mfcc"), **dict.fromkeys((32, 40, 64, 80, 128), "logmel")}
"""Front end by the usual numbers of columns."""
_COUNT = {"mfcc": "coefficients", "logmel": "mels"}
_FEWEST_ROWS = 20
_EXAMPLE = """
If it takes features of sound, write a manifest beside it; for instance, but with the numbers of its training:
[audio]
rate_hz = 16000
frontend = "{frontend}"
every_s = 0.1
options = {{ window_ms = 30, hop_ms = 20, {count} = {columns} }}
[output]
decoder = "keyword"
labels = ["a word", "another"]"""


def guess_sound(spec: TensorSpec, rate_hz: int | None = None) -> Sound | None:
    """Guess the front end of an input; None: it takes no known kind of sound.

    rate_hz: samples a second, if the input is known to take samples.
    """
    sides = tuple(side for side in spec.shape if side != 1)
    if rate_hz or (len(sides) == 1 and sides[0] >= _LEAST_SAMPLES):
        rate_hz = rate_hz or _RATES.get(sides[0], _SPEECH_HZ)
        half_s = round(math.prod(sides) / rate_hz / 2, 3)
        return Sound(AudioManifest(rate_hz, "raw", half_s), "samples", "classify")
    for (rows, columns), known in _FAMILIES.items():
        is_flat = len(spec.shape) == 2 and sides == (rows * columns,) and rows * columns >= _FLAT
        if is_flat or (len(spec.shape) > 2 and sides == ((rows, columns) if rows > 1 else (columns,))):
            return known
    return None


def guess_output(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> OutputManifest:
    """Guess the output part of a manifest for these tensors. Raises UndecodableError if no decoder fits them."""
    decoder = find_fitting(inputs, outputs)
    if decoder is None:
        raise UndecodableError(
            f"cannot decode outputs {describe_specs(outputs)}: none of the decoders ({', '.join(DECODERS)}) fits"
            f"{_STRIDES if any(len(spec.shape) == 3 for spec in outputs) else ''}"
        )
    return USUAL_OUTPUTS.get(decoder, OutputManifest(decoder))


def describe_specs(specs: Sequence[TensorSpec]) -> str:
    """Describe the first tensors and the number of further ones."""
    more = f" and {len(specs) - _SHOWN} more" if len(specs) > _SHOWN else ""
    return f"{', '.join(str(spec)[:_LONG] for spec in specs[:_SHOWN]) or 'none'}{more}"


def check_picture(spec: TensorSpec) -> None:
    """Check that an input takes a picture.

    Raises:
        ModelError: it does not; the error has a manifest for it if it may take features of sound.
    """
    height, width, channels = spec.picture or (0, 0, 0)
    if channels > 1 or min(height, width) >= _LEAST_SIDE:
        return
    text = (
        f"input {spec} is neither a picture, [1,height,width,3] or [1,height,width,1], nor sound of a known kind"
    )
    *above, columns = [side for side in spec.shape if side != 1] or [1]
    if columns in _BANDS and math.prod(above) >= _FEWEST_ROWS:
        frontend = _BANDS[columns]
        text += _EXAMPLE.format(frontend=frontend, count=_COUNT[frontend], columns=columns)
    raise ModelError(text)


def guess_input(decoder: str, spec: TensorSpec, outputs: Sequence[TensorSpec] = ()) -> InputManifest:
    """Guess the input part of a manifest for a picture, by decoder, input and outputs.

    A quantised input takes the pixels as they are: its scale was calibrated for them.

    Raises:
        NormalisationError: mean and std cannot be guessed. The error names what a manifest must say.
    """
    rows = (_OTHER_PIXELS.get((decoder, one.shape[-1])) for one in outputs if one.shape)
    usual = next((one for one in rows if one), USUAL_INPUTS.get(decoder, InputManifest()))
    if spec.quantised:
        mean = float(spec.zero_point + (128 if spec.dtype == "int8" else 0))
        return replace(usual, mean=(mean,) * 3, std=(1.0 / spec.scale,) * 3)
    if not spec.dtype.startswith("float"):
        return replace(usual, mean=(0.0,) * 3, std=(1.0,) * 3)
    if decoder not in USUAL_INPUTS:
        raise NormalisationError(
            f"the range of float input {spec} is unknown; its manifest must have [input] mean and std: "
            "mean = [127.5, 127.5, 127.5] and std = [127.5, 127.5, 127.5] for -1..1; 0 and 255 for 0..1"
        )
    return usual
