"""64 pictures of COCO with their boxes: as they are, mirrored, and as a camera would see them that pans slowly.

As a program it writes the pictures that NanoDet's thresholds are learned from: scripts/build_models/thresholds.
"""

from __future__ import annotations

import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from msgspec import Struct

from agent.types import Image

ARCHIVE = "coco64_dev.tar"
_WINDOW = 0.9
"""Share of the sides that a panning camera sees."""
_STEP = 0.004
"""How far it pans from one picture to the next, as a share of the sides."""
_NOISE = 3.0
"""Standard deviation of its sensor's noise, grey levels."""
_SEEN = 0.3
"""Least share of a box that must be in the window for the thing to count."""
_LEARNED_FROM = 8


class Picture(Struct):
    """A BGR picture and what is on it: class numbers, and boxes as fractions (centre x and y, width, height)."""

    image: Image
    classes: list[int]
    boxes: np.ndarray[Any, np.dtype[np.float64]]


def read(archive: Path) -> Iterator[Picture]:
    """The pictures of an archive of `images/*.jpg` with YOLO's `labels/*.txt`, by name."""
    with tarfile.open(archive) as tar:
        files = {member.name.removeprefix("./"): member for member in tar if member.isfile()}
        for name in sorted(name for name in files if name.startswith("images/")):
            image = cv2.imdecode(np.frombuffer(_content(tar, files[name]), np.uint8), cv2.IMREAD_COLOR)
            label = files.get(f"labels/{Path(name).stem}.txt")
            rows = [line.split() for line in _content(tar, label).decode().splitlines()] if label else []
            boxes = np.array([row[1:] for row in rows], np.float64).reshape(-1, 4)
            assert image is not None, name
            yield Picture(image.astype(np.uint8), [int(row[0]) for row in rows], boxes)


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    assert file is not None, member.name
    return file.read()


def mirrored(picture: Picture) -> Picture:
    """The same with left and right exchanged."""
    boxes = picture.boxes.copy()
    boxes[:, 0] = 1 - boxes[:, 0]
    return Picture(np.ascontiguousarray(picture.image[:, ::-1]), picture.classes, boxes)


def pan(picture: Picture, frames: int, seed: int) -> Iterator[Picture]:
    """What a camera sees of it that pans slowly, back and forth, with a sensor's noise."""
    random = np.random.default_rng(seed)
    room = 1.0 - _WINDOW
    at, angle = random.uniform(0.0, room, 2), random.uniform(0.0, 2.0 * np.pi)
    step = np.array([np.cos(angle), np.sin(angle)]) * _STEP
    for _ in range(frames):
        at = at + step
        step = np.where((at < 0.0) | (at > room), -step, step)
        at = np.clip(at, 0.0, room)
        seen = cut(picture, (at[0], at[1], at[0] + _WINDOW, at[1] + _WINDOW))
        noise = random.normal(0.0, _NOISE, seen.image.shape)
        yield Picture((seen.image + noise).clip(0, 255).astype(np.uint8), seen.classes, seen.boxes)


def cut(picture: Picture, window: tuple[float, float, float, float]) -> Picture:
    """The part of it in a window (fractions), moved by parts of pixels, with the boxes that can be seen there."""
    height, width = picture.image.shape[:2]
    x0, y0, x1, y1 = window
    size = round((x1 - x0) * width), round((y1 - y0) * height)
    shift = np.array([[1.0, 0.0, -x0 * width], [0.0, 1.0, -y0 * height]])
    image = cv2.warpAffine(picture.image, shift, size)
    half = picture.boxes[:, 2:] / 2
    corners = np.hstack((picture.boxes[:, :2] - half, picture.boxes[:, :2] + half))
    scale = (x1 - x0, y1 - y0) * 2
    inside = ((corners - (x0, y0, x0, y0)) / scale).clip(0.0, 1.0)
    sides = inside[:, 2:] - inside[:, :2]
    kept = sides.prod(axis=1) >= _SEEN * (picture.boxes[:, 2:] / scale[:2]).prod(axis=1)
    boxes = np.hstack(((inside[:, :2] + inside[:, 2:]) / 2, sides))[kept]
    return Picture(image.astype(np.uint8), [c for c, k in zip(picture.classes, kept, strict=True) if k], boxes)


def learned_from(picture: Picture, seed: int) -> Iterator[Image]:
    """A picture as it is, mirrored, and parts of both of half the sides and more."""
    twins = picture, mirrored(picture)
    yield from (twin.image for twin in twins)
    random = np.random.default_rng(seed)
    for number in range(_LEARNED_FROM - 2):
        side = random.uniform(0.5, 0.9)
        x, y = random.uniform(0.0, 1.0 - side, 2)
        yield cut(twins[number % 2], (x, y, x + side, y + side)).image


def main(data: str, folder: str) -> None:
    """Write the pictures to learn from."""
    for number, picture in enumerate(read(Path(data, ARCHIVE))):
        for part, image in enumerate(learned_from(picture, number)):
            cv2.imwrite(str(Path(folder, f"{number:02}-{part}.png")), image)


if __name__ == "__main__":
    main(*sys.argv[1:])
