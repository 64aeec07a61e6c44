"""Staged footage of a camera at rest: part of a photograph or clip, with light, weather, passers-by, and faults.

The photograph is larger than the view, so that the camera can be moved and tilted. All is reproducible.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.uint8]
View = NDArray[np.float32]
SIZE = (448, 336)
"""Width and height of the view, px."""
LEAST = (600, 420)
"""Least width and height of a photograph, px."""
Base = Callable[[float], Picture]
"""Returns what is around the view at a time, s, larger than the view."""


class Passer:
    """Something that crosses the view, or comes and stays for a while."""

    def __init__(self, cut: Picture, random: np.random.Generator, height: float, stays_s: float = 0.0) -> None:
        """Take a cut from another photograph, as high as a share of the view."""
        rows = max(8, round(height * SIZE[1]))
        columns = max(6, min(round(0.7 * SIZE[0]), round(cut.shape[1] * rows / cut.shape[0])))
        self.cut = np.asarray(cv2.resize(cut, (columns, rows), interpolation=cv2.INTER_AREA), np.uint8)
        y, x = np.mgrid[-1 : 1 : rows * 1j, -1 : 1 : columns * 1j]
        power = 8 if stays_s else 2
        self.alpha = np.clip((1.0 - np.abs(x) ** power - np.abs(y) ** power) * 6.0, 0.0, 1.0)[:, :, None]
        self.begins_s, self.lasts_s, self.stays_s = 0.0, float(random.uniform(4.0, 14.0)), stays_s
        self.top = round(float(random.uniform(0.3, 0.8)) * SIZE[1] - rows / 2)
        self.leftwards = bool(random.integers(2))

    def draw(self, view: View, now_s: float) -> None:
        """Draw it where it is at a time, s."""
        passed = now_s - self.begins_s
        if passed > self.lasts_s / 2:
            passed = max(self.lasts_s / 2, passed - self.stays_s)
        part = passed / self.lasts_s
        if not 0.0 <= part <= 1.0:
            return
        part = 1.0 - part if self.leftwards else part
        width = self.cut.shape[1]
        _paste(view, self.cut, self.alpha, round(part * (SIZE[0] + width) - width), self.top)


def _paste(view: View, cut: Picture, alpha: NDArray[Any], left: int, top: int) -> None:
    x0, y0 = max(0, left), max(0, top)
    x1, y1 = min(view.shape[1], left + cut.shape[1]), min(view.shape[0], top + cut.shape[0])
    if x0 >= x1 or y0 >= y1:
        return
    inside = slice(y0 - top, y1 - top), slice(x0 - left, x1 - left)
    part = view[y0:y1, x0:x1]
    part += alpha[inside] * (cut[inside] - part)


def view_of(photo: Picture, right: float = 0.0, down: float = 0.0, degrees: float = 0.0) -> View:
    """Return what a camera sees that was moved by shares of the view, and turned."""
    rows, columns = photo.shape[:2]
    around = cv2.getRotationMatrix2D((columns / 2, rows / 2), degrees, 1.0)
    around[0, 2] -= (columns - SIZE[0]) / 2 + right * SIZE[0]
    around[1, 2] -= (rows - SIZE[1]) / 2 + down * SIZE[1]
    return np.asarray(cv2.warpAffine(photo, around, SIZE, borderMode=cv2.BORDER_REFLECT), np.float32)


def infrared(view: View, spot: float = 0.55) -> View:
    """Return the view in the light of a camera's own infrared lamp: grey, leaves bright, the edges dark."""
    blue, green, red = view[:, :, 0], view[:, :, 1], view[:, :, 2]
    grey = np.clip(0.9 * red + 0.5 * green - 0.5 * blue, 0, 255)
    lamp = 0.25 + 0.9 * np.exp(-_squared_distance() / (2 * spot * spot))
    return np.repeat((grey * lamp)[:, :, None], 3, 2).astype(np.float32)


def _squared_distance(x0: float = 0.0, y0: float = 0.0) -> NDArray[Any]:
    """Return the squared distance of each pixel from a point, all in halves of the view's sides."""
    y, x = np.mgrid[-1 : 1 : SIZE[1] * 1j, -1 : 1 : SIZE[0] * 1j]
    return np.asarray((x - x0) ** 2 + (y - y0) ** 2)


def lamp_light(view: View, strength: float, x0: float, y0: float) -> View:
    """Return the view in the light of one lamp that hangs in it."""
    squared = _squared_distance(x0, y0)
    lit = view * (strength * (0.15 + np.exp(-squared / 0.7)))[:, :, None]
    lit += (255.0 * np.exp(-squared / 0.004))[:, :, None]
    return np.asarray(lit, np.float32)


def rain(view: View, random: np.random.Generator, drops: int = 120) -> None:
    """Draw streaks of rain, others in each picture."""
    layer = np.zeros(view.shape[:2], np.uint8)
    for x, y, long in random.integers((0, 0, 6), (*SIZE, 24), (drops, 3)).tolist():
        cv2.line(layer, (x, y), (x + long // 5, y + long), (255,), 1)
    view += 0.35 * cv2.GaussianBlur(layer, (0, 0), 0.7)[:, :, None].astype(np.float32)


def head_lights(view: View, now_s: float) -> None:
    """Draw two lamps that pass every 20 s, and the light that they throw."""
    part = (now_s % 20.0) / 6.0
    if part > 1.0:
        return
    for lamp in (0.0, 0.12):
        squared = _squared_distance(part * 2.4 - 1.0 - lamp, 0.3)
        view += (255.0 * np.exp(-squared / 0.002) + 70.0 * np.exp(-squared / 0.25))[:, :, None]


def finish(view: View, random: np.random.Generator, noise: float, quality: int) -> Picture:
    """Add the sensor's noise, and the loss of the camera's compression."""
    noisy = view + noise * random.standard_normal(view.shape[:2], np.float32)[:, :, None]
    picture = np.clip(noisy, 0, 255).astype(np.uint8)
    done, data = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, quality])
    assert done
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR), np.uint8)


class Scene:
    """A camera at rest over seven minutes: a day, its weather, a night, and who passes.

    Minutes: 0 day with clouds, 1 a lamp is switched on and off, 2 a truck parks for two minutes, 3 rain, 4 night
    with a street lamp and head lights, 5 infrared, 6 the same in rain, then day again.
    """

    LONG_S = 430.0

    def __init__(self, base: Base, cuts: list[Picture], seed: int) -> None:
        self.base, self.random = base, np.random.default_rng(seed)
        self._lamp = self.random.uniform(-0.7, 0.7, 2)
        self._passers = [self._passer(cuts, at) for at in np.arange(0.0, self.LONG_S, 18.0)]
        truck = Passer(cuts[seed % len(cuts)], self.random, 0.6, stays_s=110.0)
        truck.begins_s = 120.0
        self._passers.append(truck)

    def _passer(self, cuts: list[Picture], at_s: float) -> Passer:
        cut = cuts[int(self.random.integers(len(cuts)))]
        one = Passer(cut, self.random, float(self.random.uniform(0.1, 0.45)))
        one.begins_s = at_s + float(self.random.uniform(0.0, 8.0))
        return one

    def day(self, now_s: float, right: float = 0.0, down: float = 0.0, degrees: float = 0.0) -> View:
        """Return the view by day, with who passes, of a camera that was moved."""
        shake = 0.003 * self.random.standard_normal(2)
        view = view_of(self.base(now_s), right + shake[0], down + shake[1], degrees)
        for one in self._passers:
            one.draw(view, now_s)
        return view

    def at(self, now_s: float) -> Picture:
        """Return the picture at a time, s."""
        view, minute = self.day(now_s), int(now_s // 60)
        view *= 0.8 + 0.2 * math.sin(now_s / 9.0)
        noise, quality = 2.0, 70
        if minute == 1 and now_s % 24.0 < 12.0:
            view = lamp_light(view, 0.6, *self._lamp)
        if minute in (3, 6):
            rain(view, self.random)
            quality = 50
        if minute == 4:
            view = lamp_light(view, 0.35, *self._lamp)
            head_lights(view, now_s)
            noise, quality = 4.0, 50
        if minute in (5, 6):
            view = infrared(view)
            noise, quality = 6.0, 50
        return finish(view, self.random, noise, quality)
