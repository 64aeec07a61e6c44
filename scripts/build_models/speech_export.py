"""Writes the trained small speech model as one INT8 `.tflite` with a signature per exit."""

from __future__ import annotations

import sys

import quantise
import speech_graph
from calibrate import ranges
from rounding import round_kernels
from speech_features import SCALE, Examples, real
from speech_graph import DEPTHS, Weights
from tflite import File

DESCRIPTION = "Small speech: zero to nine, unknown, silence; INT8, four exits"
_FIXED = {"features": SCALE, "attention/gate": quantise.PROBABILITIES}
"""Tensors whose range is known beforehand."""


def int8_file(weights: Weights, examples: Examples) -> bytes:
    """The INT8 file, calibrated on these examples."""
    net = speech_graph.speech(weights)
    floats = [sample[:, :, None] for sample in real(examples.features)]
    scales = quantise.scales(net, ranges([(net, floats)], _progress), _FIXED)
    stored = [sample[:, :, None] for sample in examples.features]
    kernels = round_kernels(net, scales, stored, _progress)
    file = File(DESCRIPTION)
    for depth, (key, stage) in zip(DEPTHS, speech_graph.stages(net).items(), strict=True):
        file.add_int8(key, stage, speech_graph.outputs(depth), scales, kernels, speech_graph.aliases())
    return file.pack()


def _progress(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
