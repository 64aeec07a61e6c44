"""A staged camera at rest: its view is part of a larger picture with structure everywhere; it has noise."""

from __future__ import annotations

import cv2
import numpy as np

from agent.types import Image

WIDTH, HEIGHT = 320, 240


def surroundings(seed: int = 0) -> Image:
    """Return what is around the camera: walls, windows and leaves, 480×360."""
    random = np.random.default_rng(seed)
    picture = np.full((360, 480), 110.0, np.float32)
    for size, strength in ((12, 30.0), (40, 30.0), (120, 22.0)):
        coarse = random.standard_normal((size * 3 // 4, size)).astype(np.float32)
        picture += strength * cv2.resize(coarse, (480, 360), interpolation=cv2.INTER_CUBIC)
    for x, y, w, h, level in random.integers((0, 0, 15, 15, 20), (440, 320, 90, 90, 220), (40, 5)).tolist():
        cv2.rectangle(picture, (x, y), (x + w, y + h), (float(level),), 2 if level % 2 else -1)
    return np.clip(picture, 0, 255).astype(np.uint8)


class StagedCamera:
    """Gives pictures, each with noise of its own."""

    def __init__(self, seed: int = 0) -> None:
        self._around = surroundings(seed)
        self._random = np.random.default_rng(seed + 1)

    def view(self, right: float = 0.0, down: float = 0.0, degrees: float = 0.0) -> Image:
        """Return the view of a camera that was moved by shares of it, and turned; grey, without noise."""
        around = cv2.getRotationMatrix2D((240, 180), degrees, 1.0)
        around[0, 2] -= 80 + right * WIDTH
        around[1, 2] -= 60 + down * HEIGHT
        return np.asarray(cv2.warpAffine(self._around, around, (WIDTH, HEIGHT)), np.uint8)

    def picture(self, view: Image | None = None, gain: float = 1.0, noise: float = 2.0) -> Image:
        """Return a picture, H×W×3, of a view in some light; without a view, of the usual one."""
        grey = (self.view() if view is None else view).astype(np.float32) * gain
        noisy = grey + noise * self._random.standard_normal(grey.shape, np.float32)
        return np.repeat(np.clip(noisy, 0, 255).astype(np.uint8)[:, :, None], 3, 2)
