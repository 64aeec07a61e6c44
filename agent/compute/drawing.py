"""Annotated pictures: tracks drawn into a copy of their frame, and JPEG bytes. No file, no window."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import cv2
import numpy as np
from msgspec import Struct

from agent.compute import lettering
from agent.errors import BackendError
from agent.messages import ChannelOrder, Image, Keypoint, Point, Track

_Colour = tuple[int, int, int]

# Blue, green, red. Okabe and Ito's palette, which colour-blind people can tell apart, without its black and with
# four more (https://jfly.uni-koeln.de/color/).
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
"""Keypoints below are guesses and not drawn."""

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
"""Keypoint names of COCO that are joined by a line where a model gives both."""


class _Pen(Struct, frozen=True):
    """Sizes that keep a drawing legible at the picture's size, px, and the order of its channels."""

    width: int
    height: int
    line: int
    text: float
    order: ChannelOrder

    def colour(self, label: str) -> _Colour:
        """The same for a label in every picture and on every board."""
        return self.ordered(_PALETTE[zlib.crc32(label.encode()) % len(_PALETTE)])

    def ordered(self, colour: _Colour) -> _Colour:
        """A blue-green-red colour in the picture's order."""
        return colour if self.order == "bgr" else (colour[2], colour[1], colour[0])

    def at(self, x: float, y: float) -> tuple[int, int]:
        """A point of the frame in pixels."""
        return round(x * (self.width - 1)), round(y * (self.height - 1))


def annotate(
    image: Image, tracks: Sequence[Track], *, order: ChannelOrder, title: str = "", in_place: bool = False
) -> Image:
    """Draw boxes, outlines, keypoints and labels with scores into a copy.

    Args:
        image: H×W×3 uint8; stays as it is, unless `in_place`.
        tracks: what to draw; those without a box are listed at the top left.
        order: of the image's channels.
        title: first line at the top left.
        in_place: nobody needs the image any more: draw into it, if it is in one piece.

    Returns:
        H×W×3 uint8.
    """
    picture = image if in_place and image.flags.c_contiguous else np.array(image, order="C")
    pen = _pen_for(picture, order)
    _fill_outlines(picture, tracks, pen)
    for track in tracks:
        _draw_shape(picture, track, pen)
    # Labels last, or a neighbour's box would strike them out.
    _write_labels(picture, tracks, title, pen)
    return picture


def jpeg(image: Image, quality: int, order: ChannelOrder) -> bytes:
    """A picture as a JPEG file.

    Args:
        image: H×W×3 uint8.
        quality: 1..100.
        order: of the image's channels.

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
            x, y = pen.at(track.box[0], track.box[1])
            _caption(
                picture,
                _label(track),
                (x - pen.line // 2, y - _caption_height(pen)),
                pen.colour(track.label),
                pen,
            )
    top = _caption(picture, title, (0, 0), _DARK, pen) if title else 0
    for track in tracks:
        if track.box is None:
            top += _caption(picture, _label(track), (0, top), pen.colour(track.label), pen)


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
    sure = {point.name: point for point in track.keypoints if point.score >= _SURE}
    _draw_limbs(picture, sure, colour, pen)
    for point in sure.values():
        at = pen.at(point.x, point.y)
        cv2.circle(picture, at, pen.line * 2 + 1, pen.ordered(_DARK), cv2.FILLED, cv2.LINE_AA)
        cv2.circle(picture, at, pen.line * 2, colour, cv2.FILLED, cv2.LINE_AA)


def _draw_limbs(picture: Image, points: dict[str, Keypoint], colour: _Colour, pen: _Pen) -> None:
    for one, other in _LIMBS:
        if one in points and other in points:
            begin, end = points[one], points[other]
            cv2.line(picture, pen.at(begin.x, begin.y), pen.at(end.x, end.y), colour, pen.line, cv2.LINE_AA)


def _label(track: Track) -> str:
    return f"{track.label} {track.score:.0%}"


def _pixels(outline: Sequence[Point], pen: _Pen) -> np.ndarray[tuple[int, int], np.dtype[np.int32]]:
    return np.array([pen.at(x, y) for x, y in outline], np.int32)


def _caption_height(pen: _Pen) -> int:
    return round(30 * pen.text) + 2 * pen.line


def _caption(picture: Image, text: str, at: tuple[int, int], colour: _Colour, pen: _Pen) -> int:
    """Text on a patch of colour, moved so that it lies in the picture. Its height, px."""
    high = _caption_height(pen)
    letters = lettering.line(text, high - 2 * pen.line)
    wide = letters.shape[1] + 4 * pen.line
    x = max(0, min(at[0], pen.width - wide))
    y = max(0, min(at[1], pen.height - high))
    cv2.rectangle(picture, (x, y), (x + wide, y + high), colour, cv2.FILLED)
    shade = _LIGHT if _luminance(colour, pen.order) < 140.0 else _DARK
    lettering.ink(picture, letters, x + 2 * pen.line, y + pen.line, shade)
    return high


def _luminance(colour: _Colour, order: ChannelOrder) -> float:
    """Brightness 0..255, ITU-R BT.601."""
    blue, green, red = colour if order == "bgr" else colour[::-1]
    return 0.114 * blue + 0.587 * green + 0.299 * red
