"""Which of a model's classes the classes of examples are: by their names, or by their numbers."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from agent.compute.decode.decoder import assign_scores
from agent.compute.manifest import HIDDEN, Model
from agent.compute.tflite.model import TensorSpec
from agent.errors import ModelError
from agent.optimise.data.annotations import ObjectBoxes
from agent.optimise.data.layouts import FoundData
from agent.text import plural

SCORE_HINTS = ("score", "prob", "class", "softmax", "logit")
"""Parts of names of an output that holds scores of classes, if several fit."""
_CLASSIFY = ("classify", "keyword")
"""Decoders of classes: they find the scores themselves."""
_SHOWN = 5


def check_classifier(content: FoundData, path: Path, model: Model, outputs: Sequence[TensorSpec]) -> None:
    """Raise ModelError for examples of classes if the outputs of the model are no scores of classes."""
    decoder, outputs = model.manifest.output.decoder, [one for one in outputs if one.name != HIDDEN]
    if content.classes is None or decoder in _CLASSIFY:
        return
    try:
        if decoder and not (decoder == "raw" and model.manifest.output.labels):
            raise ModelError(f"the decoder {decoder!r} tells none")
        place = assign_scores(0, outputs, {}, SCORE_HINTS)
        if len(outputs) > 1 and not any(hint in outputs[place].name.lower() for hint in SCORE_HINTS):
            raise ModelError(f"there are {len(outputs)}, and no name says which holds some")
    except ModelError as error:
        raise no_classifier(f"{path}: {content.words}", f"the outputs of {model.path}", error) from None


def no_classifier(examples: str, outputs: str, error: ModelError) -> ModelError:
    """Return the error for examples of classes and a model that gives no scores of classes."""
    return ModelError(
        f"{examples}, and {outputs} are no scores of classes ({error}): write a manifest beside the model with "
        "the [output] decoder that reads them, see `vedette guide models`, or give examples without classes: "
        "pictures without class folders, or no `y`"
    )


def matched(
    content: FoundData, path: Path, model: Model, outputs: Sequence[TensorSpec]
) -> tuple[FoundData, tuple[str, ...]]:
    """Give classes the numbers that the model has for them; return doubts, too."""
    labels, names = model.manifest.output.labels, content.names
    numbered = bool(names) and all(name.isdecimal() for name in names)
    numbers = _numbers(names, labels, path) if names and (labels or numbered) else None
    count = len(labels) or (0 if content.objects else _classes_of(outputs))
    convert = _converter(numbers, count, len(names))
    names = labels or (names if numbers is None else ())
    if content.classes is not None:
        classes = convert(content.classes, str(path))
        return replace(content, classes=classes, names=names), tuple(_unseen(classes, count, path))
    objects = tuple(
        ObjectBoxes(convert(one.classes, place), one.boxes)
        for one, place in zip(content.objects or (), content.places, strict=True)
    )
    return replace(content, objects=objects or None, names=names), ()


def _classes_of(outputs: Sequence[TensorSpec]) -> int:
    """Return the number of scores of a classifier, which may have a state for the next exit; 0: not known."""
    outputs = [one for one in outputs if one.name != HIDDEN]
    return outputs[0].shape[-1] if len(outputs) == 1 and len(outputs[0].shape) in (2, 4) else 0


def _unseen(classes: NDArray[np.int64], count: int, path: Path) -> Iterator[str]:
    if (unseen := count - len(np.unique(classes))) > 0:
        yield f"{path}: {unseen} of the model's {count} classes {'has' if unseen == 1 else 'have'} no example"


def _numbers(names: Sequence[str], labels: Sequence[str], path: Path) -> NDArray[np.int64]:
    """Return the model's number of each class by its name, or by the name as a number.

    Raises:
        ModelError: the model knows no such class.
    """
    number_of = class_finder(labels)
    found = [number_of(name) for name in names]
    unknown = [name for name, number in zip(names, found, strict=True) if number is None]
    if not unknown:
        return np.array(found, np.int64)
    if all(name.isdecimal() for name in names):
        return np.array([int(name) for name in names], np.int64)
    others = f" (nor {len(unknown) - 1} more)" if len(unknown) > 1 else ""
    near = difflib.get_close_matches(unknown[0], labels, 1)
    hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(map(repr, labels[:_SHOWN]))} …"
    raise ModelError(f"{path}: the model has no class {unknown[0]!r}{others}; {hint}")


def class_finder(labels: Sequence[str]) -> Callable[[str], int | None]:
    """Return a function from the name of a class to its number, or to None if there is none.

    A name may be written in another case, and with dashes and underscores for spaces.
    """
    exact = {label: number for number, label in reversed(list(enumerate(labels)))}
    known = {_folded(label): number for number, label in reversed(list(enumerate(labels)))}
    return lambda name: exact.get(name, known.get(_folded(name)))


def _folded(name: str) -> str:
    return name.casefold().replace("_", " ").replace("-", " ").strip()


def _converter(
    numbers: NDArray[np.int64] | None, count: int, named: int
) -> Callable[[NDArray[np.int64], str], NDArray[np.int64]]:
    """Return a function that converts the data's class numbers to the model's, and checks them."""

    def convert(classes: NDArray[np.int64], where: str) -> NDArray[np.int64]:
        known = named or count
        if len(classes) and known and not 0 <= classes.min() <= classes.max() < known:
            wrong = classes[(classes < 0) | (classes >= known)][0]
            raise ModelError(f"{where}: class {wrong} is out of range: expected 0 to {known - 1}")
        found = classes if numbers is None else numbers[classes]
        if len(found) and count and found.max() >= count:
            has = plural(count, "class", "classes")
            raise ModelError(f"{where}: class {found.max()} is out of range: the model has {has}")
        return found

    return convert
