"""The speech embedding for the zoo: the float `.tflite` of a Python package with a fixed shape, as INT8."""

from __future__ import annotations

import hashlib
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nanodet import keep, read_arguments, write
from numpy.typing import NDArray

from agent.capture.audio_file import read_whole
from agent.compute.infer.audio_input import build_frontend
from agent.compute.manifest import FEATURES, AudioManifest, Manifest, Model, read_manifest
from agent.optimise.data import read_examples
from agent.optimise.graph.objects import dump, graphs, load
from agent.optimise.quantise import quantise
from agent.optimise.recipe import QuantiseRecipe
from agent.structs import convert

_ZOO = Path(__file__).resolve().parents[2] / "agent" / "models" / "zoo"
_MODEL = _ZOO / "speech-embedding.tflite"
_ROWS, _EVERY = 76, 8
"""Rows of a window, and from one window to the next."""
_GAINS = (0.03, 0.3, 1.0, 4.0)
"""Loudness of the calibration sound: of a whisper far away, and of a shout."""
_RECIPE = QuantiseRecipe(method="int8", examples=256)


def main() -> int:
    """Make what the arguments ask for; 1 if `--check` finds a difference."""
    arguments = read_arguments("speech_embedding", __doc__, _MODEL)
    torch.set_num_threads(1)
    found = _fixed((arguments.inputs / "pyopen_wakeword" / "models" / "embedding_model.tflite").read_bytes())
    if arguments.float:
        write(arguments.float, found)
        return 0
    content = _int8(found)
    return keep(arguments, content)


def _fixed(content: bytes) -> bytes:
    """Return the model for one window at a time, with ends called `sound` and `features`."""
    model = load(content)
    graph = next(iter(graphs(model)))
    for tensor in graph.table.tensors:
        tensor.shapeSignature = None
    graph.table.tensors[graph.inputs[0]].name = b"sound"
    graph.table.tensors[graph.outputs[0]].name = FEATURES.encode()
    model.signatureDefs = None
    return dump(model)


def _int8(content: bytes) -> bytes:
    """Return the INT8 file, calibrated on the words of the bundled recording, quiet and loud."""
    # Not `open_manifest`: it opens the model file too, which is yet to be made.
    text = _MODEL.with_suffix(".toml").read_text()
    manifest = convert(read_manifest(text, "speech-embedding.toml").data, Manifest)
    assert manifest.audio is not None
    model = Model(content, hashlib.sha256(content).hexdigest(), manifest, "speech-embedding")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "windows.npz"
        np.savez(path, x=_windows(manifest.audio))
        examples = read_examples(path, model)
    return quantise(content, [examples], _RECIPE, progress=print).content


def _windows(audio: AudioManifest) -> NDArray[Any]:
    """Return what the model's input takes of the recording, float32 [n, rows, columns, 1]."""
    samples = read_whole(_ZOO / "spoken.flac", audio.rate_hz)
    found = []
    for gain in _GAINS:
        loud = np.clip(np.rint(samples * gain), -32768, 32767).astype(np.int16)
        rows = (build_frontend(audio)(loud) - audio.mean) / audio.std
        found += [rows[at : at + _ROWS] for at in range(0, len(rows) - _ROWS + 1, _EVERY)]
    return np.stack(found)[..., None].astype(np.float32)


if __name__ == "__main__":
    sys.exit(main())
