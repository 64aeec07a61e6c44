"""Scenes with a state, staged in photographs that nobody took for it: a gate, a bin, a light; by day and night.

A region of a photograph is covered by a panel of another photograph that slides in (gate), has a thing in it
whose place and lighting change (bin), or a lamp in it (light). Light, shadows, noise, JPEG and the camera's
place differ from picture to picture; people, cut out of other photographs, cover up to 30 % of the region.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Picture = NDArray[Any]
KINDS = ("gate", "bin", "light")
WIDTH = 640
DAY, NIGHT = (0.7, 1.25), (0.3, 0.55)
"""Gains of the light."""


class Scene:
    """One photograph with a state of two values. Pictures are BGR, uint8."""

    def __init__(self, photographs: Sequence[Picture], number: int, kind: str, seed: int) -> None:
        self.kind, self._photographs = kind, photographs
        self._random = np.random.default_rng((seed, number, KINDS.index(kind)))
        self._street = photographs[number]
        height, width = self._street.shape[:2]
        share = self._random.uniform(0.12, 0.35), min(0.6, self._random.uniform(0.12, 0.35) * width / height)
        left, top = (float(self._random.uniform(0.02, 0.98 - one)) for one in share)
        self.region = (left, top, left + share[0], top + share[1])
        x0, y0, x1, y1 = (int(edge * size) for edge, size in zip(self.region, (width, height) * 2, strict=True))
        self._box = x0, y0, x1, y1
        self._thing = cv2.resize(self._piece(x1 - x0, y1 - y0), (x1 - x0, y1 - y0))
        self._place, self._size = self._random.uniform(0.1, 0.4, 2), self._random.uniform(0.5, 0.65)

    def _piece(self, width: int, height: int) -> Picture:
        """A part of some photograph."""
        other = self._photographs[int(self._random.integers(len(self._photographs)))]
        height, width = min(height, other.shape[0] - 1), min(width, other.shape[1] - 1)
        y = int(self._random.integers(other.shape[0] - height))
        x = int(self._random.integers(other.shape[1] - width))
        return other[y : y + height, x : x + width]

    def lesson(self, value: int, count: int) -> list[Picture]:
        """Pictures that were taken one after the other: one light, nobody there."""
        gain, tint = self._random.uniform(0.75, 1.2), self._random.uniform(0.94, 1.06, 3)
        return [self._taken(self._with_state(value), gain, tint) for _ in range(count)]

    def picture(self, value: int, light: tuple[float, float] = DAY) -> Picture:
        """A picture at another time."""
        picture = self._with_state(value)
        if self._random.random() < 0.35:
            self._let_pass(picture)
        if self._random.random() < 0.3:
            picture *= self._shadow(picture.shape)
        return self._taken(picture, self._random.uniform(*light), self._random.uniform(0.92, 1.08, 3))

    def covered(self) -> Picture:
        """A picture in which something else hides the region."""
        picture = self._with_state(int(self._random.integers(2)))
        height, width = picture.shape[:2]
        x0, y0, x1, y1 = self._box
        edge = (x1 - x0) // 10
        place = np.s_[max(0, y0 - edge) : min(height, y1 + edge), max(0, x0 - edge) : min(width, x1 + edge)]
        other = self._photographs[int(self._random.integers(len(self._photographs)))]
        picture[place] = cv2.resize(other, (width, height))[place]
        return self._taken(picture, self._random.uniform(*DAY), self._random.uniform(0.92, 1.08, 3))

    def _with_state(self, value: int) -> Picture:
        picture = self._street.astype(np.float32)
        if value:
            getattr(self, f"_set_{self.kind}")(picture)
        return picture

    def _set_gate(self, picture: Picture) -> None:
        x0, y0, x1, y1 = self._box
        shown = max(1, int((x1 - x0) * self._random.uniform(0.75, 1.0)))
        picture[y0:y1, x0 : x0 + shown] = self._thing[:, x1 - x0 - shown :]

    def _set_bin(self, picture: Picture) -> None:
        x0, y0, x1, y1 = self._box
        width, height = int((x1 - x0) * self._size), int((y1 - y0) * self._size)
        offset = self._place + self._random.uniform(-0.08, 0.08, 2)
        x = int(np.clip(x0 + offset[0] * (x1 - x0), x0, x1 - width))
        y = int(np.clip(y0 + offset[1] * (y1 - y0), y0, y1 - height))
        mask = np.zeros((height, width, 1), np.float32)
        cv2.ellipse(mask, (width // 2, height // 2), (int(width * 0.48), int(height * 0.48)), 0, 0, 360, 1.0, -1)
        picture[y : y + height, x : x + width] *= 1.0 - mask
        picture[y : y + height, x : x + width] += cv2.resize(self._thing, (width, height)) * mask

    def _set_light(self, picture: Picture) -> None:
        x0, y0, x1, y1 = self._box
        rows, columns = np.mgrid[: picture.shape[0], : picture.shape[1]]
        across = (columns - (x0 + x1) / 2) / (0.35 * (x1 - x0))
        down = (rows - (y0 + y1) / 2) / (0.35 * (y1 - y0))
        picture += np.exp(-(across**2 + down**2))[..., None] * np.array([120.0, 190.0, 220.0])

    def _let_pass(self, picture: Picture) -> None:
        height, width = picture.shape[:2]
        who = self._piece(
            int(width * self._random.uniform(0.05, 0.12)), int(height * self._random.uniform(0.15, 0.35))
        )
        tall, wide = who.shape[:2]
        x, y = int(self._random.integers(width - wide)), int(self._random.integers(height - tall))
        x0, y0, x1, y1 = self._box
        hidden = max(0, min(x + wide, x1) - max(x, x0)) * max(0, min(y + tall, y1) - max(y, y0))
        if hidden < 0.3 * (x1 - x0) * (y1 - y0):
            picture[y : y + tall, x : x + wide] = who

    def _shadow(self, shape: tuple[int, ...]) -> Picture:
        height, width = shape[:2]
        ends = [(self._random.uniform(0, width), y) for y in (0, 0, height, height)]
        mask = np.ones((height, width), np.float32)
        cv2.fillConvexPoly(mask, cv2.convexHull(np.array(ends, np.int32)), 0.6)
        return np.asarray(cv2.GaussianBlur(mask, (21, 21), 0)[..., None])

    def _taken(self, picture: Picture, gain: float, tint: Picture) -> Picture:
        """What the camera makes of it: moved by up to 2 px, noise, JPEG."""
        across, down = self._random.integers(-2, 3, 2)
        moved = np.array([[1, 0, across], [0, 1, down]], np.float32)
        lit: Picture = (picture * gain * tint).astype(np.float32)
        lit = cv2.warpAffine(lit, moved, lit.shape[1::-1], borderMode=cv2.BORDER_REPLICATE)
        lit = lit + self._random.normal(0, self._random.uniform(2, 7), lit.shape)
        quality = [cv2.IMWRITE_JPEG_QUALITY, int(self._random.integers(60, 90))]
        coded = cv2.imencode(".jpg", np.clip(lit, 0, 255).astype(np.uint8), quality)[1]
        return np.asarray(cv2.imdecode(coded, cv2.IMREAD_COLOR))
