"""Letters on pictures.

OpenCV 5 unpacks a whole font for its first letter, over 8 MB that stay: here is a strip of printable ASCII
instead. Text beyond ASCII is left to OpenCV, so that whoever needs it pays for it.
"""

from __future__ import annotations

import functools
from importlib.resources import files

import cv2
import numpy as np
from numpy.typing import NDArray

from agent.messages import Image

_FIRST, _COUNT = 32, 95
_FALLBACK = cv2.FONT_HERSHEY_SIMPLEX
_FALLBACK_HEIGHT = 36.0
"""Height of a line of `_FALLBACK` at scale 1, px."""

Mask = NDArray[np.uint8]
Colour = tuple[int, int, int]


@functools.lru_cache(maxsize=128)
def line(text: str, height: int) -> Mask:
    """A line of text as a mask, `height` rows of uint8: 255 is ink. Not to be written to: it is kept."""
    if not text:
        return np.zeros((height, 0), np.uint8)
    strip = _ascii(text) if text.isascii() and text.isprintable() else _any(text)
    width = max(1, round(strip.shape[1] * height / strip.shape[0]))
    shrinks = height < strip.shape[0]
    scaled = cv2.resize(strip, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return scaled.astype(np.uint8, copy=False)


def ink(picture: Image, mask: Mask, x: int, y: int, colour: Colour) -> None:
    """Paint a mask into a picture, its corner at (x, y) ≥ 0; what lies outside is cut off."""
    part = picture[y : y + mask.shape[0], x : x + mask.shape[1]]
    share = mask[: part.shape[0], : part.shape[1], None].astype(np.uint16)
    part[:] = (part * (255 - share) + np.array(colour, np.uint16) * share + 127) // 255


def _ascii(text: str) -> Mask:
    glyphs = _glyphs()
    return np.hstack([glyphs[ord(character) - _FIRST] for character in text])


def _any(text: str) -> Mask:
    (width, _), _ = cv2.getTextSize(text, _FALLBACK, 1.0, 2)
    strip = np.zeros((round(_FALLBACK_HEIGHT), max(1, width)), np.uint8)
    cv2.putText(strip, text, (0, round(_FALLBACK_HEIGHT * 0.75)), _FALLBACK, 1.0, (255,), 2, cv2.LINE_AA)
    return strip


@functools.cache
def _glyphs() -> Mask:
    """Characters × height × width."""
    packed = np.frombuffer(files("agent.compute").joinpath("glyphs.png").read_bytes(), np.uint8)
    strip = cv2.imdecode(packed, cv2.IMREAD_GRAYSCALE)
    assert strip is not None
    return np.stack(np.hsplit(strip, _COUNT)).astype(np.uint8, copy=False)
