"""Resizes a decoder's picture plane by plane, and converts it to colours only in the model's small size.

A picture of 1080p need not become 6 MB of BGR for a model that gets 416×416 of it: least time on one thread of an
AMD EPYC, µs, 540, where converting it (850) and resizing it (960, see `agent.compute.infer.image_input.Shrink`)
take more than three times as long.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import cv2
import numpy as np
from msgspec import Struct

from agent.types import Array, ChannelOrder, Image, Luma, Planes

_BOTH, _ONE = 2, 3
"""Ratios of both sides, or of one, from which these are first halved: averaging is cheap, and skips no pixel."""
_WEIGHTS = {False: (0.299, 0.114), True: (0.2126, 0.0722)}
"""Shares of red and blue in the brightness (ITU-R BT.601, 2.5.1; ITU-R BT.709, 3.2), by whether it is BT.709."""
_LUMA_RANGE, _COLOUR_RANGE, _BLACK, _GREY = 219.0, 224.0, 16.0, 128.0
"""Range of 8 bits, and its offsets, where it is not the full one (ITU-R BT.601, 2.5.3)."""


class _Step(Struct, frozen=True, gc=False):
    """A resize of a plane, of which `rows` and `columns` are used, into `target`."""

    rows: int
    columns: int
    target: Image
    interpolation: int


class PlaneShrink:
    """Resizes planes and converts them. For one thread: it keeps its intermediate pictures.

    Each plane is halved, once or more, in the memory in which the small planes are merged afterwards.
    """

    def __init__(self) -> None:
        self._memory: Image = np.empty(0, np.uint8)
        self._merged: Image = np.empty((0, 0, 3), np.uint8)
        self._planes: list[Image] = []
        self._form: tuple[tuple[int, ...], ...] = ()
        self._steps: list[list[_Step]] = []

    def __call__(self, picture: Planes, target: Array, order: ChannelOrder) -> None:
        """Resize a picture into `target`, h×w×3 uint8, any view, whose channels are in this order."""
        planes = (picture.luma.pixels, picture.blue, picture.red)
        if (form := (planes[0].shape, planes[1].shape, target.shape)) != self._form:
            self._steps, self._form = self._plan(planes, target.shape[0], target.shape[1]), form
        for plane, steps in zip(planes, self._steps, strict=True):
            for step in steps:
                used = plane[: step.rows, : step.columns]
                plane, size = step.target, step.target.shape[::-1]
                cv2.resize(used, size, plane, 0.0, 0.0, step.interpolation)
        cv2.merge(self._planes, self._merged)
        matrix = colour_matrix(picture.is_bt709, picture.luma.full_range, order)
        cv2.transform(self._merged, matrix, target)

    def _plan(self, planes: Sequence[Image], height: int, width: int) -> list[list[_Step]]:
        """Return how each plane comes to this size; most cameras never change theirs."""
        if self._merged.shape[:2] != (height, width):
            self._planes = [np.empty((height, width), np.uint8) for _ in range(3)]
        halves = [_half_sizes(plane.shape, (height, width)) for plane in planes]
        merged = 3 * height * width
        needed = max(merged, *(sum(map(math.prod, sizes)) for sizes in halves))
        if self._memory.size < needed:
            self._memory = np.empty(needed, np.uint8)
        self._merged = self._memory[:merged].reshape(height, width, 3)
        return [self._steps_to(*each) for each in zip(self._planes, planes, halves, strict=True)]

    def _steps_to(self, small: Image, plane: Image, halves: list[tuple[int, int]]) -> list[_Step]:
        steps, shape, start = [], plane.shape, 0
        for size in halves:
            half = self._memory[start : start + math.prod(size)].reshape(size)
            both = size[0] != shape[0] and size[1] != shape[1]
            rows, columns = 2 * size[0], 2 * size[1]
            steps.append(_Step(rows, columns, half, cv2.INTER_AREA if both else cv2.INTER_LINEAR))
            shape, start = size, start + half.size
        return [*steps, _Step(shape[0], shape[1], small, cv2.INTER_LINEAR)]


def _half_sizes(shape: tuple[int, ...], target: tuple[int, int]) -> list[tuple[int, int]]:
    """Return the sizes between a plane's and that of the target, in their order."""
    sizes = []
    while (size := _next_size(shape, target)) != shape:
        sizes.append(size)
        shape = size
    return sizes


def _next_size(shape: tuple[int, ...], target: tuple[int, ...]) -> tuple[int, int]:
    """Return a plane's size after halving those sides that shrink by large ratios; an odd pixel is dropped."""
    rows, columns = shape
    down, across = rows / target[0], columns / target[1]
    both = min(down, across) >= _BOTH
    return rows // 2 if both or down >= _ONE else rows, columns // 2 if both or across >= _ONE else columns


@lru_cache
def colour_matrix(is_bt709: bool, full: bool, order: ChannelOrder) -> Array:
    """Return the 3×4 matrix from brightness, blue and red difference to three colours, ITU-R BT.601 or BT.709.

    `full` is the range, see `Luma.full_range`.
    """
    red, blue = _WEIGHTS[is_bt709]
    green = 1.0 - red - blue
    gain, spread = (1.0, 1.0) if full else (255.0 / _LUMA_RANGE, 255.0 / _COLOUR_RANGE)
    of_blue, of_red = 2.0 * (1.0 - blue) * spread, 2.0 * (1.0 - red) * spread
    rows = [
        (gain, of_blue, 0.0),
        (gain, -of_blue * blue / green, -of_red * red / green),
        (gain, 0.0, of_red),
    ]
    offsets = [-(row[0] * (0.0 if full else _BLACK) + (row[1] + row[2]) * _GREY) for row in rows]
    matrix = np.array([(*row, offset) for row, offset in zip(rows, offsets, strict=True)], np.float32)
    return matrix if order == "bgr" else np.ascontiguousarray(matrix[::-1])


def crop_planes(picture: Planes, x0: int, y0: int, x1: int, y1: int) -> Planes:
    """Return a part of a picture, px. Its left and upper side are even: two pixels share a colour."""
    blue, red = (plane[y0 // 2 : (y1 + 1) // 2, x0 // 2 : (x1 + 1) // 2] for plane in (picture.blue, picture.red))
    return Planes(Luma(picture.luma.pixels[y0:y1, x0:x1], picture.luma.full_range), blue, red, picture.is_bt709)
