"""Pictures put through every size of a model, so that it can be learned when the answer of a small one will do.

Nobody has to label them: right is what the largest size says.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from agent.capture.images import SUFFIXES, read_picture
from agent.compute.cascade.resolution import ResolutionCascade, detection_f1
from agent.compute.infer.backends import open_for_command
from agent.compute.infer.session import SessionOptions
from agent.compute.manifest import Variant
from agent.compute.tflite.model import multiply_adds
from agent.compute.tflite.read import read_modelfile
from agent.config.stream import StreamConfig
from agent.errors import ModelError, SourceError
from agent.models.library import open_whole_model
from agent.optimise.calibrate.search import Answers, Point, point, search
from agent.types import WHOLE, Array, Frame, Image

_FEWEST = 2
"""Pictures: from one half it is learned, and on the other it is tried."""
_BLOCK = 16
"""Pictures that lie beside each other may show the same, so halves are made of blocks."""


class ResolutionResult(Struct, frozen=True):
    """What was learned about one size that is smaller than the largest.

    Attributes:
        variant: its name.
        cost: its multiply-adds, as a share of those of the largest.
        alone: agreement with the largest when it always answers, 0..1.
        learned: confidence from which its answers are taken, and agreement and shares when it looks first and the
            largest where it is not sure.
        checked: the same on half of the pictures, with what was learned from the others: what to expect.
    """

    variant: str
    cost: float
    alone: float
    learned: Point
    checked: Point


class ResolutionResults(Struct, frozen=True):
    """What was learned.

    Attributes:
        multiply_adds: by name of the variant.
        sizes: all but the largest, smallest first.
        pictures: how many.
    """

    multiply_adds: dict[str, int]
    sizes: tuple[ResolutionResult, ...]
    pictures: int

    @property
    def lost(self) -> float:
        """Agreement that is given away on pictures that nothing was learned from, by the size that loses most."""
        return max(1.0 - size.checked.accuracy for size in self.sizes)

    @property
    def keys(self) -> dict[str, dict[str, float]]:
        """Keys for the manifest, by variant."""
        keys: dict[str, dict[str, float]] = {name: {"multiply_adds": n} for name, n in self.multiply_adds.items()}
        for size in self.sizes:
            keys[size.variant]["confidence"] = round(size.learned.thresholds[0], 5)
        return keys


def pictures(folder: Path) -> list[Path]:
    """The pictures in a folder and in the folders in it, but for those whose names begin with a dot.

    Raises:
        ModelError: there is no such folder, or there are too few.
    """
    if not folder.is_dir():
        raise ModelError(f"{folder}: no such folder; expected one with pictures such as the camera will see")
    found = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    if len(found) < _FEWEST:
        kinds = ", ".join(sorted(SUFFIXES))
        raise ModelError(
            f"{folder}: too few pictures ({kinds}) to learn from: {len(found)}; expected at least {_FEWEST}"
        )
    return found


class ResolutionCalibrator:
    """A model of pictures with all its sizes."""

    def __init__(self, model: str) -> None:
        """Open the model.

        Raises:
            ModelError: it cannot be opened, or has no sizes.
        """
        whole = open_whole_model(model)
        variants = whole.manifest.variants
        if len(variants) < 2 or any(variant.after for variant in variants):
            raise ModelError(f"{model}: thresholds can be learned for models of pictures with several sizes only")
        file = read_modelfile(whole.content)
        self.multiply_adds = {
            variant.name: variant.multiply_adds or multiply_adds(file, variant.signature)
            for variant in variants[::-1]
        }
        # Whatever was learned before must not decide what is learned from.
        blank = replace(whole, manifest=replace(whole.manifest, variants=tuple(map(_blank, variants))))
        self._session = open_for_command(blank, "cpu", SessionOptions(threads=1))
        self._sizes = ResolutionCascade(self._session, blank, StreamConfig("dir:", model))

    def look(self, image: Image) -> tuple[list[float], list[float]]:
        """How sure each size is of what it sees in a BGR picture, and how far it agrees with the largest."""
        frame = Frame(image, "", 0, time.monotonic_ns(), datetime.now(UTC))
        looks = self._sizes.every(frame, WHOLE)
        largest = looks[-1][0].detections
        return [sure for _, sure in looks], [detection_f1(look.detections, largest) for look, _ in looks]


def learn(
    watcher: ResolutionCalibrator,
    paths: list[Path],
    loss: float,
    progress: Callable[[int], None] = lambda _: None,
) -> ResolutionResults:
    """Learn when the answer of a size will do.

    Args:
        watcher: the model.
        paths: of the pictures.
        loss: agreement with the largest size that may be given away, 0..1.
        progress: is told how many pictures have been seen.

    Raises:
        ModelError: a picture cannot be read.
    """
    looks = []
    for number, path in enumerate(paths):
        try:
            image = read_picture(path)
        except SourceError as error:
            raise ModelError(f"{path.parent}: {error}") from None
        if image is None:
            raise ModelError(f"{path}: is no picture that can be decoded")
        looks.append(watcher.look(image))
        progress(number + 1)
    costs = np.maximum(1.0, list(watcher.multiply_adds.values()))
    sure, agrees = np.array(looks).transpose(1, 0, 2)
    lessons = tuple(
        _lesson(name, sure[:, [k, -1]], agrees[:, [k, -1]], costs[[k, -1]], loss)
        for k, name in enumerate(list(watcher.multiply_adds)[:-1])
    )
    return ResolutionResults(watcher.multiply_adds, lessons, len(paths))


def _lesson(variant: str, sure: Array, agrees: Array, costs: Array, loss: float) -> ResolutionResult:
    """Of one size and the largest."""
    known = np.ones(len(sure), bool)
    dear, half = costs.tolist(), np.arange(len(sure)) // max(1, min(_BLOCK, len(sure) // 4)) % 2 == 0
    found = search(Answers(sure, agrees, known), dear, loss, (1.0, 1.0))
    other = search(Answers(sure[half], agrees[half], known[half]), dear, loss, (1.0, 1.0)).chosen
    checked = point(Answers(sure[~half], agrees[~half], known[~half]), dear, other.thresholds)
    # A point's cost is a share of both sizes.
    both = (dear[0] + dear[1]) / dear[1]
    learned, checked = (replace(one, cost=one.cost * both) for one in (found.chosen, checked))
    return ResolutionResult(variant, dear[0] / dear[1], found.alone[0], learned, checked)


def _blank(variant: Variant) -> Variant:
    return replace(variant, confidence=1.0, complexity=1.0)
