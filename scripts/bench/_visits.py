"""People who come and go where nobody was: by day, in rain, at night, under a lamp. Part of the bench `decode`.

"Clear" is a day with less noise.

The place and the people are those of the packaged clip. A walker is cut out of the clip, picture by picture,
where it differs from the empty place, and walks from outside the view into it and on, at a size and a speed of
its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from _stillness import deserted, read
from msgspec import Struct
from numpy.typing import NDArray

from agent.types import Image

FPS = 10
SIZE = (480, 360)
"""Width and height of the view, px: the second stream of a camera."""
Weather = Literal["day", "rain", "night", "lamp", "clear"]
_SIGMA = {"night": 5.0, "clear": 1.0}
"""Deviation of the noise, grey levels, where it is not 2: at night it is amplified, and a camera that averages
over time leaves less of it."""
_DIFFERS = 28
"""Grey levels by which a picture of the clip differs from the empty place where a person is."""
_STEPS = 24
"""Pictures of a walker that are played forwards and backwards."""
_ROOM = 64
_TALL = 60
"""Least height of a walker in the clip, px."""


class Walker(Struct, frozen=True):
    """Pictures of one person, H×W×3, and how much of each pixel is hers, H×W×1, 0..1."""

    pictures: list[NDArray[np.float32]]
    covers: list[NDArray[np.float32]]


class Visit(Struct, frozen=True):
    """One person who crosses the view.

    Attributes:
        begins_s, ends_s: from outside the view to outside it, s.
        walker: number of the walker.
        height: of the person, share of the picture's.
        y: of the feet, share of the picture's height.
        leftwards: whether she comes from the right.
    """

    begins_s: float
    ends_s: float
    walker: int
    height: float
    y: float
    leftwards: bool


class Street:
    """Renders the place of the packaged clip with visitors."""

    def __init__(self, clip: Path, model: str, size: tuple[int, int] = SIZE) -> None:
        pictures = read(clip, 300)
        if not pictures:
            raise SystemExit(f"cannot read {clip}: give the packaged clip with --clip")
        median = np.median(np.stack(pictures[::12]), axis=0).astype(np.uint8)
        self._empty = np.asarray(
            cv2.resize(deserted(median, model), size, interpolation=cv2.INTER_AREA), np.uint8
        )
        self.walkers = _walkers(pictures, median)
        if not self.walkers:
            raise SystemExit(f"{clip}: found nobody to cut out")

    def pictures(self, visits: Sequence[Visit], seconds: float, weather: Weather, seed: int) -> Iterator[Image]:
        """Render each picture of so many seconds."""
        random, height, width = np.random.default_rng(seed), *self._empty.shape[:2]
        noise = _noise(random, (height, width, 3), _SIGMA.get(weather, 2.0))
        lit_s = float(random.uniform(0.3, 0.6)) * seconds
        for number in range(round(seconds * FPS)):
            now_s = number / FPS
            view = self.view(visits, now_s)
            view *= 1.0 + 0.04 * np.sin(2 * np.pi * now_s / 50.0)
            if weather == "night" or (weather == "lamp" and now_s < lit_s):
                view *= 0.4
            view += next(noise)
            if weather == "rain":
                _rain(view, random)
            yield np.clip(view, 0, 255).astype(np.uint8)

    def view(self, visits: Sequence[Visit], now_s: float) -> NDArray[np.float32]:
        """Render one picture without weather and noise."""
        view = self._empty.astype(np.float32)
        for visit in visits:
            self._paint(view, visit, now_s)
        return view

    def _paint(self, view: NDArray[np.float32], visit: Visit, now_s: float) -> None:
        if not visit.begins_s <= now_s < visit.ends_s:
            return
        walker, height, width = self.walkers[visit.walker], *view.shape[:2]
        phase = round(now_s * FPS) % (2 * _STEPS)
        step = min(phase, 2 * _STEPS - 1 - phase)
        rows = max(12, round(visit.height * height))
        columns = max(6, round(walker.pictures[step].shape[1] * rows / walker.pictures[step].shape[0]))
        picture = cv2.resize(walker.pictures[step], (columns, rows), interpolation=cv2.INTER_AREA)
        cover = cv2.resize(walker.covers[step], (columns, rows), interpolation=cv2.INTER_AREA)[..., None]
        share = (now_s - visit.begins_s) / (visit.ends_s - visit.begins_s)
        left = round((1.0 - share if visit.leftwards else share) * (width + columns)) - columns
        top = round(visit.y * height) - rows
        x0, x1, y0, y1 = max(0, left), min(width, left + columns), max(0, top), min(height, top + rows)
        if x1 <= x0 or y1 <= y0:
            return
        inside = np.s_[y0 - top : y1 - top, x0 - left : x1 - left]
        view[y0:y1, x0:x1] += cover[inside] * (picture[inside] - view[y0:y1, x0:x1])


def plan(seconds: float, walkers: int, random: np.random.Generator) -> list[Visit]:
    """Return visits with pauses between them: a third of them slow, a third far away and small."""
    found: list[Visit] = []
    now_s = 12.0
    while True:
        kind = int(random.integers(3))
        height = float(random.uniform(0.12, 0.18) if kind == 2 else random.uniform(0.2, 0.32))
        lasts_s = float(random.uniform(20.0, 30.0) if kind == 1 else random.uniform(8.0, 16.0))
        if now_s + lasts_s > seconds - 5.0:
            return found
        y = float(random.uniform(0.45, 0.6) if kind == 2 else random.uniform(0.7, 0.95))
        found.append(
            Visit(now_s, now_s + lasts_s, int(random.integers(walkers)), height, y, bool(random.integers(2)))
        )
        now_s += lasts_s + float(random.uniform(12.0, 25.0))


def _walkers(pictures: Sequence[Image], empty: Image) -> list[Walker]:
    """Cut out whoever walks alone for long enough."""
    found: list[Walker] = []
    for first in range(0, len(pictures) - _STEPS, _STEPS):
        for box in _people(pictures[first], empty):
            walker = _follow(pictures[first : first + _STEPS], empty, box)
            found += [walker] if walker is not None else []
    return found


def _cover(picture: Image, empty: Image) -> NDArray[np.uint8]:
    blue, green, red = cv2.split(cv2.absdiff(cv2.blur(picture, (3, 3)), cv2.blur(empty, (3, 3))))
    mask = (cv2.max(cv2.max(blue, green), red) > _DIFFERS).astype(np.uint8)  # numpy takes 40 times as long
    return np.asarray(cv2.morphologyEx(mask, cv2.MORPH_CLOSE, np.ones((7, 7), np.uint8)), np.uint8)


def _people(picture: Image, empty: Image) -> list[tuple[int, int, int, int]]:
    """Return the boxes (x, y, width, height) of upright parts that differ."""
    height, width = picture.shape[:2]
    boxes = [
        cv2.boundingRect(one)
        for one in cv2.findContours(_cover(picture, empty), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)[0]
    ]
    return [
        (x, y, w, h)
        for x, y, w, h in boxes
        if h >= _TALL and 1.6 < h / w < 4.0 and x > 4 and y > 4 and x + w < width - 4 and y + h < height - 4
    ]


def _follow(pictures: Sequence[Image], empty: Image, box: tuple[int, int, int, int]) -> Walker | None:
    walker = Walker([], [])
    for picture in pictures:
        near = [one for one in _people(picture, empty) if abs(one[0] - box[0]) < 12 and abs(one[3] - box[3]) < 15]
        if not near:
            return None
        x, y, w, h = box = min(near, key=lambda one: abs(one[0] - box[0]) + abs(one[1] - box[1]))
        cover = cv2.GaussianBlur(_cover(picture, empty)[y : y + h, x : x + w].astype(np.float32), (3, 3), 0)
        walker.pictures.append(picture[y : y + h, x : x + w].astype(np.float32))
        walker.covers.append(np.asarray(cover, np.float32))
    return walker


def _noise(random: np.random.Generator, shape: tuple[int, ...], sigma: float) -> Iterator[NDArray[np.float32]]:
    """Give a field of noise for each picture: a part, at random, of four larger ones."""
    height, width, channels = shape
    large = (height + _ROOM, width + _ROOM, channels)
    fields = [sigma * random.standard_normal(large, np.float32) for _ in range(4)]
    while True:
        field, (y, x) = fields[int(random.integers(len(fields)))], random.integers(_ROOM, size=2)
        yield field[y : y + height, x : x + width]


def _rain(view: NDArray[np.float32], random: np.random.Generator) -> None:
    height, width = view.shape[:2]
    for _ in range(60):
        x, y, long = int(random.integers(width)), int(random.integers(height)), int(random.integers(8, 30))
        cv2.line(view, (x, y), (x + 2, y + long), (200.0, 200.0, 200.0), 1)
