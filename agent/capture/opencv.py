"""Captures: what files, streams and cameras share when OpenCV reads them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import cast

import cv2

from agent.capture.source import Source
from agent.errors import SourceError
from agent.messages import Image

DECODER_THREADS = 1
"""FFmpeg's own choice, one per core, costs 15 % more CPU time and 2.5 MB more per stream of 768×576 H.264, and
holds back as many pictures as it has threads."""


class Capture(Source):
    """An open `cv2.VideoCapture`."""

    order = "bgr"

    def __init__(self, capture: cv2.VideoCapture, shown: str) -> None:
        self._capture, self._shown = capture, shown
        self.live, self.pace_s, self.period_s = True, 0.0, 0.0
        self.about = describe(capture)

    def grab(self) -> bool:
        """Wait for the next picture and hold it; False at the end."""
        if not self._capture.grab():
            raise SourceError(f"{self._shown}: expected the next picture; the device stopped sending")
        return True

    def picture(self, into: Image | None) -> Image:
        """The picture held."""
        decoded, image = self._capture.retrieve(into)
        if not decoded:
            raise SourceError(f"{self._shown}: expected a picture that can be decoded; found a damaged one")
        return cast(Image, image)

    def close(self) -> None:
        """Free the device or file."""
        self._capture.release()


def open_capture(target: str, backend: int, parameters: Sequence[int] = ()) -> cv2.VideoCapture | None:
    """An open capture, or None; OpenCV does not say why."""
    _quiet()
    try:
        capture = cv2.VideoCapture(target, backend, list(parameters))
    except cv2.error:
        return None
    if capture.isOpened():
        return capture
    capture.release()
    return None


def describe(capture: cv2.VideoCapture) -> str:
    """Size and rate that the source really has."""
    size = f"{capture.get(cv2.CAP_PROP_FRAME_WIDTH):.0f}x{capture.get(cv2.CAP_PROP_FRAME_HEIGHT):.0f}"
    fps = capture.get(cv2.CAP_PROP_FPS)
    return f"{size} at {fps:g} fps" if 0 < fps <= 1000 else size


def _quiet() -> None:
    """No lines of FFmpeg and OpenCV among ours: they repeat, name no stream, and could show credentials."""
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    if "OPENCV_LOG_LEVEL" not in os.environ:
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)
