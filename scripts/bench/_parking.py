"""A scene with parked vehicles and people who pass. Part of the bench `stationary`.

The place is that of the packaged clip, with the two vehicles that really stand there, faint and small. A
cut-out of
one of them stands twice more in it, larger: one all the time, one that arrives and leaves. People are those of
    the clip; they pass in front of the vehicles. Noise, drift of light and JPEG are those of a cheap camera.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
from _stillness import read, sensor_noise
from msgspec import Struct

from agent.types import Box, Image

_VAN = np.array([(653, 53), (660, 45), (706, 44), (721, 60), (722, 86), (714, 93), (699, 99), (655, 92)])
"""Outline of the white van in the clip, px."""
_PERSON = 30
"""Grey levels by which a frame of the clip differs from the empty place where a person is."""
_DRIVE_S = 4.0
FOUND = {"clip_van": (0.849, 0.076, 0.946, 0.171), "clip_car": (0.955, 0.089, 1.0, 0.165)}
"""Places of the two vehicles of the clip, fractions of the frame."""
_LIGHT_S = 40.0


class Part(Struct, frozen=True):
    """A stretch of the scene.

    Attributes:
        seconds: length, s.
        fps: frames per second.
        people: whether people pass.
        arrives, leaves: whether the second vehicle comes or goes, from the first second of the part on.
    """

    seconds: float
    fps: float
    people: bool = False
    arrives: bool = False
    leaves: bool = False


class Shot(Struct, frozen=True):
    """One frame.

    Attributes:
        image: H×W×3 uint8, BGR.
        at_s: time since the beginning, s.
        part: number of its part.
        into_s: time since the beginning of its part, s.
    """

    image: Image
    at_s: float
    part: int
    into_s: float


class Vehicle:
    """The cut-out van, scaled and perhaps mirrored."""

    def __init__(self, place: Image, scale: float, x: int, y: int, *, mirrored: bool) -> None:
        left, top = _VAN.min(axis=0)
        right, bottom = _VAN.max(axis=0)
        mask = np.zeros(place.shape[:2], np.uint8)
        cv2.fillPoly(mask, [_VAN], 255)
        size = round((right - left) * scale), round((bottom - top) * scale)
        picture = cv2.resize(place[top:bottom, left:right], size, interpolation=cv2.INTER_CUBIC)
        cover = cv2.resize(cv2.GaussianBlur(mask, (3, 3), 0)[top:bottom, left:right], size)
        if mirrored:
            picture, cover = picture[:, ::-1], cover[:, ::-1]
        self._picture = picture.astype(np.float32)
        self._cover = (cover / np.float32(255))[..., None]
        self._x, self._y, self._frame = x, y, (place.shape[1], place.shape[0])

    @property
    def box(self) -> Box:
        """Its place, fractions of the frame."""
        height, width = self._picture.shape[:2]
        x0, y0 = self._x / self._frame[0], self._y / self._frame[1]
        return (x0, y0, x0 + width / self._frame[0], y0 + height / self._frame[1])

    def paint(self, image: Image, shift: int, free: Image) -> None:
        """Draw it into a picture, `shift` px to the right of its place, behind what is not `free` (0 or 1)."""
        height, width = self._picture.shape[:2]
        left, right = self._x + shift, min(image.shape[1], self._x + shift + width)
        if right <= left:
            return
        spot = image[self._y : self._y + height, left:right]
        cover = self._cover[:, : right - left] * free[self._y : self._y + height, left:right, None]
        spot[:] = (spot * (1 - cover) + self._picture[:, : right - left] * cover).astype(np.uint8)


class Parking:
    """Renders the scene."""

    def __init__(
        self, walkers: Path, *, section: tuple[float, float] = (0.0, 1.0), mirrored: bool = False
    ) -> None:
        """Read the clip.

        Args:
            walkers: the packaged clip.
            section: part of the clip whose people pass, as shares of its length.
            mirrored: swap left and right of the finished pictures.
        """
        self._people, self._mirrored = read(walkers, 1000), mirrored
        if not self._people:
            raise SystemExit(f"cannot read {walkers}: give the packaged clip with --clip")
        self._empty = np.median(np.stack(self._people[::12]), axis=0).astype(np.uint8)
        self._stays = Vehicle(self._empty, 1.5, 120, 150, mirrored=True)
        self._comes = Vehicle(self._empty, 1.3, 500, 200, mirrored=False)
        first, last = (round(share * len(self._people)) for share in section)
        self._people = self._people[first:last]

    @property
    def places(self) -> dict[str, Box]:
        """Where each vehicle stands, fractions of the frame."""
        return {"stays": self._stays.box, "comes": self._comes.box, **FOUND}

    def shots(self, parts: Sequence[Part]) -> Iterator[Shot]:
        """Render every frame of the parts, one after the other."""
        at_s, walked, is_there = 0.0, 0, False
        noise = sensor_noise(self._empty.astype(np.float32))
        for number, part in enumerate(parts):
            for index in range(round(part.seconds * part.fps)):
                into_s = index / part.fps
                scene, free = self._empty.copy(), np.ones(self._empty.shape[:2], np.uint8)
                if part.people:
                    scene, free = self._with_people(walked)
                    walked += 1
                self._stays.paint(scene, 0, free)
                shift = _shift(part, into_s, is_there=is_there)
                if shift is not None:
                    self._comes.paint(scene, shift, free)
                image = _frame(scene, at_s + into_s, next(noise))
                image = np.ascontiguousarray(image[:, ::-1]) if self._mirrored else image
                yield Shot(image, at_s + into_s, number, into_s)
            at_s += part.seconds
            is_there = (is_there or part.arrives) and not part.leaves

    def _with_people(self, number: int) -> tuple[Image, Image]:
        """A frame of the clip, and where nobody is."""
        frame = self._people[number % len(self._people)].copy()
        differs = cv2.absdiff(frame, self._empty).max(axis=2)
        somebody = cv2.dilate((differs > _PERSON).astype(np.uint8), np.ones((5, 5), np.uint8))
        return frame, np.asarray(1 - somebody, np.uint8)


def _frame(scene: Image, at_s: float, noise: np.ndarray) -> Image:
    """A picture as a cheap camera sends it."""
    light = 1.0 + 0.1 * np.sin(2 * np.pi * at_s / _LIGHT_S)
    noisy = np.clip(scene * np.float32(light) + noise, 0, 255).astype(np.uint8)
    _, packet = cv2.imencode(".jpg", noisy, [cv2.IMWRITE_JPEG_QUALITY, 90])
    return np.asarray(cv2.imdecode(packet, cv2.IMREAD_COLOR), np.uint8)


def _shift(part: Part, into_s: float, *, is_there: bool) -> int | None:
    """How far to the right of its place the second vehicle is, px; None: it is not in the picture."""
    share = min(1.0, max(0.0, (into_s - 1.0) / _DRIVE_S))
    if part.arrives:
        return round(268 * (1.0 - share)) if share > 0.0 else None
    if part.leaves:
        return round(268 * share) if share < 1.0 else None
    return 0 if is_there else None
