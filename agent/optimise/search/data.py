"""Examples of a search, in three parts: for training, for the comparison, and for the figures of the report."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray
from torch import nn

from agent.compute.manifest import InputManifest, Manifest, Model, OutputManifest
from agent.errors import ModelError
from agent.optimise.data import Examples, read_examples
from agent.optimise.data.layouts import read_data
from agent.optimise.graph.from_torch import float_tflite
from agent.optimise.pruning.file import pixels
from agent.optimise.recipe import Recipe
from agent.optimise.tune import split


class SearchData(Struct, frozen=True):
    """Examples with classes, in parts.

    Attributes:
        seen: for training and for the ranges of INT8.
        compared: by which candidates are compared.
        unseen: which decide nothing.
        pictures: of `seen`, uint8 [n, height, width, channels].
        compared_pictures: of `compared`.
        manifest: of every candidate.
        fingerprint: of all examples.
        description: of where they are from.
    """

    seen: Examples
    compared: Examples
    unseen: Examples
    pictures: NDArray[np.uint8]
    compared_pictures: NDArray[np.uint8]
    manifest: Manifest
    fingerprint: str
    description: str

    @property
    def training(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """Pictures and labels of `seen`."""
        assert self.seen.labels is not None
        return self.pictures, self.seen.labels

    @property
    def test(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """Pictures and labels of `compared`."""
        assert self.compared.labels is not None
        return self.compared_pictures, self.compared.labels


def read_search_data(path: Path, recipe: Recipe) -> SearchData:
    """Read the examples of a search.

    Args:
        path: see `agent.optimise.data`.
        recipe: its sections `[search]` and `[data]` count.

    Raises:
        ModelError: they cannot be read, have no classes, or do not fit the shape.
    """
    preparation = InputManifest(mean=(recipe.search.mean,) * 3, std=(recipe.search.std,) * 3)
    examples, classes = _examples(path, recipe, preparation)
    seen, held = split(examples, recipe.data.held_out)
    compared, unseen = split(held, 0.5)
    names = tuple(examples.names) or tuple(map(str, range(classes)))
    pictures, labels = pixels(seen, preparation), np.ascontiguousarray(examples.labels)
    return SearchData(
        seen=seen,
        compared=compared,
        unseen=unseen,
        pictures=pictures,
        compared_pictures=pixels(compared, preparation),
        manifest=Manifest("candidate", OutputManifest("classify", names), preparation),
        fingerprint=f"{len(examples)}, CRC {zlib.crc32(pictures.data, zlib.crc32(labels.data)):08x}",
        description=examples.description,
    )


def _examples(path: Path, recipe: Recipe, preparation: InputManifest) -> tuple[Examples, int]:
    """Return all examples, and the number of classes."""
    content = read_data(path)
    if content.classes is None:
        raise ModelError(f"{path}: a search trains, and needs examples with classes")
    classes = _count(content.names, content.classes)
    probe = _probe(recipe, classes)
    manifest = Manifest(name="candidate", input=preparation)
    model = Model(probe, hashlib.sha256(probe).hexdigest(), manifest, recipe.search.space)
    return read_examples(path, model, limit=recipe.data.limit or None), classes


def _count(names: Sequence[str], classes: NDArray[np.int64]) -> int:
    if names and not all(name.isdecimal() for name in names):
        return len(names)
    return max([int(classes.max()), *map(int, names)]) + 1


def _probe(recipe: Recipe, classes: int) -> bytes:
    """Return the smallest model with the candidates' input and output."""
    shape = recipe.search.shape
    net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(shape[2], classes))
    return float_tflite(net, shape, mean=recipe.search.mean, std=recipe.search.std)
