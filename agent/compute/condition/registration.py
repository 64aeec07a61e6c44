"""Find by how much a view has shifted and turned: correlation of edge directions by Fourier transform."""

from __future__ import annotations

import math
from collections.abc import Iterator

import cv2
import numpy as np
from msgspec import Struct

from agent.compute.condition.view import Floats, match

ANGLES = (0.0, *(sign * angle for angle in (3.0, 6.0, 9.0, 12.0, 16.0, 20.0) for sign in (1.0, -1.0)))
"""Angles that are tried, degrees."""
_OVERLAP = 0.3
"""Least share of the picture that both views must have."""
_PEAKS = 3


class Displacement(Struct, frozen=True):
    """A shift and a turn of the view.

    Attributes:
        right, down: shift of what is seen, as shares of the picture's width and height.
        degrees: turn, clockwise in the picture.
        match: share of the tiles that agree after it, see `agent.compute.condition.view.match`.
    """

    right: float
    down: float
    degrees: float
    match: float


def search(learned: Floats, now: Floats) -> Iterator[Displacement]:
    """Yield the best shift for each angle. Each takes a few Fourier transforms: do one, then let inputs pass."""
    rows, columns = learned.shape[:2]
    size = cv2.getOptimalDFTSize(2 * columns), cv2.getOptimalDFTSize(2 * rows)
    reference = _spectrum(learned, size)
    for degrees in ANGLES:
        turned = turn(now, -degrees)
        product = cv2.mulSpectrums(_spectrum(turned, size), reference, 0, conjB=True)
        surface = cv2.dft(product, flags=cv2.DFT_INVERSE)[:, :, 0]
        yield _best(learned, turned, np.ascontiguousarray(surface), degrees)


def turn(field: Floats, degrees: float) -> Floats:
    """Return a field turned clockwise around its middle; what comes from outside is empty."""
    if degrees == 0.0:
        return field
    rows, columns = field.shape[:2]
    around = cv2.getRotationMatrix2D(((columns - 1) / 2, (rows - 1) / 2), -degrees, 1.0)
    moved = cv2.warpAffine(field, around, (columns, rows))
    angle = math.radians(2.0 * degrees)  # directions have the doubled angle
    turning = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]], np.float32)
    return np.asarray(cv2.transform(moved, turning), np.float32)


def _spectrum(field: Floats, size: tuple[int, int]) -> Floats:
    padded = np.zeros((size[1], size[0], 2), np.float32)
    padded[: field.shape[0], : field.shape[1]] = field
    return np.asarray(cv2.dft(padded, flags=cv2.DFT_COMPLEX_INPUT), np.float32)


def _best(learned: Floats, now: Floats, surface: Floats, degrees: float) -> Displacement:
    rows, columns = learned.shape[:2]
    best = Displacement(0.0, 0.0, degrees, 0.0)
    for _ in range(_PEAKS):
        _, _, _, (x, y) = cv2.minMaxLoc(surface)
        right = x if x <= surface.shape[1] // 2 else x - surface.shape[1]
        down = y if y <= surface.shape[0] // 2 else y - surface.shape[0]
        agrees = shifted_match(learned, now, right, down)
        if agrees > best.match:
            best = Displacement(right / columns, down / rows, degrees, agrees)
        cv2.circle(surface, (x, y), 4, -1e9, -1)
    return best


def shifted_match(learned: Floats, now: Floats, right: int, down: int) -> float:
    """Return `match` where both views overlap after a shift of `now`, px; 0: they overlap too little."""
    rows, columns = learned.shape[:2]
    height, width = rows - abs(down), columns - abs(right)
    if height <= 0 or width <= 0 or height * width < _OVERLAP * rows * columns:
        return 0.0
    one = learned[max(0, -down) : max(0, -down) + height, max(0, -right) : max(0, -right) + width]
    other = now[max(0, down) : max(0, down) + height, max(0, right) : max(0, right) + width]
    found = match(np.ascontiguousarray(other), np.ascontiguousarray(one))
    return 0.0 if math.isnan(found) else found
