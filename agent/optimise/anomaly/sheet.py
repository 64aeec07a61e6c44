"""One picture that shows what a model of anomalies finds: parts with their scores, and where they differ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from agent.compute.drawing import ink, line
from agent.types import Image

_SIDE, _CAPTION, _GAP = 256, 18, 6
_INK, _PAPER = (40, 40, 40), 255
_RED = (40, 40, 230)
"""BGR."""


class SheetPart(NamedTuple):
    """A part on the sheet.

    Attributes:
        picture: BGR, H×W×3 uint8.
        shares: squared distances of its places as shares of what sound ones reach, float32 [h, w]; from 1 on they
            are marked.
        caption: above it.
    """

    picture: Image
    shares: NDArray[np.float32]
    caption: str


def sheet_png(rows: Sequence[Sequence[SheetPart]]) -> bytes:
    """Return rows of parts as a PNG: each as it is, but where it differs, in red."""
    rows = [row for row in rows if row]
    columns = max(map(len, rows), default=1)
    height = len(rows) * (_SIDE + _CAPTION + _GAP) + _GAP
    sheet = np.full((height, columns * (_SIDE + _GAP) + _GAP, 3), _PAPER, np.uint8)
    for y, row in enumerate(rows):
        for x, part in enumerate(row):
            top, left = _GAP + y * (_SIDE + _CAPTION + _GAP), _GAP + x * (_SIDE + _GAP)
            ink(sheet, line(part.caption, _CAPTION)[:, :_SIDE], left, top, _INK)
            sheet[top + _CAPTION : top + _CAPTION + _SIDE, left : left + _SIDE] = _marked(part)
    return bytes(cv2.imencode(".png", sheet)[1])


def _marked(part: SheetPart) -> Image:
    picture = cv2.resize(part.picture, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)
    shares = cv2.resize(part.shares, (_SIDE, _SIDE), interpolation=cv2.INTER_LINEAR)
    differs = shares >= 1.0
    opacity = np.clip(shares - 0.5, 0.0, 0.6)[:, :, None] * differs[:, :, None]
    marked = np.asarray(picture * (1.0 - opacity) + np.array(_RED) * opacity, np.uint8)
    edges, _ = cv2.findContours(differs.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    cv2.drawContours(marked, edges, -1, _RED, 1)
    return np.asarray(marked, np.uint8)
