"""MediaPipe's detector of faces for the zoo: the float `.tflite` of the catalogue as INT8."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import numpy as np
import torch
from nanodet import keep, read_arguments, write
from people import write_people

from agent.compute.manifest import Manifest, Model, read_manifest
from agent.optimise.data import Examples, read_examples
from agent.optimise.evaluate import open_content, outputs_of
from agent.optimise.quantisation.request import logit_outputs
from agent.optimise.quantise import float_file, quantise
from agent.optimise.recipe import QuantiseRecipe
from agent.structs import convert

_HERE = Path(__file__).resolve().parent
_MODEL = _HERE.parents[1] / "agent" / "models" / "zoo" / "face.tflite"
_FARTHEST = 512.0
"""Largest offset of a point from its anchor, pixels. The float model gives thousands on a few pictures, which
would be the range of all."""
_RECIPE = QuantiseRecipe(method="int8", examples=128)


def main() -> int:
    """Make what the arguments ask for; 1 if `--check` finds a difference."""
    arguments = read_arguments("face", __doc__, _MODEL)
    torch.set_num_threads(1)
    published = (arguments.inputs / "face" / "face-short-range.tflite").read_bytes()
    if arguments.float:
        write(arguments.float, float_file(published))
        return 0
    return keep(arguments, _int8(published, arguments.inputs))


def _int8(content: bytes, inputs: Path) -> bytes:
    """Return the INT8 file, calibrated on the pictures of people."""
    # Not `open_manifest`: it opens the model file too, which is yet to be made.
    text = _MODEL.with_suffix(".toml").read_text()
    manifest = convert(read_manifest(text, "face.toml").data, Manifest)
    model = Model(content, hashlib.sha256(content).hexdigest(), manifest, "face")
    examples = _usual(model, read_examples(write_people(_HERE, inputs, inputs.parent / "people"), model))
    found = quantise(content, [examples], _RECIPE, logits=logit_outputs(model), progress=_progress)
    return found.content


def _usual(model: Model, examples: Examples) -> Examples:
    """Return the examples on which the float model gives no offset that is far beyond the picture."""
    with open_content(model.content, model.manifest) as session:
        largest = [float(np.abs(offsets).max()) for offsets, _ in outputs_of(session, examples)]
    return examples.take(np.flatnonzero(np.array(largest) <= _FARTHEST))


def _progress(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
