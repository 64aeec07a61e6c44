"""CIFAR-10 (as JPEG) as arrays, decoded once into build/."""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).parent.parent.parent.parent
BUILD = ROOT / "build" / "optimise"


class Dataset(NamedTuple):
    """Pictures uint8 [n, h, w, 3] and labels int64 [n], for training and for testing."""

    pictures: NDArray[Any]
    labels: NDArray[Any]
    test_pictures: NDArray[Any]
    test_labels: NDArray[Any]

    @property
    def test(self) -> tuple[NDArray[Any], NDArray[Any]]:
        return self.test_pictures, self.test_labels


def cifar(data: Path) -> Dataset:
    """50,000 training and 5,000 test pictures of 32×32, from `cifar10_dev.npz` in the data folder."""
    return _cached(BUILD / "cifar.npz", lambda: _decode(data / "cifar10_dev.npz"))


def _decode(path: Path) -> Dataset:
    if not path.is_file():
        raise SystemExit(f"{path}: no such file; give its folder by --data or $VEDETTE_DATA")
    with np.load(path) as archive:
        halves = [(archive[f"{half}_jpeg"], archive[f"{half}_offsets"]) for half in ("train", "test")]
        labels = [archive[f"{half}_labels"].astype(np.int64) for half in ("train", "test")]
    pictures = [
        np.stack([_picture(content[start:end]) for start, end in pairwise(ends)]) for content, ends in halves
    ]
    return Dataset(pictures[0], labels[0], pictures[1], labels[1])


def _picture(content: NDArray[Any]) -> NDArray[Any]:
    picture = cv2.imdecode(content, cv2.IMREAD_COLOR)
    assert picture is not None
    return cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)


def _cached(path: Path, make: Any) -> Dataset:
    if path.is_file():
        with np.load(path) as archive:
            return Dataset(*(archive[name] for name in Dataset._fields))
    made: Dataset = make()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{os.getpid()}.npz")
    np.savez(partial, **made._asdict())
    partial.replace(path)
    return made
