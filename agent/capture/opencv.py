"""Cameras of V4L2, which OpenCV reads."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import cast

import cv2

from agent.capture.source import LARGEST_PIXELS, Source, check_size
from agent.config.source_uri import SourceOptions, SourceUri
from agent.errors import SourceError
from agent.types import Image

log = logging.getLogger(__name__)


class Capture(Source):
    """Pictures of an open `cv2.VideoCapture`."""

    order = "bgr"

    def __init__(self, capture: cv2.VideoCapture, shown: str) -> None:
        """Wrap an open capture.

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
        self.description = describe(capture)

    def grab(self) -> bool:
        if not self._capture.grab():
            raise SourceError(f"{self._shown}: expected the next picture; the device stopped sending")
        return True

    def picture(self, into: Image | None) -> Image:
        decoded, image = self._capture.retrieve(into)
        if not decoded:
            raise SourceError(f"{self._shown}: expected a picture that can be decoded; found a damaged one")
        height, width = image.shape[:2]
        if width * height > LARGEST_PIXELS:  # a stream may change its size
            del image  # the error's traceback would keep the picture's memory
            check_size(self._shown, width, height)
        return cast(Image, image)

    def close(self) -> None:
        self._capture.release()


def open_capture(device: str) -> cv2.VideoCapture | None:
    """Open a device. Return None if OpenCV cannot; it does not say why."""
    if "OPENCV_LOG_LEVEL" not in os.environ:  # OpenCV's messages repeat, and name no stream
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)
    try:
        capture = cv2.VideoCapture(device, cv2.CAP_V4L2)
    except cv2.error:
        return None
    if capture.isOpened():
        return capture
    capture.release()
    return None


def describe(capture: cv2.VideoCapture) -> str:
    """Describe the size and rate that the source really has."""
    size = "{}x{}".format(*_size(capture))
    fps = capture.get(cv2.CAP_PROP_FPS)
    return f"{size} at {fps:g} fps" if 0 < fps <= 1000 else size


def _size(capture: cv2.VideoCapture) -> tuple[int, int]:
    return round(capture.get(cv2.CAP_PROP_FRAME_WIDTH)), round(capture.get(cv2.CAP_PROP_FRAME_HEIGHT))


def open_camera(address: SourceUri, stall_s: float) -> Capture:
    """Open a V4L2 camera, and warn if it gives another size, rate or format than asked.

    Raises:
        SourceError: it is missing, forbidden, busy, or no camera.
    """
    device = Path(address.target)
    _check(device, address.masked)
    capture = open_capture(str(device))
    if capture is None:
        raise SourceError(
            f"{address.masked}: expected a camera; {device} gives no pictures: another program may use it"
            f" (fuser -v {device}), or it is the camera's second, data node"
        )
    _request_format(capture, address.options)
    for name, asked, given in differences(capture, address.options):
        log.warning("%s: asked for %s %s; the camera gives %s", address.masked, name, asked, given)
    log.info("%s: %s %s", address.masked, describe(capture), _fourcc(capture))
    return Capture(capture, address.masked)


def _check(device: Path, shown: str) -> None:
    if not device.exists():
        found = ", ".join(sorted(map(str, Path("/dev").glob("video*")))) or "no camera at all"
        raise SourceError(f"{shown}: expected a camera; there is no {device}; found {found}; is it plugged in?")
    if not os.access(device, os.R_OK | os.W_OK):
        raise SourceError(f"{shown}: this user may not open {device}; add it to the group video")


def _request_format(capture: cv2.VideoCapture, options: SourceOptions) -> None:
    """Format first: it decides which sizes and rates there are. A refusal shows when reading back."""
    if options.format:
        capture.set(cv2.CAP_PROP_FOURCC, cv2.VideoWriter.fourcc(*options.format))
    if options.size:
        capture.set(cv2.CAP_PROP_FRAME_WIDTH, options.size[0])
        capture.set(cv2.CAP_PROP_FRAME_HEIGHT, options.size[1])
    if options.fps:
        capture.set(cv2.CAP_PROP_FPS, options.fps)


def differences(capture: cv2.VideoCapture, options: SourceOptions) -> list[tuple[str, str, str]]:
    """List what the device does not do as asked: name, asked value, given value."""
    size = capture.get(cv2.CAP_PROP_FRAME_WIDTH), capture.get(cv2.CAP_PROP_FRAME_HEIGHT)
    fps = capture.get(cv2.CAP_PROP_FPS)
    found = []
    if options.size and size != options.size:
        found.append(("size", "{}x{}".format(*options.size), "{:.0f}x{:.0f}".format(*size)))
    if options.fps and abs(fps - options.fps) > 0.05 * options.fps:
        found.append(("fps", f"{options.fps:g}", f"{fps:g}"))
    if options.format and _fourcc(capture) != options.format:
        found.append(("format", options.format, _fourcc(capture)))
    return found


def _fourcc(capture: cv2.VideoCapture) -> str:
    code = int(capture.get(cv2.CAP_PROP_FOURCC))
    return "".join(chr(code >> shift & 0x7F) for shift in (0, 8, 16, 24))
