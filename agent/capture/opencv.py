"""Captures: what files, streams and cameras share when OpenCV reads them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import cast

import cv2

from agent.capture.picturesize import LARGEST_PIXELS, check_size
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
        """Take over an open capture.

        Raises:
            SourceError: its pictures are too large; the capture is closed.
        """
        self._capture, self._shown = capture, shown
        try:
            check_size(shown, *_size(capture))
        except SourceError:
            capture.release()
            raise
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
        height, width = image.shape[:2]
        if width * height > LARGEST_PIXELS:  # a stream may change its size
            del image  # the error's traceback would keep its memory
            check_size(self._shown, width, height)
        return cast(Image, image)

    def close(self) -> None:
        """Free the device or file."""
        self._capture.release()


def open_capture(target: str, backend: int, parameters: Sequence[int] = ()) -> cv2.VideoCapture | None:
    """An open capture, or None; OpenCV does not say why."""
    _prepare()
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
    size = "{}x{}".format(*_size(capture))
    fps = capture.get(cv2.CAP_PROP_FPS)
    return f"{size} at {fps:g} fps" if 0 < fps <= 1000 else size


def _size(capture: cv2.VideoCapture) -> tuple[int, int]:
    return round(capture.get(cv2.CAP_PROP_FRAME_WIDTH)), round(capture.get(cv2.CAP_PROP_FRAME_HEIGHT))


def _prepare() -> None:
    """Set what OpenCV reads at every opening, where the environment does not set it already.

    OpenCV holds one lock of the process while FFmpeg opens a source, so one camera that keeps silent would hold
    up all others, and files, for its whole time limit. Since its version 4.0, FFmpeg needs no such lock.

    Lines of FFmpeg and OpenCV are kept out of ours: they repeat, name no stream, and could show credentials.
    """
    os.environ.setdefault("OPENCV_FFMPEG_IS_THREAD_SAFE", "1")
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    if "OPENCV_LOG_LEVEL" not in os.environ:
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)
