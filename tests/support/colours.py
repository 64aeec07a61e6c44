"""Pictures of one colour and a model that reads a box out of it: something that walks, is lost and comes again.

Red is how far right the middle of the box is, green how far down, blue how sure the model is. So a test or a
bench decides by pictures what is seen and for how long, with a real model that costs nearly nothing.
"""

from __future__ import annotations

import math
from pathlib import Path

import cv2
import numpy as np

from tests.support.tflite_builder import Op, T, write

MANIFEST = """
name = "colour"
[input]
order = "rgb"
std = [255.0, 255.0, 255.0]
[output]
decoder = "ssd"
labels = ["walker"]
score_threshold = {threshold}
"""
_HALF = 0.15
"""Half a side of every box, as a fraction of the picture."""
EDGES = np.array([-_HALF, -_HALF, _HALF, _HALF], np.float32)
"""Edges of the box in a black picture: top, left, bottom, right."""


def colour_model(folder: Path, *, threshold: float = 0.5, side: int = 2) -> Path:
    """Write the model; gives its manifest's path.

    Args:
        folder: for its files.
        threshold: share of blue from which on there is something.
        side: pixels of its input, either way: what it takes grows with their square.
    """
    path = folder / "colour.toml"
    path.with_suffix(".tflite").write_bytes(_model(side))
    path.write_text(MANIFEST.format(threshold=threshold))
    return path


def _model(side: int) -> bytes:
    pixels = 3 * side * side
    red, green, blue = (np.tile(np.eye(3, dtype=np.float32)[n], side * side) / side**2 for n in range(3))
    shape = (1, side, side, 3)
    tensors = [
        T("image", shape, "uint8", scale=(1 / 255,)),
        T("colours", shape),
        T("pixels/shape", (2,), "int32", np.array([1, pixels], np.int32)),
        T("pixels", (1, pixels)),
        T("edges/weights", (4, pixels), data=np.stack([green, red, green, red])),
        T("edges/bias", (4,), data=EDGES),
        T("edges", (1, 4)),
        T("boxes/shape", (3,), "int32", np.array([1, 1, 4], np.int32)),
        T("boxes", (1, 1, 4)),
        T("scores/weights", (1, pixels), data=blue[None]),
        T("scores/bias", (1,), data=np.zeros(1, np.float32)),
        T("scores", (1, 1)),
        T("classes/value", (1, 1), data=np.zeros((1, 1), np.float32)),
        T("classes/shape", (2,), "int32", np.array([1, 1], np.int32)),
        T("classes", (1, 1)),
        T("count/value", (1,), data=np.ones(1, np.float32)),
        T("count/shape", (1,), "int32", np.array([1], np.int32)),
        T("count", (1,)),
    ]
    operations = [
        Op("DEQUANTIZE", (0,), (1,)),
        Op("RESHAPE", (1, 2), (3,)),
        Op("FULLY_CONNECTED", (3, 4, 5), (6,)),
        Op("RESHAPE", (6, 7), (8,)),
        Op("FULLY_CONNECTED", (3, 9, 10), (11,)),
        Op("RESHAPE", (12, 13), (14,)),
        Op("RESHAPE", (15, 16), (17,)),
    ]
    return write(tensors, operations, (0,), (8, 14, 11, 17))


def walk(folder: Path, seen: int, unseen: int) -> Path:
    """Write pictures of somebody who walks in a circle, and then is not there; gives their folder.

    Args:
        folder: gets a folder `walk`.
        seen: pictures of the walk.
        unseen: pictures after it.
    """
    pictures = folder / "walk"
    pictures.mkdir(exist_ok=True)
    for number in range(seen + unseen):
        angle = 2 * math.pi * number / max(1, seen)
        x, y = 0.5 + 0.3 * math.cos(angle), 0.5 + 0.3 * math.sin(angle)
        bgr = (round(255 * 0.9) if number < seen else 0, round(255 * y), round(255 * x))
        cv2.imwrite(str(pictures / f"{number:04}.png"), np.full((24, 32, 3), bgr, np.uint8))
    return pictures
