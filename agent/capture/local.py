"""Sources of pictures on this board: V4L2 and Raspberry Pi cameras, a folder of image files, a test pattern."""

from __future__ import annotations

import importlib
import logging
import os
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np

from agent.capture.source import LARGEST_PIXELS, Source, check_size, header_size, status
from agent.config.source_uri import SourceOptions, SourceUri
from agent.errors import SourceError
from agent.text import plural
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
    if refused := refusals(capture, address.options):
        log.warning("%s: the camera does not give the asked %s", address.masked, " and ".join(refused))
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


def refusals(capture: cv2.VideoCapture, options: SourceOptions) -> list[str]:
    """List the options that the device does not follow."""
    size = capture.get(cv2.CAP_PROP_FRAME_WIDTH), capture.get(cv2.CAP_PROP_FRAME_HEIGHT)
    is_other = {
        "size": options.size and size != options.size,
        "fps": options.fps and abs(capture.get(cv2.CAP_PROP_FPS) - options.fps) > 0.05 * options.fps,
        "format": options.format and _fourcc(capture) != options.format,
    }
    return [name for name, other in is_other.items() if other]


def _fourcc(capture: cv2.VideoCapture) -> str:
    code = int(capture.get(cv2.CAP_PROP_FOURCC))
    return "".join(chr(code >> shift & 0x7F) for shift in (0, 8, 16, 24))


_CAMERA_SIZE = (1280, 720)


class PiCamera(Source):
    """An open Picamera2."""

    # Picamera2 names formats from the last byte to the first: its "RGB888" lies in memory as B, G, R.
    order = "bgr"

    def __init__(self, camera: Any, shown: str, description: str) -> None:
        self._camera, self._shown = camera, shown
        self._request: Any = None
        self.live, self.pace_s, self.period_s = True, 0.0, 0.0
        self.description = description

    def grab(self) -> bool:
        self._release()
        try:
            self._request = self._camera.capture_request()
        except Exception as error:  # Picamera2 passes on whatever libcamera raises
            raise SourceError(f"{self._shown}: expected the next picture; the camera failed: {error}") from error
        return True

    def picture(self, into: Image | None) -> Image:
        image = cast(Image, self._request.make_array("main"))
        self._release()
        if into is None or into.shape != image.shape:
            return np.ascontiguousarray(image)
        np.copyto(into, image)
        return into

    def close(self) -> None:
        self._release()
        self._camera.close()

    def _release(self) -> None:
        """Return the buffer to the camera, which has only a few."""
        if self._request is not None:
            self._request.release()
            self._request = None


def open_picamera(address: SourceUri, stall_s: float) -> PiCamera:
    """Start a camera.

    Raises:
        SourceError: Picamera2 is missing, there is no such camera, or it cannot be started.
    """
    library = _library(address.masked)
    cameras = library.global_camera_info()
    number = int(address.target)
    if number >= len(cameras):
        models = ", ".join(f"{i} ({camera.get('Model', '?')})" for i, camera in enumerate(cameras)) or "none"
        raise SourceError(
            f"{address.masked}: expected camera {number}; found {models}; check cable and config.txt"
        )
    size, fps = address.options.size or _CAMERA_SIZE, address.options.fps
    camera = None
    try:
        camera = library(number)
        _start(camera, size, fps)
    except Exception as error:  # Picamera2 passes on whatever libcamera raises
        if camera is not None:
            camera.close()
        raise SourceError(
            f"{address.masked}: the camera cannot be started: {error}; does a program use it?"
        ) from error
    return PiCamera(camera, address.masked, f"{size[0]}x{size[1]}" + (f" at {fps:g} fps" if fps else ""))


def _start(camera: Any, size: tuple[int, int], fps: float) -> None:
    main = {"size": size, "format": "RGB888"}
    controls = {"FrameRate": fps} if fps else {}
    camera.configure(camera.create_video_configuration(main=main, controls=controls))
    camera.start()


def _library(shown: str) -> Any:
    try:
        return importlib.import_module("picamera2").Picamera2
    except ImportError as error:
        raise SourceError(
            f"{shown}: expected Picamera2; it cannot be imported ({error}): sudo apt install python3-picamera2,"
            " and make the environment with --system-site-packages"
        ) from None


SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp"})
_FPS = 10.0


class ImageFolder(Source):
    """A folder of image files."""

    order = "bgr"

    def __init__(self, address: SourceUri) -> None:
        self._shown, self._loop = address.masked, address.options.loop
        self._paths = _find(address)
        self._next, self._readable = 0, 0
        self._bad: set[Path] = set()
        self._held: Image | None = None
        fps = address.options.fps or _FPS
        self.live = False
        self.period_s = 1.0 / fps
        self.pace_s = self.period_s if address.options.pace == "realtime" else 0.0
        self.description = f"{plural(len(self._paths), 'picture')} at {fps:g} fps"

    def grab(self) -> bool:
        """Decode the next readable picture; files that cannot be decoded are skipped."""
        while self._next < len(self._paths) or self._again():
            path = self._paths[self._next]
            self._next += 1
            self._held = None if path in self._bad else self._read(path)
            if self._held is not None:
                self._readable += 1
                return True
        return False

    def picture(self, into: Image | None) -> Image:
        assert self._held is not None
        if into is None or into.shape != self._held.shape:
            return self._held
        np.copyto(into, self._held)
        return into

    def close(self) -> None:
        self._held = None

    def _again(self) -> bool:
        if self._readable == 0:
            raise SourceError(
                f"{self._shown}: expected pictures; none of the {len(self._paths)} files can be decoded"
            )
        self._next = 0
        return self._loop

    def _read(self, path: Path) -> Image | None:
        """Decode a file; where it cannot be used, warn once and return None."""
        try:
            image, why = read_picture(path), f"{path.name} is no picture that can be decoded"
        except SourceError as error:
            image, why = None, str(error)
        if image is None:
            self._bad.add(path)
            log.warning("%s: %s: skipped", self._shown, why)
        return image


def open_pictures(address: SourceUri, stall_s: float) -> ImageFolder:
    """Open a folder of pictures.

    Raises:
        SourceError: there is no such folder, or no picture in it.
    """
    return ImageFolder(address)


def _find(address: SourceUri) -> list[Path]:
    folder = Path(address.target)
    there = status(address) is not None
    if not folder.is_dir():
        found = f"{folder} is a file; write file:{folder}" if there else f"there is no {folder.absolute()}"
        raise SourceError(f"{address.masked}: expected a folder of pictures; {found}")
    try:
        paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    except OSError as error:
        raise SourceError(f"{address.masked}: {folder} cannot be read: {error.strerror}") from None
    if not paths:
        raise SourceError(f"{address.masked}: expected jpg, png or bmp files in {folder.absolute()}; found none")
    return paths


def read_picture(path: Path) -> Image | None:
    """Read a picture, H×W×3 uint8 BGR. Return None if it cannot be decoded.

    Raises:
        SourceError: the picture is too large; the message begins with the name of the file.
    """
    try:
        data = np.fromfile(path, np.uint8)
        check_size(path.name, *(header_size(data.tobytes()) or (0, 0)))
        return None if not data.size else cv2.imdecode(data, cv2.IMREAD_COLOR)  # type: ignore[return-value]
    except (OSError, cv2.error):
        return None


_PATTERN_SIZE, _PATTERN_FPS = (640, 480), 10.0
_STEP = 4
"""Pixels that the square moves from one picture to the next."""


class TestPattern(Source):
    """A bright square that moves over a still gradient, left to right and top to bottom; always the same."""

    order = "bgr"

    def __init__(self, address: SourceUri) -> None:
        options = address.options
        self._width, self._height = options.size or _PATTERN_SIZE
        fps = options.fps or _PATTERN_FPS
        self._frames, self._number = options.frames, -1
        self._background = _gradient(self._width, self._height)
        self.live = False
        self.period_s = 1.0 / fps
        self.pace_s = self.period_s if options.pace == "realtime" else 0.0
        self.description = f"{self._width}x{self._height} at {fps:g} fps"

    def grab(self) -> bool:
        if self._frames and self._number + 1 >= self._frames:
            return False
        self._number += 1
        return True

    def picture(self, into: Image | None) -> Image:
        if into is None or into.shape != self._background.shape:
            into = np.empty_like(self._background)
        np.copyto(into, self._background)
        x, y, side = self.square(self._number)
        into[y : y + side, x : x + side] = (64, 224, 255)
        return into

    def square(self, number: int) -> tuple[int, int, int]:
        """Return left, top and side of the square in a picture, pixels."""
        side = max(4, min(self._width, self._height) // 6)
        along = number * _STEP
        columns, rows = self._width - side + 1, self._height - side + 1
        return along % columns, (along // columns * side) % rows, side

    def close(self) -> None:
        pass


def open_pattern(address: SourceUri, stall_s: float) -> TestPattern:
    """Open the pattern of a `test:` URI."""
    return TestPattern(address)


def _gradient(width: int, height: int) -> Image:
    image = np.empty((height, width, 3), np.uint8)
    image[..., 0] = np.linspace(16, 112, width, dtype=np.uint8)
    image[..., 1] = np.linspace(16, 96, height, dtype=np.uint8)[:, None]
    image[..., 2] = 32
    return image
