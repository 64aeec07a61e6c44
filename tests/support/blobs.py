"""A detector of bright cells on a dark ground, and pictures with labels for it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import cv2
import numpy as np

from agent.compute.manifest import Manifest, Model, OutputManifest

HEIGHT, WIDTH, CELL = 64, 96, 8
"""Size of the model's picture, and of a cell of its grid, pixels."""
_MIDDLE, _STEP = 120.0, 12.0
"""Mean of a cell at which the score is one half, and the change that makes it e times as probable."""


def blob_model() -> bytes:
    """Return a float model that tells for each cell of 8×8 pixels whether it is bright."""
    from agent.optimise.graph.layers import Convolution, Network
    from agent.optimise.graph.writer import ModelWriter

    net = Network("image", shapes={"image": (1, HEIGHT, WIDTH, 3)})
    kernel = np.zeros((CELL, CELL, 3, 2), np.float32)
    kernel[..., 1] = 1 / (CELL * CELL * 3 * _STEP)
    convolution = Convolution(kernel, np.array([0.0, -_MIDDLE / _STEP], np.float32))
    logits = net.convolve("image", convolution, stride=(CELL, CELL), padding="VALID")
    writer = ModelWriter("blobs")
    writer.add("serving_default", net, [net.each("SOFTMAX", logits)], {})
    return writer.pack()


def manifest() -> Manifest:
    return Manifest("blobs", OutputManifest("fomo", ("cell",), score_threshold=0.5))


def write_model(folder: Path) -> Path:
    """Write the model with its manifest; return the manifest's path."""
    content = blob_model()
    (folder / "blobs.tflite").write_bytes(content)
    lines = [
        'name = "blobs"',
        'file = "blobs.tflite"',
        f'sha256 = "{hashlib.sha256(content).hexdigest()}"',
        "[output]",
        'decoder = "fomo"',
        'labels = ["cell"]',
    ]
    (folder / "blobs.toml").write_text("\n".join(lines))
    return folder / "blobs.toml"


def open_model(folder: Path) -> Model:
    """Write and open the model."""
    from agent.models.library import open_model_without_root

    return open_model_without_root(str(write_model(folder)))


def picture(
    cells: list[tuple[int, int, int]], seed: int = 0, size: tuple[int, int] = (HEIGHT, WIDTH)
) -> np.ndarray:
    """Return a dark picture with cells of 16×16 pixels.

    Args:
        cells: x and y of the corner in units of 8 pixels, and the brightness.
        seed: of the noise.
        size: height and width, pixels.
    """
    found = np.random.default_rng(seed).integers(10, 50, (*size, 3), dtype=np.uint8)
    for x, y, brightness in cells:
        found[y * CELL : (y + 2) * CELL, x * CELL : (x + 2) * CELL] = brightness
    return found


def write_pictures(folder: Path, count: int = 40, *, faint: int = 5) -> Path:
    """Write labelled pictures as YOLO has them: a cell in most, in every fifth none, in some a faint one.

    In each eighth, a smear that is no cell, each one brighter than the one before.
    """
    random = np.random.default_rng(0)
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "classes.txt").write_text("cell\n")
    for number in range(count):
        cells, lines = [], []
        if number % 5:
            x, y = int(random.integers(1, 5)), int(random.integers(1, 6))
            cells.append((x, y, 128 if number % faint == 1 else int(random.integers(150, 220))))
            lines.append(f"0 {(x + 1) * CELL / WIDTH} {(y + 1) * CELL / HEIGHT} {16 / WIDTH} {16 / HEIGHT}")
        if number % 8 == 3:
            cells.append((9, int(random.integers(0, 6)), 112 + number // 2))
        cv2.imwrite(str(folder / "images" / f"patient-{number:03}.png"), picture(cells, number))
        (folder / "labels" / f"patient-{number:03}.txt").write_text("\n".join(lines))
    return folder
