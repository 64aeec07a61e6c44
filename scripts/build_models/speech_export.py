"""Writes the trained small speech model as one INT8 `.tflite` with a signature per exit.

The steps are those of `vedette optimise`: the whole graph is quantised, trained with the rounding in place on the
scores of all exits, and cut into a chain.
"""

from __future__ import annotations

import sys
from pathlib import Path

import speech_graph
import torch
from speech_corpus import LABELS
from speech_features import HIGHEST, LOWEST, Examples, real
from speech_graph import DEPTHS, Weights

from agent.compute.manifest import HIDDEN, InputManifest
from agent.optimise import data
from agent.optimise.data.layouts import FoundData
from agent.optimise.depth.stages import SCORES, WHOLE, Stage, split
from agent.optimise.graph.writer import ModelWriter
from agent.optimise.qat import train_quantised
from agent.optimise.quantise import quantise
from agent.optimise.recipe import QatRecipe, QuantiseRecipe

DESCRIPTION = "Small speech: zero to nine, unknown, silence; INT8, four exits"
_RECIPE = QuantiseRecipe(method="int8", examples=384)
_TRAINING = QatRecipe(batch=128)


def int8_file(weights: Weights, examples: Examples, checkpoint: Path) -> bytes:
    """The INT8 file. One thread: sums are then added up in one order.

    Args:
        weights: of the float model.
        examples: for calibration and for training.
        checkpoint: of the training with the rounding in place.
    """
    torch.set_num_threads(1)
    net = speech_graph.speech(weights)
    outputs = [name for depth in DEPTHS for name in speech_graph.outputs(depth)]
    writer = ModelWriter(DESCRIPTION)
    writer.add(WHOLE, net, outputs)
    given = _data(examples)
    found = quantise(writer.pack(), [given], _RECIPE, progress=_progress)
    scores = [place for place, name in enumerate(outputs) if name.startswith(SCORES)]
    found = train_quantised(found, given, _TRAINING, exits=scores, checkpoint=checkpoint, progress=_progress)
    content = found.quantiser.file(found.rounded, "int8", found.scales)
    return split(content, [_stage(depth) for depth in DEPTHS])


def _data(examples: Examples) -> data.Examples:
    """The examples as `agent.optimise` takes them."""
    values = real(examples.features)[..., None]
    values[0, 0, 0], values[0, 0, 1] = LOWEST, HIGHEST  # the range of the input is that of these values
    found = FoundData(values, "seconds of sound", classes=examples.labels, names=tuple(LABELS))
    return data.Examples(found, values.shape[1:], InputManifest(), "examples", sound=True)


def _stage(depth: int) -> Stage:
    hidden = "" if depth == DEPTHS[-1] else f"{HIDDEN}{depth}"
    return Stage(f"exit{depth}", f"{SCORES}{depth}", hidden)


def _progress(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
