"""Sources without a camera: a folder of image files, and a moving test pattern."""

from __future__ import annotations

import logging
from pathlib import Path

import cv2
import numpy as np

from agent.capture.source import Source, check_size, header_size, status
from agent.config.source_uri import SourceUri
from agent.errors import SourceError
from agent.text import plural
from agent.types import Image

log = logging.getLogger(__name__)

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


_SIZE, _PATTERN_FPS = (640, 480), 10.0
_STEP = 4
"""Pixels that the square moves from one picture to the next."""


class TestPattern(Source):
    """A bright square that moves over a still gradient, left to right and top to bottom; always the same."""

    order = "bgr"

    def __init__(self, address: SourceUri) -> None:
        options = address.options
        self._width, self._height = options.size or _SIZE
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
