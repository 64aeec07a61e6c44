"""Sources that OpenCV reads: V4L2 cameras, video files, and RTSP or HTTP streams."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import cv2

from agent.capture.server_probe import find_refusal, why_unreachable
from agent.capture.source import LARGEST_PIXELS, Source, check_size, status
from agent.config.source_uri import SourceOptions, SourceUri
from agent.errors import SourceError
from agent.types import Image

log = logging.getLogger(__name__)

DECODER_THREADS = 1
"""FFmpeg's own choice, one per core, costs 15 % more CPU time and 2.5 MB more per stream of 768×576 H.264, and
holds back as many pictures as it has threads."""


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


def open_capture(target: str, backend: int, parameters: Sequence[int] = ()) -> cv2.VideoCapture | None:
    """Open a capture. Return None if OpenCV cannot; it does not say why."""
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
    """Describe the size and rate that the source really has."""
    size = "{}x{}".format(*_size(capture))
    fps = capture.get(cv2.CAP_PROP_FPS)
    return f"{size} at {fps:g} fps" if 0 < fps <= 1000 else size


def _size(capture: cv2.VideoCapture) -> tuple[int, int]:
    return round(capture.get(cv2.CAP_PROP_FRAME_WIDTH)), round(capture.get(cv2.CAP_PROP_FRAME_HEIGHT))


def _prepare() -> None:
    """Set the options that OpenCV reads at every opening, unless the environment sets them.

    OpenCV holds one lock of the process while FFmpeg opens a source: one silent camera would hold up all other
    cameras and files for its whole timeout. FFmpeg 4.0 and later need no such lock.

    Logs of FFmpeg and OpenCV are switched off: they repeat, name no stream, and could show credentials.
    """
    os.environ.setdefault("OPENCV_FFMPEG_IS_THREAD_SAFE", "1")
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    if "OPENCV_LOG_LEVEL" not in os.environ:
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)


def open_camera(address: SourceUri, stall_s: float) -> Capture:
    """Open a V4L2 camera, and warn if it gives another size, rate or format than asked.

    Raises:
        SourceError: it is missing, forbidden, busy, or no camera.
    """
    device = Path(address.target)
    _check(device, address.masked)
    capture = open_capture(str(device), cv2.CAP_V4L2)
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


_DEFAULT_FPS = 25.0
_COUNT_TOLERANCE = 0.02
"""Share by which a frame count may be wrong: containers without an index only estimate it."""


class VideoFile(Capture):
    """Pictures of a video file, once or in a loop."""

    def __init__(self, address: SourceUri) -> None:
        super().__init__(_open(address), address.masked)
        self._address, self._read, self._warned = address, 0, False
        self._expected = int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT))
        fps = self._capture.get(cv2.CAP_PROP_FPS)
        self.live = False
        self.period_s = 1.0 / (fps if 0 < fps <= 1000 else _DEFAULT_FPS)
        self.pace_s = self.period_s if address.options.pace == "realtime" else 0.0

    def grab(self) -> bool:
        if not self._capture.grab() and not self._again():
            return False
        self._read += 1
        return True

    def _again(self) -> bool:
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


def open_clip(address: SourceUri, stall_s: float) -> VideoFile:
    """Open a video file.

    Raises:
        SourceError: it is missing, cannot be read, or is no video.
    """
    return VideoFile(address)


def _open(address: SourceUri) -> cv2.VideoCapture:
    path = Path(address.target)
    if status(address) is None:
        raise SourceError(f"{address.masked}: expected a video file; there is no {path.absolute()}")
    if path.is_dir():
        raise SourceError(
            f"{address.masked}: expected a video file; found a folder; for pictures write dir:{path}"
        )
    capture = open_capture(str(path), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, DECODER_THREADS])
    if capture is None:
        raise SourceError(f"{address.masked}: expected a video file; {_describe_content(path)}")
    return capture


def _describe_content(path: Path) -> str:
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


_FFMPEG_OPTIONS = "rtsp_transport;tcp|analyzeduration;300000|probesize;100000"
"""TCP: a lost packet would smear the picture until the next key frame. Looking at 0.3 s (µs here) instead of 5 s
of the stream opens a camera in 0.5 s instead of 2. The variable is the process's, so files get the same:
AVI, MP4, MKV and TS open with it."""
_ASK_S = 2.0
"""Longest time to ask a server why it gives no stream, s."""


class NetworkStream(Capture):
    """Pictures of a stream from another machine."""

    def __init__(self, capture: cv2.VideoCapture, address: SourceUri, stall_s: float) -> None:
        super().__init__(capture, address.masked)
        self._target, self._stall_s, self._grabbed = address.target, stall_s, 0

    def grab(self) -> bool:
        began_s = time.monotonic()
        grabbed = self._capture.grab()
        # After its timeout FFmpeg may first return a picture that it held back, from before the silence.
        if time.monotonic() - began_s >= self._stall_s:
            raise SourceError(f"{self._shown}: no picture for {self._stall_s:g} s")
        if not grabbed:
            raise SourceError(f"{self._shown}: expected the next picture; {self._why_ended()}")
        self._grabbed += 1
        return True

    def _why_ended(self) -> str:
        # A snapshot's URL, a common mistake, opens like a stream and ends after one picture.
        why = find_refusal(self._target, min(self._stall_s, _ASK_S)) if self._grabbed == 1 else ""
        return why or "the server stopped sending"


def open_stream(address: SourceUri, stall_s: float) -> NetworkStream:
    """Open an RTSP or HTTP stream.

    Raises:
        SourceError: there is no answer within `stall_s`, or it is no video.
    """
    os.environ.setdefault("OPENCV_FFMPEG_CAPTURE_OPTIONS", _FFMPEG_OPTIONS)
    limit_ms = max(1, round(stall_s * 1000))
    parameters = [
        *(cv2.CAP_PROP_N_THREADS, DECODER_THREADS),
        *(cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, limit_ms),
        *(cv2.CAP_PROP_READ_TIMEOUT_MSEC, limit_ms),
    ]
    capture = open_capture(address.target, cv2.CAP_FFMPEG, parameters)
    if capture is None:
        why = why_unreachable(address.target, min(stall_s, _ASK_S))
        raise SourceError(f"{address.masked}: expected a video stream; {why}")
    return NetworkStream(capture, address, stall_s)
