"""Looks at pictures with a detector, tile by tile, for `agent.features.screening.rules`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import NamedTuple

import cv2
import msgspec
import numpy as np

from agent.compute.infer.backends import open_for_command
from agent.compute.manifest import Model
from agent.compute.vision import VideoPerception
from agent.config import DecodeConfig, GateConfig, StreamConfig
from agent.errors import ModelError
from agent.features.screening.rules import PictureLimits, PictureQuality, joined, tiles_of
from agent.types import Detection, Frame, Image

LEAST = 0.004
"""Score below which nothing is of use: one step of an INT8 output."""
_MOST = 300
_AT = datetime(2000, 1, 1, tzinfo=UTC)


class Look(NamedTuple):
    """What a picture has.

    Attributes:
        found: detections from `LEAST` on, the strongest first, in fractions of the picture.
        quality: of the picture.
        tiles: number of tiles that were looked at.
    """

    found: list[Detection]
    quality: PictureQuality
    tiles: int


class Screener:
    """A detector that looks for one label. For one thread; `open_screener` makes it."""

    def __init__(self, perception: VideoPerception, label: str) -> None:
        self._perception, self._label = perception, label

    def look(self, picture: Image, limits: PictureLimits, overlap: float) -> Look:
        """Look at a picture, H×W×3 uint8 BGR.

        Args:
            picture: to look at.
            limits: with the size of a tile.
            overlap: of two tiles, as a share of their sides.

        Raises:
            BackendError: the inference fails.
        """
        height, width = picture.shape[:2]
        frame = Frame(picture, "screening", 0, 0, _AT)
        tiles = tiles_of(width, height, limits, overlap)
        found = [(tile, self._perception.infer_crop(frame, tile).detections) for tile in tiles]
        return Look(joined(found, overlap), quality_of(picture), len(tiles))


@contextmanager
def open_screener(model: Model, label: str, *, threads: int = 1) -> Iterator[Screener]:
    """Open a detector on the CPU.

    Args:
        model: whose decoder gives boxes.
        label: what is looked for.
        threads: of the CPU.

    Raises:
        ModelError: it cannot be opened, takes sound, or does not know the label.
    """
    labels = model.manifest.output.labels
    if model.manifest.audio is not None or model.manifest.gives_numbers:
        raise ModelError(f"{model.path}: is no detector: screening needs one that gives boxes")
    if labels and label not in labels:
        raise ModelError(f"{model.path}: has no label {label!r}; it has {', '.join(labels)}")
    config = StreamConfig(
        "test:",
        model.path,
        backend="cpu",
        threads=threads,
        gate=GateConfig(motion=False),
        decode=DecodeConfig(score_threshold=LEAST, labels=(label,), max_detections=_MOST),
    )
    perception = VideoPerception("screening", config, model, open_for_command)
    try:
        yield Screener(perception, label)
    finally:
        perception.close()


def manifest_sha256(model: Model) -> str:
    """Return the SHA-256 of how a model's pictures are prepared and its outputs decoded."""
    manifest = model.manifest
    content = msgspec.json.encode([manifest.input, manifest.output, manifest.variants], order="deterministic")
    return hashlib.sha256(content).hexdigest()


def quality_of(picture: Image) -> PictureQuality:
    """Return how a picture, H×W×3 uint8 BGR, looks.

    The sharpness is that of Pech-Pacheco et al., Diatom autofocusing in brightfield microscopy (ICPR 2000),
    divided by the variance of the picture, so that contrast counts less.
    """
    grey = cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY)
    colour = float(np.mean(picture.max(axis=2) - picture.min(axis=2)))
    mean, deviation = (float(one[0, 0]) for one in cv2.meanStdDev(grey))
    sharp = float(np.square(cv2.meanStdDev(cv2.Laplacian(grey, cv2.CV_32F))[1][0, 0]))
    return PictureQuality(sharp / (deviation**2 + 1.0), mean, colour)
