"""Pictures of FFmpeg's decoders: brightness without a copy, and colours when somebody needs them.

Converting a picture of 1080p to BGR takes a sixth as long as decoding it. The motion gate needs brightness alone,
and a picture that is dropped for a newer one needs nothing.
"""

from __future__ import annotations

import threading

import av
import numpy as np
from av.video.frame import VideoFrame
from av.video.plane import VideoPlane
from av.video.reformatter import ColorRange

from agent.capture.pictures.bgr import BgrConverter
from agent.errors import SourceError
from agent.types import Image, Luma, Planes

_LUMA = ("yuv420p", "yuvj420p", "yuv422p", "yuvj422p", "yuv444p", "yuvj444p", "nv12", "gray")
"""Formats whose first plane is the brightness in 8 bits."""
_PLANES = ("yuv420p", "yuvj420p")
"""Formats with three planes, of which two have a quarter of the pixels."""
_BT709 = {1: True, 2: False, 5: False, 6: False}
"""Colour spaces (ITU-T H.273, table 4) by whether they are BT.709, else BT.601: so FFmpeg takes 2, that of a
stream that names none."""


class PictureConverter:
    """Converts the pictures of one source to BGR, one at a time. Any thread may call it."""

    def __init__(self, shown: str) -> None:
        """Prepare it; `shown` is the name of the source, for messages."""
        self._shown = shown
        self._lock, self._bgr = threading.Lock(), BgrConverter()

    def convert(self, frame: VideoFrame, into: Image | None = None) -> Image:
        """Return a picture as BGR.

        It is in the memory of `into` only where FFmpeg's rows have gaps: FFmpeg converts into its own memory.

        Raises:
            SourceError: it is damaged.
        """
        try:
            with self._lock:
                bgr = self._bgr.convert(frame)
        except (av.FFmpegError, ValueError) as error:
            raise SourceError(
                f"{self._shown}: expected a picture that can be decoded; found a damaged one"
            ) from error
        return _image(bgr, into)

    def keep(self, keeps: bool) -> None:
        """Keep memory for the next pictures, see `BgrConverter.keep`."""
        with self._lock:
            self._bgr.keep(keeps)


class DecodedImage:
    """A picture in its decoder's memory: a `DeferredImage`."""

    def __init__(self, frame: VideoFrame, converter: PictureConverter) -> None:
        self._frame, self._converter = frame, converter
        self._lock = threading.Lock()
        self._image: Image | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return self._frame.height, self._frame.width, 3

    def image(self) -> Image:
        """Return the picture, BGR.

        Raises:
            SourceError: it is damaged.
        """
        with self._lock:
            if self._image is None:
                self._image = self._converter.convert(self._frame)
            return self._image

    def luma(self) -> Luma | None:
        """Return the brightness in the decoder's memory; None: its format has none in 8 bits."""
        frame = self._frame
        if frame.format.name not in _LUMA:
            return None
        return Luma(_pixels(frame.planes[0], frame.height, frame.width), _is_full(frame))

    def planes(self) -> Planes | None:
        """Return the picture in the decoder's memory; None: its format or its colour space is another."""
        frame = self._frame
        if frame.format.name not in _PLANES or (is_bt709 := _BT709.get(frame.colorspace)) is None:
            return None
        luma, blue, red = frame.planes
        height, width = frame.height, frame.width
        rows, columns = (height + 1) // 2, (width + 1) // 2
        brightness = Luma(_pixels(luma, height, width), _is_full(frame))
        return Planes(brightness, _pixels(blue, rows, columns), _pixels(red, rows, columns), is_bt709)


def _is_full(frame: VideoFrame) -> bool:
    """Return True if a picture's values have the full range, see `Luma`."""
    return frame.color_range == ColorRange.JPEG or frame.format.name.startswith(("yuvj", "gray"))


def _pixels(plane: VideoPlane, height: int, width: int) -> Image:
    """Return a plane's memory without a copy; in one step, as this runs for each picture."""
    return np.ndarray((height, width), np.uint8, memoryview(plane), 0, (plane.line_size, 1))


def _image(bgr: VideoFrame, into: Image | None) -> Image:
    """Return a picture as an array that keeps its memory alive."""
    plane, row = bgr.planes[0], 3 * bgr.width
    padded: Image = np.frombuffer(memoryview(plane), np.uint8).reshape(bgr.height, plane.line_size)
    if plane.line_size == row:
        return padded.reshape(bgr.height, bgr.width, 3)
    shape = bgr.height, bgr.width, 3
    image = into if into is not None and into.shape == shape else np.empty(shape, np.uint8)
    np.copyto(image, padded[:, :row].reshape(shape))
    return image
