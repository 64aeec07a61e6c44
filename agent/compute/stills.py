"""Stills: frames as the JPEGs that clips are made of.

Cameras that give JPEGs (`format=MJPG`) are decoded for the model in any case, and OpenCV hands out either the
pictures or the packets, not both; and those of an RTSP camera hang on each other. So a still is encoded anew, at
a size and a rate that are bounded.
"""

from __future__ import annotations

import cv2

from agent.clips import Picture
from agent.compute.annotate import jpeg
from agent.messages import Frame, Image


class Stills:
    """Makes stills of one stream. For one thread."""

    def __init__(self, max_width: int, quality: int) -> None:
        """Prepare.

        Args:
            max_width: wider frames are made smaller, px.
            quality: of the JPEG, 1..100.
        """
        self._max_width, self._quality = max_width, quality
        self._small: Image | None = None

    def of(self, frame: Frame) -> Picture:
        """The frame as a picture, which is even in width and height when it was made smaller.

        Raises:
            BackendError: it cannot be encoded.
        """
        image = self._shrunk(frame.image)
        height, width = image.shape[:2]
        encoded = jpeg(image, self._quality, frame.order)
        return Picture(encoded, width, height, frame.captured_ns, frame.captured_at)

    def _shrunk(self, image: Image) -> Image:
        height, width = image.shape[:2]
        if width <= self._max_width:
            return image
        size = (self._max_width // 2 * 2, max(2, round(height * self._max_width / width / 2) * 2))
        # Averaging is worth its price from a half on, where single lines would be skipped.
        how = cv2.INTER_AREA if width >= 2 * size[0] else cv2.INTER_LINEAR
        self._small = cv2.resize(image, size, dst=self._small, interpolation=how)  # type: ignore[assignment]
        assert self._small is not None
        return self._small
