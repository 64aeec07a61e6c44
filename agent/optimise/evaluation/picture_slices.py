"""What pictures add to slices: their folder and brightness, and the size of the objects in them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from agent.errors import ModelError
from agent.optimise.data import Examples
from agent.optimise.evaluation.operating import assigned
from agent.optimise.evaluation.slices import SlicedExample, brightness_of, folder_of, size_of
from agent.types import Detection


class _Measured(NamedTuple):
    """A picture: its attributes, and its width and height, pixels."""

    attributes: dict[str, str]
    width: int
    height: int


def _measured(examples: Examples, index: int) -> _Measured | None:
    """Return what is measured in a picture; None: the example is none."""
    try:
        picture = examples.picture(index)
    except ModelError:
        return None
    to_grey = cv2.COLOR_RGB2GRAY if examples.order == "rgb" else cv2.COLOR_BGR2GRAY
    grey = cv2.cvtColor(np.ascontiguousarray(picture), to_grey)
    folder = folder_of(examples.name(index))
    attributes = {"brightness": brightness_of(float(grey.mean())), **({"folder": folder} if folder else {})}
    return _Measured(attributes, picture.shape[1], picture.shape[0])


def class_outcomes(examples: Examples, right: NDArray[np.bool_]) -> Iterator[SlicedExample]:
    """Yield what each example adds to a slice.

    Args:
        examples: with classes.
        right: whether each is told rightly, [n].
    """
    for index in range(len(examples)):
        measured = _measured(examples, index)
        attributes = {} if measured is None else measured.attributes
        yield SlicedExample(examples.name(index), attributes, int(right[index]), 1)


def box_outcomes(
    examples: Examples,
    found: Sequence[Sequence[Detection]],
    names: Sequence[str],
    threshold: float,
    chosen: Collection[int] = (),
) -> Iterator[SlicedExample]:
    """Yield how many objects of each size are found in each picture.

    Args:
        examples: with boxes.
        found: detections in each example, whose boxes are fractions of the whole picture.
        names: of the classes.
        threshold: least score that counts.
        chosen: numbers of the classes whose objects count; empty: all.
    """
    for index, some in enumerate(found):
        measured = _measured(examples, index)
        if measured is None:
            continue
        truth = examples.truth(index)
        hits = _found_objects(some, truth.boxes, truth.classes, names, threshold)
        scale = np.array([measured.width, measured.height, measured.width, measured.height])
        sides = (truth.boxes * scale)[:, 2:] - (truth.boxes * scale)[:, :2]
        sizes = np.array([size_of(float(area)) for area in sides.prod(axis=1)])
        counts = np.isin(truth.classes, list(chosen)) if chosen else np.ones(len(truth.classes), bool)
        for size in dict.fromkeys(sizes[counts].tolist()):
            own = (sizes == size) & counts
            attributes: Mapping[str, str] = {**measured.attributes, "object size": size}
            yield SlicedExample(examples.name(index), attributes, int(hits[own].sum()), int(own.sum()))


def _found_objects(
    some: Sequence[Detection],
    boxes: NDArray[np.float64],
    classes: NDArray[np.int64],
    names: Sequence[str],
    threshold: float,
) -> NDArray[np.bool_]:
    """Return whether each object of a picture is found."""
    hits = np.zeros(len(boxes), bool)
    for number, name in enumerate(names):
        own = [one for one in some if one.label == name and one.score >= threshold]
        places = np.flatnonzero(classes == number)
        if own and len(places):
            scores = np.array([one.score for one in own], np.float64)
            taken = assigned(np.array([one.box for one in own], np.float64), scores, boxes[places])
            hits[places[taken[taken >= 0]]] = True
    return hits
