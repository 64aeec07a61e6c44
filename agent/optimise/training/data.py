"""Read examples with classes for a network that is not trained yet."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import nn

from agent.compute.decode.completion import PROBABILITIES, facts_of
from agent.compute.manifest import InputManifest, Manifest, Model, OutputManifest
from agent.compute.tflite.read import read_modelfile
from agent.errors import ModelError
from agent.optimise.data import Examples, read_examples
from agent.optimise.data.layouts import FoundData, read_data
from agent.optimise.graph.from_torch import float_tflite
from agent.text import plain, plural

_MOST, _SHOWN = 10_000, 5
Shape = tuple[int, int, int]
"""Height, width, channels."""
PREPARATION = InputManifest(mean=(128.0,) * 3, std=(64.0,) * 3)
"""One integer mean and one standard deviation: as INT8 the normalisation costs nothing."""
USUAL_SHAPE: Shape = (128, 128, 3)


def read_class_examples(
    path: Path, shape: Shape | None, preparation: InputManifest, *, limit: int = 0, source: str = "network"
) -> tuple[Examples, int]:
    """Return all examples of classes, and the number of classes.

    Args:
        path: see `agent.optimise.data`.
        shape: of one input; None: that of the pictures in an array, else `usual_shape`.
        preparation: of pictures; real values are none if it has neither mean nor standard deviation.
        limit: use so many; 0: all.
        source: of the network, for messages.

    Raises:
        ModelError: they cannot be read, have no classes, or do not fit the shape.
    """
    content = read_data(path)
    if content.classes is None:
        raise ModelError(
            f"{path}: {content.words}: training needs two classes or more: a sub-folder with pictures for each, "
            "or `y` in a .npz" + ("; `detector` learns boxes" if content.objects is not None else "")
        )
    if len(set(content.names)) < len(content.names):
        raise ModelError(f"{path}: two classes have the same name")
    classes, shape = _count(path, content.names, content.classes), shape or usual_shape(content)
    probe = _probe(shape, classes, preparation.mean[: shape[2]], preparation.std[: shape[2]])
    if preparation == InputManifest() and not content.has_pictures:
        preparation = InputManifest(pixels=False)
    manifest = Manifest(name="network", output=OutputManifest(labels=content.names), input=preparation)
    model = Model(probe, hashlib.sha256(probe).hexdigest(), manifest, source)
    examples = read_examples(path, model, limit=limit or None)
    if len(np.unique(np.asarray(examples.labels))) < 2:
        raise ModelError(f"{examples.description}: all of one class: training needs two classes or more")
    examples.remarks += tuple(f"{path}: {line}" for line in _in_two_classes(examples))
    return examples, classes


def _in_two_classes(examples: Examples) -> Iterator[str]:
    """Yield a remark on examples that are the same and have different labels."""
    labels, known = np.asarray(examples.labels), dict[str, int]()
    firsts = [known.setdefault(examples.digest(index), index) for index in range(len(examples))]
    if found := [(first, index) for index, first in enumerate(firsts) if labels[first] != labels[index]]:
        one, other = (examples.name(index) for index in found[0])
        more = f" (and {plural(len(found) - 1, 'other pair')})" if len(found) > 1 else ""
        yield f"{one} and {other} are the same, in two classes{more}"


def untaught(seen: NDArray[np.int64], held: NDArray[np.int64], names: Sequence[str]) -> tuple[str, ...]:
    """Return a remark on the classes whose examples are all held out.

    Args:
        seen: labels of what is learned from.
        held: those of the others.
        names: of all classes.
    """
    missing = [plain(names[number]) for number in np.setdiff1d(held, seen)]
    if not missing:
        return ()
    more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
    return (
        f"no example of {', '.join(missing[:_SHOWN])}{more} to learn from, all are held out: give more, or a "
        "smaller `held_out` in [data] of the recipe",
    )


def usual_shape(content: FoundData) -> Shape:
    """Return the shape of pictures in an array, and else 128×128×3."""
    if isinstance(content.pictures, np.ndarray) and content.pictures.ndim == 4:
        height, width = content.pictures.shape[1:3]
        return int(height), int(width), 3
    return USUAL_SHAPE


def _count(path: Path, names: Sequence[str], classes: NDArray[np.int64]) -> int:
    """Return the number of classes: that of their names, or else the largest number and one."""
    found = len(names) or int(classes.max(initial=-1)) + 1
    if not 1 <= found <= _MOST:
        raise ModelError(f"{path}: classes are numbered from 0 to {found - 1}: expected at most {_MOST} classes")
    return found


@lru_cache(maxsize=4)
def _probe(shape: Shape, classes: int, mean: tuple[float, ...], std: tuple[float, ...]) -> bytes:
    """Return the smallest model with this input and output; torch takes a while to trace one."""
    net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(shape[2], classes))
    return float_tflite(net, shape, mean=mean, std=std)


def check_classes(examples: Examples, seen: Examples) -> None:
    """Check that a training can tell classes apart.

    Args:
        examples: all, for the message.
        seen: those that it learns from.

    Raises:
        ModelError: they are all of one class.
    """
    if len(np.unique(np.asarray(examples.labels))) < 2:
        raise ModelError(f"{examples.description}: all of one class: training needs two classes or more")
    if len(np.unique(np.asarray(seen.labels))) < 2:
        raise ModelError(
            f"{examples.description}: the {plural(len(seen), 'example')} to learn from are all of one class: "
            "give more of the others, or a smaller `held_out` in [data] of the recipe"
        )


def check_logits(content: bytes, network: str) -> None:
    """Check that a classifier which is to be trained gives logits.

    The loss takes a softmax, and so does the decoder of the manifest that a training writes.

    Args:
        content: of its file.
        network: for the message.

    Raises:
        ModelError: it ends in a softmax or a sigmoid.
    """
    if facts_of(content, read_modelfile(content)).endings[0] in PROBABILITIES:
        raise ModelError(
            f"{network}: ends in a softmax or a sigmoid: give the network without it; training and the board "
            "take the softmax themselves"
        )
