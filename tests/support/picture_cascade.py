"""A classifier of plain colours with two exits: the first is sure of pure colours only."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.support import tflite_builder as build

COLOURS = ("red", "green", "blue")
SIDE = 8
SURE, UNSURE = (255, 0, 0), (140, 100, 100)
"""A red for the first exit, and one for the second, RGB."""
_MANIFEST = """
name = "colours"
[input]
std = [255.0, 255.0, 255.0]
[output]
decoder = "classify"
labels = ["red", "green", "blue"]
score_threshold = 0.3
[output.options]
logits = true
[[variants]]
name = "deep"
signature = "exit2"
after = "early"
multiply_adds = 576
[[variants]]
name = "early"
signature = "exit1"
multiply_adds = 576
temperature = {temperature}
"""


_EARLY, _DEEP = 4.0, 20.0
"""Factor of the mean of each channel, of which the logits are."""


def _exit(sharpness: float, *, hidden: bool) -> build.Graph:
    values = 3 * SIDE * SIDE
    weights = np.tile(np.eye(3, dtype=np.float32), SIDE * SIDE) * np.float32(sharpness / SIDE**2)
    shape = np.array((1, values), np.int32)
    tensors = [
        build.T("image", (1, SIDE, SIDE, 3)),
        build.T("shape", (2,), "int32", shape),
        build.T("flat", (1, values)),
        build.T("weights", (3, values), "float32", weights),
        build.T("logits", (1, 3)),
        build.T("zero", (3,), "float32", np.zeros(3, np.float32)),
        build.T("hidden", (1, SIDE, SIDE, 3)),
    ]
    operations = [build.Op("RESHAPE", (0, 1), (2,)), build.Op("FULLY_CONNECTED", (2, 3, -1), (4,))]
    if hidden:
        operations.append(build.Op("ADD", (0, 5), (6,)))
    return build.Graph(tensors if hidden else tensors[:5], operations, (0,), (4, 6) if hidden else (4,))


def colour_cascade(folder: Path, confidence: float | None = 0.8, temperature: float = 1.0) -> Path:
    """Write the model; return the path of its manifest.

    Args:
        folder: where to.
        confidence: at which the first exit answers; None: it has not been learned.
        temperature: of the first exit.
    """
    early, deep = _exit(_EARLY, hidden=True), _exit(_DEEP, hidden=False)
    keys = [
        build.Signature("exit1", {"image": 0}, {"logits": 4, "hidden": 6}, 0),
        build.Signature("exit2", {"hidden": 0}, {"logits": 4}, 1),
    ]
    content = build.write(early.tensors, early.operations, early.inputs, early.outputs, keys, more=[deep])
    (folder / "colours.tflite").write_bytes(content)
    text = _MANIFEST.format(temperature=temperature)
    path = folder / "colours.toml"
    path.write_text(text if confidence is None else f"{text}confidence = {confidence}\n")
    return path
