"""Privacy masks: hide parts of pictures before anything else sees them.

A mask covers every pixel that its polygon touches. All masks of a stream are prepared for the size of its
pictures, and applied by one operation while a picture is copied.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from agent.config.places import PrivacyMask, check_masks
from agent.types import Box, Image, Point


def covered_pixels(polygon: Sequence[Point], width: int, height: int) -> NDArray[np.bool_]:
    """Return which pixels of a picture a polygon touches, bool [height, width].

    A pixel is a square: it is touched if a side of the polygon passes through it, or if its middle lies inside:
    the sides wind around it, in either direction and however often. Corners are fractions 0..1 of the picture.
    """
    touched = np.zeros((height, width), np.bool_)
    corners = [(x * width, y * height) for x, y in polygon]
    sides = list(zip(corners, (*corners[1:], corners[0]), strict=True))
    for begin, end in sides:
        _mark_side(touched, begin, end)
    for row in range(height):
        winding, left = 0, 0.0
        for x, direction in sorted(_crossings(sides, row + 0.5)):
            if winding:
                # Middles at left ≤ column + 0.5 ≤ x.
                touched[row, max(0, math.ceil(left - 0.5)) : max(0, math.floor(x - 0.5) + 1)] = True
            winding, left = winding + direction, x
    return touched


def _crossings(sides: Sequence[tuple[Point, Point]], y: float) -> list[tuple[float, int]]:
    """Return where the sides cross a horizontal line, with 1 for downwards and -1 for upwards.

    A corner on the line counts as below it.
    """
    return [
        (x0 + (y - y0) / (y1 - y0) * (x1 - x0), 1 if y0 < y1 else -1)
        for (x0, y0), (x1, y1) in sides
        if (y0 <= y < y1) or (y1 <= y < y0)
    ]


def _mark_side(touched: NDArray[np.bool_], begin: Point, end: Point) -> None:
    """Mark the pixels that a side of a polygon passes through; the border between two pixels is in neither."""
    height = touched.shape[0]
    (x0, y0), (x1, y1) = (begin, end) if begin[1] <= end[1] else (end, begin)
    for row in range(math.floor(y0), min(height, math.ceil(y1))):
        ends = x0, x1
        if y1 > y0:
            top, bottom, slope = max(y0, row), min(y1, row + 1), (x1 - x0) / (y1 - y0)
            ends = x0 + (top - y0) * slope, x0 + (bottom - y0) * slope
        touched[row, math.floor(min(ends)) : math.ceil(max(ends))] = True


class MaskPainter:
    """Makes masks of a stream black. For one thread."""

    def __init__(self, masks: Sequence[PrivacyMask]) -> None:
        """Check the masks. Raises ConfigError as `agent.config.places.check_masks`."""
        check_masks(masks)
        self._masks = tuple(masks)
        self._keep: Image = np.empty((0, 0, 3), np.uint8)

    def paint(self, image: Image, into: Image) -> None:
        """Copy a picture, H×W×3 uint8, with black masks; `into` has its size, and may be itself.

        Raises:
            ValueError: it has another form.
        """
        if image.shape != self._keep.shape:
            self._prepare(image)
        np.bitwise_and(image, self._keep, out=into)

    def _prepare(self, image: Image) -> None:
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise ValueError(f"expected a picture of H×W×3 bytes, found {image.dtype} of {image.shape}")
        height, width = image.shape[:2]
        keep = np.full(image.shape, 255, np.uint8)
        for mask in self._masks:
            keep[covered_pixels(mask.polygon, width, height)] = 0
        self._keep = keep


_CELLS = 4
"""Cells on each side of a blurred part: too few to tell a face or a number by."""


def blur(image: Image, boxes: Sequence[Box]) -> None:
    """Replace parts of a picture, H×W×3 uint8, by a mosaic of a few cells.

    Raises:
        ValueError, cv2.error: its memory cannot be written to, or it has another form.
    """
    import cv2

    height, width = image.shape[:2]
    for x0, y0, x1, y1 in boxes:
        left, top = max(0, math.floor(x0 * width)), max(0, math.floor(y0 * height))
        right, bottom = min(width, math.ceil(x1 * width)), min(height, math.ceil(y1 * height))
        if left < right and top < bottom:
            part = image[top:bottom, left:right]
            cells = cv2.resize(part, (_CELLS, _CELLS), interpolation=cv2.INTER_AREA)
            part[:] = cv2.resize(cells, (right - left, bottom - top), interpolation=cv2.INTER_NEAREST)
