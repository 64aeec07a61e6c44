"""The worst errors of a model: those that people should look at first, since wrong labels are among them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from agent.optimise.data import Examples
from agent.optimise.evaluation.operating import match, overlaps
from agent.types import Box, Detection

WORST = 24
"""Most errors that are told."""
NOTHING = -1
"""In place of the number of a class: the model tells none."""
_NO_OBJECT = "nothing"
_IOU = 0.5


class WrongExample(Struct, frozen=True):
    """An example on which the model errs most surely.

    Attributes:
        index, name: of the example; the name is that of its file, or its number.
        truth, told: classes; `nothing` where there is no object, or none is found.
        score: of what is told, 0..1.
        box: of the object or of what is told, in fractions of the picture; None: not of boxes.
    """

    index: int
    name: str
    truth: str
    told: str
    score: float
    box: Box | None = None


def class_errors(
    examples: Examples,
    scores: NDArray[np.float64],
    labels: NDArray[np.int64],
    told: NDArray[np.int64],
    names: Sequence[str],
) -> tuple[WrongExample, ...]:
    """Return the examples that are taken for another class with the highest scores.

    Args:
        examples: with classes.
        scores: float64 [n, classes].
        labels: of the examples, [n].
        told: number of the class that is told, or `NOTHING`, [n].
        names: of the classes.
    """
    wrong = np.flatnonzero((told != labels) & (told != NOTHING))
    surest = wrong[np.argsort(-scores[wrong, told[wrong]], kind="stable")][:WORST]
    return tuple(
        WrongExample(
            int(one), examples.name(int(one)), names[labels[one]], names[told[one]], float(scores[one, told[one]])
        )
        for one in surest
    )


def box_errors(
    examples: Examples, found: Sequence[Sequence[Detection]], names: Sequence[str], threshold: float
) -> tuple[WrongExample, ...]:
    """Return what is found in vain with the highest scores, and objects that are missed with the lowest ones.

    Args:
        examples: with boxes.
        found: detections in each example, whose boxes are fractions of the whole picture.
        names: of the classes.
        threshold: least score that counts.
    """
    vain: list[WrongExample] = []
    missed: list[WrongExample] = []
    for index, some in enumerate(found):
        truth = examples.truth(index)
        for number, name in enumerate(names):
            own = [one for one in some if one.label == name and one.box is not None]
            boxes = np.array([one.box for one in own], np.float64).reshape(-1, 4)
            scores = np.array([one.score for one in own], np.float64)
            counts = scores >= threshold
            hits = match(boxes, np.where(counts, scores, -1.0), truth.boxes[truth.classes == number]) & counts
            for place in np.flatnonzero(counts & ~hits):
                other = _class_at(boxes[place], truth.boxes, truth.classes, names)
                is_twice = other == name
                told = f"{name} once more" if is_twice else name
                score, box = float(scores[place]), own[place].box
                vain.append(WrongExample(index, examples.name(index), other, told, score, box))
            for box, score in _unmatched(boxes, scores, hits, truth.boxes[truth.classes == number]):
                missed.append(WrongExample(index, examples.name(index), name, _NO_OBJECT, score, box))
    vain.sort(key=lambda one: -one.score)
    missed.sort(key=lambda one: one.score)
    half = WORST // 2
    kept = vain[: max(half, WORST - len(missed))]
    return (*kept, *missed[: WORST - len(kept)])


def _class_at(
    box: NDArray[np.float64], boxes: NDArray[np.float64], classes: NDArray[np.int64], names: Sequence[str]
) -> str:
    """Return the class of the object that a box overlaps most, by half or more."""
    if not len(boxes):
        return _NO_OBJECT
    shared = overlaps(box[None], boxes)[0]
    best = int(shared.argmax())
    return names[int(classes[best])] if shared[best] >= _IOU else _NO_OBJECT


def _unmatched(
    boxes: NDArray[np.float64],
    scores: NDArray[np.float64],
    hits: NDArray[np.bool_],
    truth: NDArray[np.float64],
) -> Iterator[tuple[Box, float]]:
    """Yield the objects that no detection is the match of, and the best score that lies on them."""
    shared = overlaps(truth, boxes) if len(boxes) else np.zeros((len(truth), 0))
    free = np.ones(len(truth), bool)
    for place in np.flatnonzero(hits)[np.argsort(-scores[hits], kind="stable")]:
        free[int(np.where(free, shared[:, place], -1.0).argmax())] = False
    for number in np.flatnonzero(free):
        on = shared[number] >= _IOU
        x0, y0, x1, y1 = truth[number].tolist()
        yield (x0, y0, x1, y1), float(scores[on & ~hits].max(initial=0.0))
