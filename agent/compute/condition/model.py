"""Condition of a model of pictures: it gives the same answer whatever it is shown."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence

import cv2
import numpy as np

from agent.types import Array, Image

_CHECK_S = 2.0
"""Time between two checks, s."""
_NUMBERS = 64
"""Least numbers of an answer: those of a model that tells two classes may be the same for long."""
_PICTURES, _SPAN_S = 8, 20.0
"""Pictures, unlike the first, with one answer, and the time that they take, until the answer is constant."""
_LEVELS, _SHARE = 12, 0.005
"""Pictures differ if so many grey levels change in such a share of their pixels."""


class ConstantAnswer:
    """Compares the answers of one model with its pictures. For one thread.

    `active` is True while it gives one answer to different pictures.
    """

    def __init__(self) -> None:
        self.active = False
        self._next_ns = -(1 << 62)
        self._answer = 0
        self._first: Image | None = None
        self._began_ns, self._different = 0, 0

    def update(self, now_ns: int, outputs: Callable[[], Sequence[Array]], view: Callable[[], Image]) -> None:
        """Add the answer `outputs` to the picture that `view` returns, small and grey, if one is due."""
        if 0 < self._next_ns - now_ns <= _CHECK_S * 1e9:
            return
        self._next_ns = now_ns + round(_CHECK_S * 1e9)
        found = outputs()
        if sum(one.size for one in found) < _NUMBERS:
            return
        answer, picture = _digest(found), view()
        if answer != self._answer or self._first is None or self._first.shape != picture.shape:
            self._answer, self._first, self._began_ns = answer, picture.copy(), now_ns
            self._different, self.active = 0, False
            return
        self._different += _differ(picture, self._first)
        self.active = self._different >= _PICTURES and now_ns - self._began_ns >= _SPAN_S * 1e9


def _digest(outputs: Sequence[Array]) -> int:
    found = 0
    for one in outputs:
        found = zlib.crc32(np.ascontiguousarray(one).data.cast("B"), found)
    return found


def _differ(one: Image, other: Image) -> bool:
    _, changed = cv2.threshold(cv2.absdiff(one, other), _LEVELS, 255, cv2.THRESH_BINARY)
    return bool(cv2.countNonZero(changed) >= _SHARE * changed.size)
