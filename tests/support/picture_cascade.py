"""A classifier of plain colours with two exits: the first is sure of pure colours only."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from agent.optimise.depth.stages import Stage, split, stage_multiply_adds
from agent.optimise.graph.layers import RELU, Convolution, Network
from agent.optimise.graph.writer import ModelWriter

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
multiply_adds = {deep}
[[variants]]
name = "early"
signature = "exit1"
multiply_adds = {early}
temperature = {temperature}
"""


def colour_network() -> Network:
    """Two convolutions that repeat the picture, and behind each a head on the mean colour."""
    net = Network("image", shapes={"image": (1, SIDE, SIDE, 3)})
    same = np.eye(3, dtype=np.float32)
    zero = np.zeros(3, np.float32)
    x = "image"
    for number, sharpness in ((1, 4.0), (2, 20.0)):
        x = net.convolve(x, Convolution(same[None, None], zero), name=f"hidden{number}", activation=RELU)
        mean = net.reduce("MEAN", x, (1, 2), name=f"mean{number}")
        net.connect(mean, Convolution(sharpness * same[None, None], zero), name=f"logits{number}")
    return net


def colour_cascade(folder: Path, confidence: float | None = 0.8, temperature: float = 1.0) -> Path:
    """Write the model; return the path of its manifest.

    Args:
        folder: where to.
        confidence: at which the first exit answers; None: it has not been learned.
        temperature: of the first exit.
    """
    writer = ModelWriter()
    writer.add("all", colour_network(), ["logits1", "hidden1", "logits2"])
    content = split(writer.pack(), (Stage("exit1", "logits1", "hidden1"), Stage("exit2", "logits2")))
    (folder / "colours.tflite").write_bytes(content)
    costs = stage_multiply_adds(content)
    text = _MANIFEST.format(early=costs["exit1"], deep=costs["exit2"], temperature=temperature)
    path = folder / "colours.toml"
    path.write_text(text if confidence is None else f"{text}confidence = {confidence}\n")
    return path
