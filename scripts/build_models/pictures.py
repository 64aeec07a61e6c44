"""The calibration pictures: every picture that the list of checksums names, and every 40th frame of its clip."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import overload

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


class Resized(Sequence[Picture]):
    """Pictures, each resized when it is asked for."""

    def __init__(self, pictures: Sequence[Picture], size: int) -> None:
        self._pictures = pictures
        self._size = (size, size)

    def __len__(self) -> int:
        return len(self._pictures)

    @overload
    def __getitem__(self, index: int) -> Picture: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Picture]: ...

    def __getitem__(self, index: int | slice) -> Picture | Sequence[Picture]:
        """One picture of the given size [size, size, 3], or several."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return cv2.resize(self._pictures[index], self._size).astype(np.uint8, copy=False)
