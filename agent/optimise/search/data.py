"""Examples of a search, in three parts: for training, for the comparison, and for the figures of the report."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from agent.compute.manifest import InputManifest, Manifest, OutputManifest
from agent.optimise.classifier.data import check_classes, read_class_examples, untaught
from agent.optimise.data import Examples
from agent.optimise.pruning.file import training_inputs
from agent.optimise.recipe import Recipe
from agent.optimise.source import learned_sample
from agent.optimise.train import Pictures
from agent.optimise.tune import split


class SearchData(Struct, frozen=True):
    """Examples with classes, in parts.

    Attributes:
        seen: for training and for the ranges of INT8.
        compared: by which candidates are compared.
        unseen: which decide nothing.
        pictures: of `seen`, [n, height, width, channels]: uint8, or float32 of what is no picture.
        compared_pictures: of `compared`.
        manifest: of every candidate.
        learned: digests of `seen`, see `agent.optimise.source.learned_sample`.
        fingerprint: of all examples.
        description: of where they are from.
    """

    seen: Examples
    compared: Examples
    unseen: Examples
    pictures: Pictures
    compared_pictures: Pictures
    manifest: Manifest
    learned: tuple[str, ...]
    fingerprint: str
    description: str

    @property
    def manifest_keys(self) -> dict[str, Any]:
        """The keys of the manifest of a candidate's file."""
        keys = msgspec.to_builtins(self.manifest)
        chosen = {"input": ("order", "mean", "std", "pixels"), "output": ("decoder", "labels")}
        found = {table: {name: keys[table][name] for name in names} for table, names in chosen.items()}
        if self.manifest.input.pixels:
            del found["input"]["pixels"]
        return found

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
        ModelError: they cannot be read, have no classes or too few to learn from, or do not fit the shape.
    """
    preparation = InputManifest(mean=(recipe.search.mean,) * 3, std=(recipe.search.std,) * 3)
    shape, limit, source = recipe.search.shape, recipe.data.limit, recipe.search.space
    examples, classes = read_class_examples(path, shape, preparation, limit=limit, source=source)
    if not examples.are_pixels:
        preparation = InputManifest(pixels=False)
    seen, held = split(examples, recipe.data.held_out)
    check_classes(examples, seen)
    compared, unseen = split(held, 0.5)
    names = tuple(examples.names) or tuple(map(str, range(classes)))
    seen.remarks += untaught(np.asarray(seen.labels), np.asarray(held.labels), names)
    inputs, labels = training_inputs(seen, preparation), np.ascontiguousarray(examples.labels)
    return SearchData(
        seen=seen,
        compared=compared,
        unseen=unseen,
        pictures=inputs,
        compared_pictures=training_inputs(compared, preparation),
        manifest=Manifest("candidate", OutputManifest("classify", names), preparation),
        learned=learned_sample(seen),
        fingerprint=f"{len(examples)}, CRC {zlib.crc32(inputs.data, zlib.crc32(labels.data)):08x}",
        description=examples.description,
    )
