"""A pattern that moves, always the same: a source for tests and for trying out, without any hardware."""

from __future__ import annotations

import numpy as np

from agent.capture.source import Source
from agent.capture.uri import Address
from agent.messages import Image

_SIZE, _FPS = (640, 480), 10.0
_STEP = 4
"""Pixels that the square moves from one picture to the next."""


class Pattern(Source):
    """A bright square that walks over a still gradient, left to right and top to bottom."""

    order = "bgr"

    def __init__(self, address: Address) -> None:
        options = address.options
        self._width, self._height = options.size or _SIZE
        fps = options.fps or _FPS
        self._frames, self._number = options.frames, -1
        self._background = _gradient(self._width, self._height)
        self.live = False
        self.period_s = 1.0 / fps
        self.pace_s = self.period_s if options.pace == "realtime" else 0.0
        self.about = f"{self._width}x{self._height} at {fps:g} fps"

    def grab(self) -> bool:
        """Wait for the next picture and hold it; False at the end."""
        if self._frames and self._number + 1 >= self._frames:
            return False
        self._number += 1
        return True

    def picture(self, into: Image | None) -> Image:
        """The picture held."""
        if into is None or into.shape != self._background.shape:
            into = np.empty_like(self._background)
        np.copyto(into, self._background)
        x, y, side = self.square(self._number)
        into[y : y + side, x : x + side] = (64, 224, 255)
        return into

    def square(self, number: int) -> tuple[int, int, int]:
        """Left, top and side of the square in the picture of that number, pixels."""
        side = max(4, min(self._width, self._height) // 6)
        along = number * _STEP
        columns, rows = self._width - side + 1, self._height - side + 1
        return along % columns, (along // columns * side) % rows, side

    def close(self) -> None:
        """Nothing to free."""


def open_pattern(address: Address, stall_s: float) -> Pattern:
    """The pattern of a `test:` URI."""
    return Pattern(address)


def _gradient(width: int, height: int) -> Image:
    image = np.empty((height, width, 3), np.uint8)
    image[..., 0] = np.linspace(16, 112, width, dtype=np.uint8)
    image[..., 1] = np.linspace(16, 96, height, dtype=np.uint8)[:, None]
    image[..., 2] = 32
    return image
