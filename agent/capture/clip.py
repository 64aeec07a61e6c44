"""Clips: video files, once or in a loop, at their own pace or as fast as they are read."""

from __future__ import annotations

import logging
from pathlib import Path

import cv2

from agent.capture.localfile import exists
from agent.capture.opencv import DECODER_THREADS, Capture, open_capture
from agent.capture.uri import Address
from agent.errors import SourceError

log = logging.getLogger(__name__)

_DEFAULT_FPS = 25.0
_COUNT_TOLERANCE = 0.02
"""Containers without an index give a number of pictures that is only estimated from their length."""


class Clip(Capture):
    """A video file."""

    def __init__(self, address: Address) -> None:
        super().__init__(_open(address), address.shown)
        self._address, self._read, self._warned = address, 0, False
        self._expected = int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT))
        fps = self._capture.get(cv2.CAP_PROP_FPS)
        self.live = False
        self.period_s = 1.0 / (fps if 0 < fps <= 1000 else _DEFAULT_FPS)
        self.pace_s = self.period_s if address.options.pace == "realtime" else 0.0

    def grab(self) -> bool:
        """Wait for the next picture and hold it; False at the end."""
        if not self._capture.grab() and not self._again():
            return False
        self._read += 1
        return True

    def _again(self) -> bool:
        """At the end: whether it begins again."""
        if self._read == 0:
            raise SourceError(f"{self._shown}: expected pictures; found none that can be decoded; cut off?")
        self._warn_if_short()
        if not self._address.options.loop:
            return False
        self._capture.release()
        self._capture, self._read = _open(self._address), 0
        return self._capture.grab()

    def _warn_if_short(self) -> None:
        missing = self._expected - self._read
        if missing > max(2, _COUNT_TOLERANCE * self._expected) and not self._warned:
            self._warned = True
            log.warning(
                "%s: ended after %d of %d pictures: the file is cut off or damaged",
                self._shown,
                self._read,
                self._expected,
            )


def open_clip(address: Address, stall_s: float) -> Clip:
    """Open a video file.

    Raises:
        SourceError: it is missing, cannot be read, or is no video.
    """
    return Clip(address)


def _open(address: Address) -> cv2.VideoCapture:
    path = Path(address.target)
    if not exists(address):
        raise SourceError(f"{address.shown}: expected a video file; there is no {path.absolute()}")
    if path.is_dir():
        raise SourceError(
            f"{address.shown}: expected a video file; found a folder; for pictures write dir:{path}"
        )
    capture = open_capture(str(path), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, DECODER_THREADS])
    if capture is None:
        raise SourceError(f"{address.shown}: expected a video file; {_found(path)}")
    return capture


def _found(path: Path) -> str:
    if not path.is_file():
        return "found a device or pipe that gives no video"
    try:
        with path.open("rb"):
            size = path.stat().st_size
    except OSError as error:
        return f"it cannot be read: {error.strerror}; check its owner and mode"
    if size == 0:
        return "found an empty file"
    return f"found {size:,} bytes that are none that FFmpeg can read: cut off, or another kind of file"
