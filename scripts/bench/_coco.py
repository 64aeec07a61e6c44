"""64 pictures of COCO with their boxes: as they are, and mirrored."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from msgspec import Struct

from agent.types import Image

ARCHIVE = "coco64_dev.tar"


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
    """Return the picture with left and right exchanged."""
    boxes = picture.boxes.copy()
    boxes[:, 0] = 1 - boxes[:, 0]
    return Picture(np.ascontiguousarray(picture.image[:, ::-1]), picture.classes, boxes)
