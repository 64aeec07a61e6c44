"""Draws tracks into pictures and encodes JPEGs.

OpenCV 5 unpacks a whole font for its first character, which keeps over 8 MB: printable ASCII comes from a strip
of glyphs instead, and only other text uses OpenCV.
"""

from __future__ import annotations

import functools
import itertools
import math
import zlib
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import cv2
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from agent.config import ZoneConfig
from agent.config.places import LineConfig
from agent.errors import BackendError
from agent.text import attribute_texts
from agent.types import Attribute, ChannelOrder, Detection, Frame, Image, Keypoint, Point, Track

_FIRST, _COUNT = 32, 95
_FALLBACK = cv2.FONT_HERSHEY_SIMPLEX
_FALLBACK_HEIGHT = 36.0
"""Height of a line of `_FALLBACK` at scale 1, px."""

Mask = NDArray[np.uint8]
Colour = tuple[int, int, int]


@functools.lru_cache(maxsize=128)
def line(text: str, height: int) -> Mask:
    """Return a line of text as a cached mask, uint8 [height, width], 255 for ink. Do not write to it."""
    if not text:
        return np.zeros((height, 0), np.uint8)
    strip = _ascii(text) if text.isascii() and text.isprintable() else _any(text)
    width = max(1, round(strip.shape[1] * height / strip.shape[0]))
    shrinks = height < strip.shape[0]
    scaled = cv2.resize(strip, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return scaled.astype(np.uint8, copy=False)


def ink(picture: Image, mask: Mask, x: int, y: int, colour: Colour) -> None:
    """Paint a mask into a picture with its corner at (x, y) ≥ 0, clipped to the picture."""
    part = picture[y : y + mask.shape[0], x : x + mask.shape[1]]
    share = mask[: part.shape[0], : part.shape[1], None].astype(np.uint16)
    part[:] = (part * (255 - share) + np.array(colour, np.uint16) * share + 127) // 255


def _ascii(text: str) -> Mask:
    glyphs = _glyphs()
    return np.hstack([glyphs[ord(character) - _FIRST] for character in text])


def _any(text: str) -> Mask:
    (width, _), _ = cv2.getTextSize(text, _FALLBACK, 1.0, 2)
    strip = np.zeros((round(_FALLBACK_HEIGHT), max(1, width)), np.uint8)
    cv2.putText(strip, text, (0, round(_FALLBACK_HEIGHT * 0.75)), _FALLBACK, 1.0, (255,), 2, cv2.LINE_AA)
    return strip


@functools.cache
def _glyphs() -> Mask:
    packed = np.frombuffer(Path(__file__).with_name("glyphs.png").read_bytes(), np.uint8)
    strip = cv2.imdecode(packed, cv2.IMREAD_GRAYSCALE)
    assert strip is not None
    return np.stack(np.hsplit(strip, _COUNT)).astype(np.uint8, copy=False)


_Colour = tuple[int, int, int]

# Blue, green, red: Okabe and Ito's palette for colour-blind people (https://jfly.uni-koeln.de/color/), without
# black and with four more.
_PALETTE: tuple[_Colour, ...] = (
    (0, 159, 230),
    (233, 180, 86),
    (115, 158, 0),
    (66, 228, 240),
    (178, 114, 0),
    (0, 94, 213),
    (167, 121, 204),
    (80, 220, 140),
    (60, 60, 220),
    (220, 90, 130),
    (200, 200, 80),
)
_DARK, _LIGHT = (24, 24, 24), (255, 255, 255)
_FILL = 0.25
"""Opacity of the inside of an outline."""
_SURE = 0.3
"""Keypoints with a lower score are not drawn."""

_LIMBS: tuple[tuple[str, str], ...] = (
    ("left_shoulder", "right_shoulder"),
    ("left_shoulder", "left_elbow"),
    ("left_elbow", "left_wrist"),
    ("right_shoulder", "right_elbow"),
    ("right_elbow", "right_wrist"),
    ("left_shoulder", "left_hip"),
    ("right_shoulder", "right_hip"),
    ("left_hip", "right_hip"),
    ("left_hip", "left_knee"),
    ("left_knee", "left_ankle"),
    ("right_hip", "right_knee"),
    ("right_knee", "right_ankle"),
)
"""Keypoint names of COCO that are joined by a line if a model gives both."""


class _Pen(Struct, frozen=True):
    """Sizes of lines and text for the picture's size, px, and the order of its channels."""

    width: int
    height: int
    line: int
    text: float
    order: ChannelOrder

    def colour(self, label: str) -> _Colour:
        """Return the colour of a label, the same in every picture and on every board."""
        return self.ordered(_PALETTE[zlib.crc32(label.encode()) % len(_PALETTE)])

    def ordered(self, colour: _Colour) -> _Colour:
        return colour if self.order == "bgr" else (colour[2], colour[1], colour[0])

    def at(self, x: float, y: float) -> tuple[int, int]:
        return round(x * (self.width - 1)), round(y * (self.height - 1))


def annotate_detections(
    image: Image,
    detections: Iterable[Detection],
    *,
    order: ChannelOrder,
    attributes: Sequence[dict[str, Attribute]] = (),
) -> Image:
    """Draw detections, with the attributes of each, into a copy of a picture, as `annotate` draws tracks."""
    at = datetime(2000, 1, 1, tzinfo=UTC)  # it is not drawn
    known = itertools.chain(attributes, itertools.repeat({}))
    tracks = [
        Track(
            *("", one.label, one.score, one.score, 1, at, at, one.box, one.keypoints, one.outline, one.area),
            attributes=told,
        )
        for one, told in zip(detections, known, strict=False)
    ]
    return annotate(image, tracks, order=order)


def annotate(
    image: Image, tracks: Sequence[Track], *, order: ChannelOrder, title: str = "", in_place: bool = False
) -> Image:
    """Draw boxes, outlines, keypoints and labels with scores into a copy of a picture, H×W×3 uint8.

    Tracks without a box are listed at the top left, below `title`. With `in_place` a contiguous image is drawn on
    itself.
    """
    picture = image if in_place and image.flags.c_contiguous else np.array(image, order="C")
    pen = _pen_for(picture, order)
    _fill_outlines(picture, tracks, pen)
    for track in tracks:
        _draw_shape(picture, track, pen)
    # Labels last, so that no other box crosses them.
    _write_labels(picture, tracks, title, pen)
    return picture


def titled(image: Image, title: str, *, order: ChannelOrder) -> Image:
    """Return a picture, H×W×3 uint8, below a line of text that covers nothing of it; a narrow one gets wider."""
    pen = _pen_for(image, order)
    wide, high = _caption_size(title, pen)
    picture = np.full((pen.height + high, max(pen.width, wide), 3), pen.ordered(_DARK), np.uint8)
    picture[high:, : pen.width] = image
    _caption(picture, title, (0, 0), _DARK, pen)
    return picture


def title_width(title: str) -> int:
    """Return the least width of a picture that holds a line of text, px."""
    return _caption_size(title, _pen_for(np.empty((1, 1, 3), np.uint8), "bgr"))[0]


def label_place(image: Image, track: Track) -> tuple[int, int, int, int]:
    """Return where `annotate` writes the label of a track that has a box: left, top, right and bottom, px."""
    pen = _pen_for(image, "bgr")
    wide, high = _caption_size(_label(track), pen)
    x, y = _caption_corner(_label_corner(track, pen), (wide, high), pen)
    return x, y, x + wide + 1, y + high + 1


def draw_places(
    image: Image,
    zones: Iterable[ZoneConfig],
    lines: Iterable[LineConfig],
    *,
    order: ChannelOrder,
    in_place: bool = False,
) -> Image:
    """Draw the enabled zones and lines, each with its name, into a copy of a picture, H×W×3 uint8.

    An arrow in the middle of a line points `in`. With `in_place` a contiguous image is drawn on itself.
    """
    picture = image if in_place and image.flags.c_contiguous else np.array(image, order="C")
    pen = _pen_for(picture, order)
    for zone in zones:
        if zone.enabled:
            colour = pen.colour(f"zone {zone.name}")
            cv2.polylines(picture, [_pixels(zone.polygon, pen)], True, colour, pen.line, cv2.LINE_AA)
            _caption(picture, zone.name, pen.at(*zone.polygon[0]), colour, pen)
    for line in lines:
        if line.enabled:
            _draw_line(picture, line, pen)
    return picture


def _draw_line(picture: Image, line: LineConfig, pen: _Pen) -> None:
    colour, corners = pen.colour(f"line {line.name}"), _pixels(line.points, pen)
    cv2.polylines(picture, [corners], False, colour, 2 * pen.line, cv2.LINE_AA)
    middle = (len(corners) - 1) // 2
    (ax, ay), (bx, by) = corners[middle].tolist(), corners[middle + 1].tolist()
    x, y, length = (ax + bx) / 2, (ay + by) / 2, math.hypot(bx - ax, by - ay) or 1.0
    size = 12.0 * pen.line
    tip = round(x - (by - ay) / length * size), round(y + (bx - ax) / length * size)
    cv2.arrowedLine(picture, (round(x), round(y)), tip, colour, 2 * pen.line, cv2.LINE_AA, tipLength=0.5)
    _caption(picture, line.name, pen.at(*line.points[0]), colour, pen)


def jpeg(image: Image, quality: int, order: ChannelOrder) -> bytes:
    """Encode a picture, H×W×3 uint8, as a JPEG file of quality 1..100.

    Raises:
        BackendError: OpenCV cannot encode it.
    """
    try:
        picture = image if order == "bgr" else cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
        done, encoded = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, quality])
    except cv2.error as error:
        raise BackendError(f"cannot encode a picture of shape {image.shape} as JPEG: {error.err}") from error
    if not done:
        raise BackendError(f"cannot encode a picture of shape {image.shape} as JPEG: this OpenCV has no encoder")
    return encoded.tobytes()


def _pen_for(picture: Image, order: ChannelOrder) -> _Pen:
    height, width = picture.shape[:2]
    short = min(height, width)
    return _Pen(width, height, max(1, round(short / 300)), max(0.35, short / 1100), order)


def _write_labels(picture: Image, tracks: Sequence[Track], title: str, pen: _Pen) -> None:
    for track in tracks:
        if track.box is not None:
            _caption(picture, _label(track), _label_corner(track, pen), pen.colour(track.label), pen)
    top = _caption(picture, title, (0, 0), _DARK, pen) if title else 0
    for track in tracks:
        if track.box is None:
            top += _caption(picture, _label(track), (0, top), pen.colour(track.label), pen)


def _label_corner(track: Track, pen: _Pen) -> tuple[int, int]:
    assert track.box is not None
    x, y = pen.at(track.box[0], track.box[1])
    return x - pen.line // 2, y - _caption_height(pen)


def _fill_outlines(picture: Image, tracks: Sequence[Track], pen: _Pen) -> None:
    outlined = [track for track in tracks if len(track.outline) >= 3]
    if outlined:
        filled = picture.copy()
        for track in outlined:
            cv2.fillPoly(filled, [_pixels(track.outline, pen)], pen.colour(track.label))
        cv2.addWeighted(filled, _FILL, picture, 1.0 - _FILL, 0.0, dst=picture)


def _draw_shape(picture: Image, track: Track, pen: _Pen) -> None:
    colour = pen.colour(track.label)
    if track.outline:
        cv2.polylines(picture, [_pixels(track.outline, pen)], True, colour, pen.line, cv2.LINE_AA)
    if track.box is not None:
        corner, opposite = pen.at(track.box[0], track.box[1]), pen.at(track.box[2], track.box[3])
        cv2.rectangle(picture, corner, opposite, colour, pen.line)
    for one in track.attributes.values():
        if one.box is not None:
            cv2.rectangle(picture, pen.at(*one.box[:2]), pen.at(*one.box[2:]), colour, pen.line)
    points = (*track.keypoints, *_attribute_points(track))
    sure = {point.name: point for point in points if point.score >= _SURE}
    _draw_limbs(picture, sure, colour, pen)
    for point in sure.values():
        at = pen.at(point.x, point.y)
        cv2.circle(picture, at, pen.line * 2 + 1, pen.ordered(_DARK), cv2.FILLED, cv2.LINE_AA)
        cv2.circle(picture, at, pen.line * 2, colour, cv2.FILLED, cv2.LINE_AA)


def _attribute_points(track: Track) -> tuple[Keypoint, ...]:
    return tuple(point for one in track.attributes.values() for point in one.keypoints)


def _draw_limbs(picture: Image, points: dict[str, Keypoint], colour: _Colour, pen: _Pen) -> None:
    for one, other in _LIMBS:
        if one in points and other in points:
            begin, end = points[one], points[other]
            cv2.line(picture, pen.at(begin.x, begin.y), pen.at(end.x, end.y), colour, pen.line, cv2.LINE_AA)


def _label(track: Track) -> str:
    told = [track.label, f"{track.score:.0%}", *(text for _, text in attribute_texts(track.attributes))]
    return " ".join(told)


def _pixels(outline: Sequence[Point], pen: _Pen) -> np.ndarray[tuple[int, int], np.dtype[np.int32]]:
    return np.array([pen.at(x, y) for x, y in outline], np.int32)


def _caption_height(pen: _Pen) -> int:
    return round(30 * pen.text) + 2 * pen.line


def _caption_size(text: str, pen: _Pen) -> tuple[int, int]:
    high = _caption_height(pen)
    return line(text, high - 2 * pen.line).shape[1] + 4 * pen.line, high


def _caption_corner(at: tuple[int, int], size: tuple[int, int], pen: _Pen) -> tuple[int, int]:
    """Return the corner of a caption of a size, px, moved into the picture."""
    return max(0, min(at[0], pen.width - size[0])), max(0, min(at[1], pen.height - size[1]))


def _caption(picture: Image, text: str, at: tuple[int, int], colour: _Colour, pen: _Pen) -> int:
    """Draw text on a patch of colour, moved into the picture; return its height, px."""
    wide, high = _caption_size(text, pen)
    letters = line(text, high - 2 * pen.line)
    x, y = _caption_corner(at, (wide, high), pen)
    cv2.rectangle(picture, (x, y), (x + wide, y + high), colour, cv2.FILLED)
    shade = _LIGHT if _luminance(colour, pen.order) < 140.0 else _DARK
    ink(picture, letters, x + 2 * pen.line, y + pen.line, shade)
    return high


def _luminance(colour: _Colour, order: ChannelOrder) -> float:
    """Return the brightness 0..255 by ITU-R BT.601."""
    blue, green, red = colour if order == "bgr" else colour[::-1]
    return 0.114 * blue + 0.587 * green + 0.299 * red


class EncodedFrame(Struct, frozen=True, gc=False):
    """A frame as a JPEG.

    Attributes:
        jpeg: content of the file.
        width, height: pixels.
        captured_ns, captured_at: see `Frame`.
    """

    jpeg: bytes
    width: int
    height: int
    captured_ns: int
    captured_at: datetime


class FrameEncoder:
    """Encodes the frames of one stream as JPEGs of bounded width. For one thread."""

    def __init__(self, max_width: int, quality: int) -> None:
        """Set the width, px, to which wider frames are resized, and the quality of the JPEG, 1..100."""
        self._max_width, self._quality = max_width, quality
        self._small: Image | None = None

    def encode(self, frame: Frame) -> EncodedFrame:
        """Encode a frame, as `jpeg` does. Its width and height are even if it was resized."""
        image = self._resize(frame.image)
        height, width = image.shape[:2]
        encoded = jpeg(image, self._quality, frame.order)
        return EncodedFrame(encoded, width, height, frame.captured_ns, frame.captured_at)

    def _resize(self, image: Image) -> Image:
        height, width = image.shape[:2]
        if width <= self._max_width:
            return image
        size = (self._max_width // 2 * 2, max(2, round(height * self._max_width / width / 2) * 2))
        # From a half on averaging is worth its cost, because linear interpolation would skip lines.
        how = cv2.INTER_AREA if width >= 2 * size[0] else cv2.INTER_LINEAR
        self._small = cv2.resize(image, size, dst=self._small, interpolation=how)  # type: ignore[assignment]
        assert self._small is not None
        return self._small
