"""The calibration pictures: every picture that the list of checksums names, and every 40th frame of its clip."""

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

_PICTURES = frozenset({".jpg", ".png"})
_CLIPS = frozenset({".avi"})
_FRAME_STEP = 40

Picture = NDArray[np.uint8]


def read_pictures(checksums: Path, folder: Path) -> list[Picture]:
    """BGR pictures, in order, of the files in `folder` that `checksums`, in the form of sha256sum, lists."""
    pictures: list[Picture] = []
    for line in checksums.read_text().splitlines():
        path = folder / line.split(maxsplit=1)[1]
        if path.suffix in _PICTURES:
            picture = cv2.imread(str(path))
            assert picture is not None, path
            pictures.append(picture.astype(np.uint8))
        elif path.suffix in _CLIPS:
            pictures.extend(_frames(path))
    return pictures


def _frames(path: Path) -> Iterator[Picture]:
    clip, number = cv2.VideoCapture(str(path)), 0
    while clip.grab():
        if number % _FRAME_STEP == 0:
            yield clip.retrieve()[1].astype(np.uint8)
        number += 1
