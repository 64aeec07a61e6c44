"""Pictures for clips, whose brightness tells their number; and what a player makes of a clip."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from agent.types import Array, Image

BEGAN = datetime(2026, 11, 25, 10, 15, 3, tzinfo=UTC)
SECOND = 1_000_000_000
_STEP = 4


def image(number: int, width: int = 64, height: int = 48) -> Image:
    """A plain picture; up to 60 of them can be told apart."""
    return np.full((height, width, 3), number % 60 * _STEP + 8, np.uint8)


def number_of(picture: Array) -> int:
    """Which one it is."""
    return round((float(picture.mean()) - 8) / _STEP)


class Played(NamedTuple):
    """Clip as a player decodes it: numbers of the pictures, their times, and the length in the header, s."""

    numbers: list[int]
    times_s: list[float]
    length_s: float


def play(path: Path) -> Played:
    """Play a clip by OpenCV, which does it by FFmpeg."""
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    assert capture.isOpened(), f"{path} does not play"
    numbers, times = [], []
    while True:
        done, shown = capture.read()
        if not done:
            break
        numbers.append(number_of(shown))
        times.append(capture.get(cv2.CAP_PROP_POS_MSEC) / 1e3)
    fps = capture.get(cv2.CAP_PROP_FPS)
    return Played(numbers, times, capture.get(cv2.CAP_PROP_FRAME_COUNT) / fps if fps > 0 else -1.0)


def frames_of(path: Path) -> Sequence[Array]:
    """The pictures of a clip."""
    capture, found = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG), []
    while (read := capture.read())[0]:
        found.append(read[1])
    return found
