"""Calibration pictures of people: pictures in which the detector finds some, and the upper part of each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from pictures import Picture, read_pictures

from agent.compute.decode import build_decoder
from agent.compute.infer.image_input import ImageInput
from agent.compute.infer.litert import CpuBackend
from agent.compute.infer.session import Session, SessionOptions
from agent.config import DecodeConfig
from agent.models.library import open_model
from agent.types import Box

_LISTS = ("pictures.sha256", "people.sha256")
_SIDE, _WIDTH = 256, 320
"""Side of a crop, and width of a whole picture, pixels."""
_LEAST = 60
"""Least height of a person, pixels."""
_SCORE = 0.45


class People:
    """Finds people with the bundled detector."""

    def __init__(self) -> None:
        """Open the detector."""
        model = open_model("nanodet", "416")
        self._session: Session = CpuBackend().open(model, SessionOptions(threads=1))
        self._input = ImageInput(self._session.inputs[0], model.manifest.input)
        config = DecodeConfig(score_threshold=_SCORE, labels=("person",))
        self._decode = build_decoder(model.manifest, self._session.inputs, self._session.outputs, config)

    def find(self, picture: Picture) -> list[Box]:
        """Return the boxes of the people in a BGR picture, as fractions of it."""
        self._input.fill(self._session.input(0), picture, "bgr")
        self._session.invoke()
        outputs = [self._session.output(index) for index in range(len(self._session.outputs))]
        return [one.box for one in self._decode(outputs) if one.box is not None]


def square(picture: NDArray[Any], box: Box, grow: float) -> NDArray[Any]:
    """Return the square around a box, black outside the picture.

    Args:
        picture: BGR.
        box: in fractions of it.
        grow: side of the square, relative to the box's longer one.
    """
    height, width = picture.shape[:2]
    x0, y0, x1, y1 = box[0] * width, box[1] * height, box[2] * width, box[3] * height
    side = max(16, round(max(x1 - x0, y1 - y0) * grow))
    left, top = round((x0 + x1 - side) / 2), round((y0 + y1 - side) / 2)
    found = np.zeros((side, side, 3), np.uint8)
    a, b, c, d = max(0, left), max(0, top), min(width, left + side), min(height, top + side)
    found[b - top : d - top, a - left : c - left] = picture[b:d, a:c]
    return found


def upper(box: Box, width: int, height: int) -> Box:
    """Return the upper part of a person's box: as high as it is wide."""
    return box[0], box[1], box[2], box[1] + min((box[2] - box[0]) * width / height, box[3] - box[1])


def write_people(lists: Path, inputs: Path, folder: Path) -> Path:
    """Write the calibration pictures into a folder, and return it.

    Args:
        lists: folder of the lists of checksums.
        inputs: folder of the files that they name.
        folder: to write.
    """
    folder.mkdir(parents=True, exist_ok=True)
    people = People()
    pictures = [one for name in _LISTS for one in read_pictures(lists / name, inputs)]
    for number, picture in enumerate(pictures):
        height, width = picture.shape[:2]
        large = [box for box in people.find(picture) if (box[3] - box[1]) * height >= _LEAST]
        if large:
            whole = cv2.resize(picture, (_WIDTH, max(1, _WIDTH * height // width)))
            cv2.imwrite(str(folder / f"{number:03}.png"), whole)
        for place, box in enumerate(large):
            crop = square(picture, upper(box, width, height), 1.2)
            small = cv2.resize(crop, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)
            cv2.imwrite(str(folder / f"{number:03}-{place}.png"), small)
    return folder
