"""Read clips in the layout of MOTChallenge: pictures, what is to be tracked, and published detections.

    SEQUENCE/seqinfo.ini      imWidth, imHeight, frameRate, seqLength and imDir, in [Sequence]
    SEQUENCE/img1/000001.jpg  the pictures; not needed for published detections
    SEQUENCE/gt/gt.txt        lines `frame,id,left,top,width,height,counts,…`, frames from 1, pixels; also gt.txt
    SEQUENCE/det/det.txt      lines `frame,-1,left,top,width,height,score,…`; also det.txt

A line of gt.txt whose `counts` is 0 is left out, as the benchmarks do. A folder may hold several sequences.
Source: Leal-Taixé et al., MOTChallenge 2015, https://arxiv.org/abs/1504.01942; Milan et al., MOT16,
https://arxiv.org/abs/1603.00831
"""

from __future__ import annotations

import configparser
import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from agent.capture.local import SUFFIXES, read_picture
from agent.errors import ModelError
from agent.optimise.data.annotations import DataFile
from agent.text import plain, plural
from agent.types import Image

PUBLISHED = "det.txt"
"""In place of a model: each sequence's published detections."""
_INFO = "seqinfo.ini"
_FIELDS = 7


class MotRows(NamedTuple):
    """Boxes of a sequence, sorted by frame.

    Attributes:
        frames: from 1, int64 [n].
        ids: of the objects, int64 [n]; -1: not known.
        boxes: x0, y0, x1, y1, fractions of the picture, float64 [n, 4].
        scores: float64 [n].
    """

    frames: NDArray[np.int64]
    ids: NDArray[np.int64]
    boxes: NDArray[np.float64]
    scores: NDArray[np.float64]

    def at(self, frame: int) -> MotRows:
        """Return the boxes of one frame."""
        part = slice(*np.searchsorted(self.frames, (frame, frame + 1)))
        return MotRows(self.frames[part], self.ids[part], self.boxes[part], self.scores[part])


class MotSequence(Struct, frozen=True):
    """A clip.

    Attributes:
        name: of its folder.
        path: of its folder.
        width, height: of its pictures, pixels.
        fps: pictures per second.
        frames: number of pictures.
        truth: what is to be tracked.
        pictures: files by their frame; empty: there are none.
    """

    name: str
    path: Path
    width: int
    height: int
    fps: float
    frames: int
    truth: MotRows
    pictures: tuple[Path, ...] = ()

    def images(self, every: int) -> Iterator[tuple[int, Image]]:
        """Yield each so manieth picture with its frame, H×W×3 uint8 BGR.

        Raises:
            ModelError: there are none, or one cannot be read.
        """
        if not self.pictures:
            raise ModelError(
                f"{self.path}: has no pictures, which a model needs: {PUBLISHED} in place of the model takes the "
                "published detections"
            )
        for number in range(0, len(self.pictures), every):
            image = read_picture(self.pictures[number])
            if image is None:
                raise ModelError(f"{self.pictures[number]}: cannot be decoded as a picture: save it again")
            yield number + 1, image


def holds_clips(path: Path) -> bool:
    """Return True if a path is a sequence, or a folder of sequences."""
    return (path / _INFO).is_file() or any(path.glob(f"*/{_INFO}"))


def read_clips(path: Path) -> tuple[MotSequence, ...]:
    """Read a sequence, or those of a folder.

    Raises:
        ModelError: there is none, or a file of one is missing or wrong; a line is named by its number.
    """
    folders = [path] if (path / _INFO).is_file() else sorted(one.parent for one in path.glob(f"*/{_INFO}"))
    if not folders:
        raise ModelError(f"{path}: no {_INFO} in it or in a folder of it; expected sequences of MOTChallenge")
    return tuple(map(_read_sequence, folders))


def read_published(sequence: MotSequence) -> MotRows:
    """Read the published detections of a sequence. Raises ModelError if there are none, or a line is wrong."""
    file = _first(sequence.path, f"det/{PUBLISHED}", PUBLISHED)
    return _rows(file, sequence.width, sequence.height, are_truth=False)


def _first(folder: Path, *names: str) -> Path:
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise ModelError(f"{folder}: no {names[0]} in it")


def _read_sequence(folder: Path) -> MotSequence:
    file, parser = folder / _INFO, configparser.ConfigParser(interpolation=None)
    try:
        parser.read_string(DataFile(file).text())
        width, height, frames = (parser.getint("Sequence", key) for key in ("imWidth", "imHeight", "seqLength"))
        fps = parser.getfloat("Sequence", "frameRate")
    except (configparser.Error, ValueError) as error:
        raise ModelError(f"{file}: cannot be read as [Sequence] with its keys: {plain(str(error))}") from None
    if not min(width, height, frames, fps) > 0:
        raise ModelError(f"{file}: imWidth, imHeight, seqLength and frameRate: expected numbers above 0")
    truth = _rows(_first(folder, "gt/gt.txt", "gt.txt"), width, height, are_truth=True)
    pictures = folder / parser.get("Sequence", "imDir", fallback="img1")
    found = sorted(one for one in pictures.glob("*") if one.suffix.lower() in SUFFIXES)
    if found and len(found) != frames:
        expected = f"{_INFO} says {plural(frames, 'picture')}"
        raise ModelError(f"{pictures}: has {len(found)}, and {expected}: one of them is incomplete")
    return MotSequence(folder.name, folder, width, height, fps, frames, truth, tuple(found))


def _rows(file: Path, width: int, height: int, *, are_truth: bool) -> MotRows:
    """Read the lines of a file, sorted by their frames."""
    lines = DataFile(file).text().splitlines()
    rows = [_row(line, f"{file}:{number}") for number, line in enumerate(lines, 1) if line.strip()]
    values = np.array(rows, np.float64).reshape(-1, _FIELDS)
    if are_truth:
        values = values[values[:, 6] != 0]
        _check_twice(file, values)
        if not len(values):
            raise ModelError(f"{file}: nothing in it is to be tracked")
    values = values[np.argsort(values[:, 0], kind="stable")]
    boxes = values[:, 2:6] / (width, height, width, height)
    boxes[:, 2:] += boxes[:, :2]
    return MotRows(values[:, 0].astype(np.int64), values[:, 1].astype(np.int64), boxes, values[:, 6])


def _row(line: str, where: str) -> list[float]:
    try:
        values = [float(field) for field in line.split(",")[:_FIELDS]]
    except ValueError:
        values = []
    is_whole = len(values) == _FIELDS and all(map(math.isfinite, values))
    if not is_whole or values[0] < 1 or min(values[4:6]) < 0:
        raise ModelError(
            f"{where}: expected `frame,id,left,top,width,height,…`, frames from 1; found {plain(line)[:60]}"
        )
    return values


def _check_twice(file: Path, values: NDArray[np.float64]) -> None:
    pairs, counts = np.unique(values[:, :2], axis=0, return_counts=True)
    if len(twice := pairs[counts > 1]):
        frame, ident = map(int, twice[0])
        raise ModelError(f"{file}: object {ident} is in frame {frame} twice: remove one of the lines")
