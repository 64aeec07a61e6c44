"""Resizes, normalises and quantises pictures into the input tensor's own memory.

Normalising and quantising has 256 results per channel, kept in a table: the float `(pixel - mean) / std / scale
+ zero_point`, rounded for an integer input. Cheaper ways replace the lookup: the identity is one `cv2.resize`,
uint8 to int8 flips a bit, and a float input is a multiplication and an addition.

Linear interpolation reads two by two pixels, whatever the ratio, so that fine structure turns into noise. If
one side shrinks to a third or less and the other to a half or less, each is first interpolated to 2, 4, 8 …
times its final size and then halved, each time to the mean of two pixels. A frame of at least four times the
final size is halved before that, which is cheaper. For smaller ratios this costs time and gains nothing:
`scripts/bench/run shrink`.

A decoder's picture is resized plane by plane, and converted to colours only in the model's small size: least time
on one thread of an AMD EPYC, µs, from 1080p to 416×416: 540, where converting it (850) and resizing it (960) take
more than three times as long.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache

import cv2
import numpy as np
from msgspec import Struct

from agent.compute.manifest import InputManifest
from agent.compute.tflite.model import TensorSpec
from agent.errors import ModelError
from agent.types import WHOLE, Array, Box, ChannelOrder, Image, Luma, Planes

_PADDING = 114
"""Grey of letterbox bars, as YOLO's training uses."""
_SHAPES = 8
_FOLDED = 4
"""Ratio of both sides from which a frame is first halved: then no pixel is skipped."""
_ALIASES, _OTHER_SIDE = 3, 2
"""Ratios of one side and of the other from which linear interpolation alone would skip too many pixels."""


class Placement(Struct, frozen=True, gc=False):
    """Place of the model's picture in the frame: `frame = offset + size * input`, as fractions."""

    x: float = 0.0
    y: float = 0.0
    width: float = 1.0
    height: float = 1.0

    @property
    def whole(self) -> bool:
        """True if the model's picture is the whole frame."""
        return self == _WHOLE

    def to_frame(self, box: Box) -> Box:
        """Map a box from the model's picture to the frame and clip it."""
        x0, y0 = self.point(box[0], box[1])
        x1, y1 = self.point(box[2], box[3])
        return (x0, y0, x1, y1)

    def from_frame(self, box: Box) -> Box:
        """Map a box from the frame to the model's picture and clip it."""
        across = [min(1.0, max(0.0, (x - self.x) / self.width)) for x in box[0::2]]
        down = [min(1.0, max(0.0, (y - self.y) / self.height)) for y in box[1::2]]
        return (across[0], down[0], across[1], down[1])

    def point(self, x: float, y: float) -> tuple[float, float]:
        """Map a point from the model's picture to the frame and clip it."""
        return (
            min(1.0, max(0.0, self.x + self.width * x)),
            min(1.0, max(0.0, self.y + self.height * y)),
        )


_WHOLE = Placement()


class ImageInput:
    """Fills one input tensor from frames. Keeps a scratch picture if the tensor cannot be written directly."""

    def __init__(self, spec: TensorSpec, manifest: InputManifest) -> None:
        """Prepare the tables for a tensor.

        Raises:
            ModelError: the tensor does not take pictures, shape [1, H, W, 3], [1, H, W, 1] or [1, H, H], or is
                said to take none.
        """
        if not manifest.pixels:
            raise ModelError(f"input {spec} takes values that are no pixels: the manifest has `pixels = false`")
        if spec.picture is None or spec.picture[2] == 4:
            raise ModelError(f"input {spec} does not take a picture: expected [1, height, width, 3 or 1]")
        self.height, self.width, self._channels = spec.picture
        self._order = manifest.order
        self._letterbox = manifest.resize == "letterbox"
        self._table = _table(spec, self._channels, manifest)
        self._convert = None if _is_identity(self._table) else _conversion(self._table)
        self._scratch: Image = np.full((self.height, self.width, 3), _PADDING, np.uint8)
        self._inner = 0, 0, self.width, self.height
        self._shrink, self._shrink_planes = Shrink(), PlaneShrink()

    def fill(self, tensor: Array, image: Image | Planes, order: ChannelOrder, crop: Box = WHOLE) -> Placement:
        """Write a picture, H×W×3 uint8 or planes, into a view of the tensor's memory.

        The order is that of an image's channels. Only `crop` of the frame is used. Returns the place of the
        model's picture in the frame.
        """
        part, placement = _crop_planes(image, crop) if isinstance(image, Planes) else _crop(image, crop)
        order = self._order if isinstance(image, Planes) else order
        target = tensor.reshape(self.height, self.width, self._channels)
        direct = self._convert is None and self._channels == 3
        canvas = target if direct else self._scratch
        placement = self._resize(part, canvas, placement)
        if self._channels == 1:
            self._grey(target, order)
            return placement
        if order != self._order:
            cv2.cvtColor(canvas, cv2.COLOR_BGR2RGB, dst=canvas)
        if self._convert is not None:
            self._convert(canvas, target)
        return placement

    def _resize(self, part: Image | Planes, canvas: Array, placement: Placement) -> Placement:
        if not self._letterbox:
            self._shrink_into(part, canvas)
            return placement
        height, width = part.luma.pixels.shape if isinstance(part, Planes) else part.shape[:2]
        ratio = min(self.width / width, self.height / height)
        inner_w, inner_h = max(1, round(width * ratio)), max(1, round(height * ratio))
        x, y = (self.width - inner_w) // 2, (self.height - inner_h) // 2
        if canvas is not self._scratch or (x, y, inner_w, inner_h) != self._inner:
            self._inner = x, y, inner_w, inner_h
            canvas[:y] = canvas[y + inner_h :] = _PADDING
            canvas[:, :x] = canvas[:, x + inner_w :] = _PADDING
        self._shrink_into(part, canvas[y : y + inner_h, x : x + inner_w])
        return Placement(
            placement.x - placement.width * x / inner_w,
            placement.y - placement.height * y / inner_h,
            placement.width * self.width / inner_w,
            placement.height * self.height / inner_h,
        )

    def _shrink_into(self, part: Image | Planes, canvas: Array) -> None:
        if isinstance(part, Planes):
            self._shrink_planes(part, canvas, self._order)
        else:
            self._shrink(part, canvas)

    def _grey(self, target: Array, order: ChannelOrder) -> None:
        code = cv2.COLOR_BGR2GRAY if order == "bgr" else cv2.COLOR_RGB2GRAY
        grey = cv2.cvtColor(self._scratch, code)
        target[:, :, 0] = cv2.LUT(grey, self._table)


class Shrink:
    """Resizes pictures without skipping pixels. For one thread: it keeps its intermediate pictures.

    Least time on one thread of an AMD EPYC, µs, ours beside linear alone and OpenCV's INTER_AREA: 1920×1080 →
    416×416 976, 408, 8108; 640×480 → 96×96 138, 24, 796. At 416×416 it keeps up to 1 MB of intermediate pictures.
    """

    def __init__(self) -> None:
        self._memory = np.empty(0, np.uint8)
        self._halves: dict[tuple[int, ...], Image] = {}
        self._form: tuple[int, ...] = ()
        self._formed: list[Image] = []

    def __call__(self, picture: Image, target: Array) -> None:
        """Resize a picture, H×W×3 uint8, into `target`, h×w×3 uint8, any view."""
        height, width = target.shape[:2]
        while picture.shape[0] >= _FOLDED * height and picture.shape[1] >= _FOLDED * width:
            picture = self._half(picture)
        rows, columns = _multiple(picture.shape[0], height), _multiple(picture.shape[1], width)
        least = min(picture.shape[0] / height, picture.shape[1] / width)
        if rows == columns == 1 or least < _OTHER_SIDE:
            cv2.resize(picture, (width, height), dst=target)
            return
        for level in self._levels(rows, columns, height, width):
            cv2.resize(picture, level.shape[1::-1], dst=level, interpolation=_interpolation(picture, level))
            picture = level
        cv2.resize(picture, (width, height), dst=target, interpolation=_interpolation(picture, target))

    def _half(self, picture: Image) -> Image:
        """Average each 2×2 pixels; an odd last row or column is dropped."""
        height, width = picture.shape[0] // 2, picture.shape[1] // 2
        if (half := self._halves.get(picture.shape)) is None:
            if len(self._halves) > _SHAPES:  # crops have many
                self._halves.clear()
            half = self._halves[picture.shape] = np.empty((height, width, 3), np.uint8)
        whole = picture[: 2 * height, : 2 * width]
        cv2.resize(whole, (width, height), dst=half, interpolation=cv2.INTER_AREA)
        return half

    def _levels(self, rows: int, columns: int, height: int, width: int) -> list[Image]:
        """Return the pictures between, in memory that all sizes share."""
        if (form := (rows, columns, height, width)) != self._form:
            self._formed, self._form = self._make_levels(*form), form
        return self._formed

    def _make_levels(self, rows: int, columns: int, height: int, width: int) -> list[Image]:
        shapes = []
        while rows > 1 or columns > 1:
            shapes.append((rows * height, columns * width, 3))
            rows, columns = max(1, rows // 2), max(1, columns // 2)
        sizes = [math.prod(shape) for shape in shapes]
        if sum(sizes) > self._memory.size:
            self._memory = np.empty(sum(sizes), np.uint8)
        starts = [sum(sizes[:number]) for number in range(len(sizes))]
        return [
            self._memory[start : start + size].reshape(shape)
            for start, size, shape in zip(starts, sizes, shapes, strict=True)
        ]


def _multiple(size: int, target: int) -> int:
    """Return the power of two times `target` to interpolate a side to, with a ratio below 3."""
    multiple = 1
    while size >= multiple * target * _ALIASES:
        multiple *= 2
    return multiple


def _interpolation(picture: Array, target: Array) -> int:
    """Average if both sides are halved, where OpenCV is fast; for one side linear interpolation is the same."""
    halved = picture.shape[0] == 2 * target.shape[0] and picture.shape[1] == 2 * target.shape[1]
    return cv2.INTER_AREA if halved else cv2.INTER_LINEAR


def _crop(image: Image, crop: Box) -> tuple[Image, Placement]:
    """Cut `crop` out of the picture, in whole pixels, at least one."""
    if crop == WHOLE:
        return image, _WHOLE
    height, width = image.shape[:2]
    x0, y0 = min(width - 1, int(crop[0] * width)), min(height - 1, int(crop[1] * height))
    x1, y1 = max(x0 + 1, round(crop[2] * width)), max(y0 + 1, round(crop[3] * height))
    part = image[y0:y1, x0:x1]
    return part, Placement(x0 / width, y0 / height, part.shape[1] / width, part.shape[0] / height)


def _crop_planes(picture: Planes, crop: Box) -> tuple[Planes, Placement]:
    """Cut `crop` out of a picture, with an even left and upper side: two pixels share a colour."""
    if crop == WHOLE:
        return picture, _WHOLE
    height, width = picture.luma.pixels.shape
    x0, y0 = (min(size - 1, int(at * size)) // 2 * 2 for at, size in ((crop[0], width), (crop[1], height)))
    x1, y1 = max(x0 + 1, round(crop[2] * width)), max(y0 + 1, round(crop[3] * height))
    place = Placement(x0 / width, y0 / height, (x1 - x0) / width, (y1 - y0) / height)
    blue, red = (plane[y0 // 2 : (y1 + 1) // 2, x0 // 2 : (x1 + 1) // 2] for plane in (picture.blue, picture.red))
    return Planes(
        Luma(picture.luma.pixels[y0:y1, x0:x1], picture.luma.full_range), blue, red, picture.is_bt709
    ), place


def _is_identity(table: Array) -> bool:
    return table.dtype == np.uint8 and bool((table == np.arange(256)[None, :, None]).all())


def _conversion(table: Array) -> Callable[[Image, Array], None]:
    """Return the cheapest function that converts the scratch picture into the tensor."""
    alike = bool((table == table[:, :, :1]).all())
    if alike and table.dtype == np.float32:
        # The table is a line through its values at 0 and at 255.
        offset = np.float32(table[0, 0, 0])
        slope = np.float32((table[0, 255, 0] - offset) / 255)
        return lambda picture, target: _line(picture, slope, offset, target)
    if table.dtype == np.int8 and bool((table == np.arange(-128, 128)[None, :, None]).all()):
        return _flip_sign_bit
    lookup = np.ascontiguousarray(table[:, :, 0] if alike else table)
    return lambda picture, target: _look_up(picture, lookup, target)


def _flip_sign_bit(picture: Image, target: Array) -> None:
    np.bitwise_xor(picture, 128, out=target.view(np.uint8))


def _look_up(picture: Image, lookup: Array, target: Array) -> None:
    cv2.LUT(picture, lookup, dst=target)


def _line(picture: Image, slope: np.float32, offset: np.float32, target: Array) -> None:
    np.multiply(picture, slope, out=target)
    np.add(target, offset, out=target)


def _table(spec: TensorSpec, channels: int, manifest: InputManifest) -> Array:
    """Return the 256 results per channel in the tensor's type, [1, 256, channels]."""
    if min(manifest.std) <= 0.0:
        raise ModelError(f"input {spec.name}: `std` must be positive, found {list(manifest.std)}")
    mean, std = np.array(manifest.mean)[:channels], np.array(manifest.std)[:channels]
    real: Array = (np.arange(256.0)[:, None] - mean) / std
    dtype = np.dtype(spec.dtype)
    if dtype == np.float32:
        return real.astype(dtype).reshape(1, 256, channels)
    if dtype not in (np.dtype(np.uint8), np.dtype(np.int8)):
        raise ModelError(f"input {spec} does not take a picture: expected uint8, int8 or float32")
    limits = np.iinfo(dtype)
    stored: Array = np.clip(np.rint(real / (spec.scale or 1.0)) + spec.zero_point, limits.min, limits.max)
    if stored.min() == stored.max():
        raise ModelError(
            f"input {spec}: `mean` {list(manifest.mean)} and `std` {list(manifest.std)} map every pixel to "
            f"{stored.min():.0f}: they do not fit the tensor's quantisation"
        )
    return stored.astype(dtype).reshape(1, 256, channels)


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
