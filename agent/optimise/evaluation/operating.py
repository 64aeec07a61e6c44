"""Operating points: what a threshold finds, and what in vain; and the worst errors.

Scores are those of the decoder, 0..1; a threshold takes what is at or above it. Intervals are Wilson's, of 95 %.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from agent.optimise.data import Examples
from agent.optimise.evaluate import wilson
from agent.types import Box, Detection

Floats = NDArray[np.float64]
FROC_RATES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""False positives for each picture at which the sensitivity is told, as in LUNA16 (Setio et al., 2017)."""
_IOU = 0.5


class OperatingPoint(Struct, frozen=True):
    """A threshold and what it gives.

    Attributes:
        threshold: least score that counts.
        recall: share of what is to be found that is found, 0..1.
        recall_interval: of 95 %.
        false_alarms: share of the negative examples that are taken for positive; for boxes, false positives for
            each picture.
        precision: share of what is found that is right; None: nothing is found.
        missed: number of what is to be found and is not.
    """

    threshold: float
    recall: float
    recall_interval: tuple[float, float]
    false_alarms: float
    precision: float | None
    missed: int


def share_point(scores: Floats, positive: NDArray[np.bool_], threshold: float) -> OperatingPoint:
    """Return what a threshold gives on examples that are positive or negative as a whole.

    Args:
        scores: of each example, float64 [n].
        positive: whether it is, [n]; at least one is, and one is not.
        threshold: least score that counts.
    """
    found = scores >= threshold
    hits, total = int((found & positive).sum()), int(positive.sum())
    alarms, taken = int((found & ~positive).sum()), int(found.sum())
    precision = hits / taken if taken else None
    negative = len(scores) - total
    return OperatingPoint(
        threshold, hits / total, wilson(hits, total), alarms / negative, precision, total - hits
    )


def threshold_for(scores: Floats, target: float) -> float:
    """Return the highest threshold that finds at least a share of positive scores.

    Args:
        scores: of what is to be found, float64 [n], n > 0; what was not found has the score -inf.
        target: share, above 0 and up to 1.

    Returns:
        -inf: no threshold finds so many.
    """
    needed = max(1, int(np.ceil(target * len(scores) - 1e-9)))
    return float(np.sort(scores)[::-1][needed - 1])


class Found(NamedTuple):
    """Detections of one class in all pictures, matched with its objects.

    Attributes:
        scores: of the detections, float64 [d].
        hits: whether each is the best one of an object, [d].
        pictures: of each detection, int64 [d].
        objects: number of objects in each picture, int64 [p].
    """

    scores: Floats
    hits: NDArray[np.bool_]
    pictures: NDArray[np.int64]
    objects: NDArray[np.int64]


def match(boxes: Floats, scores: Floats, truth: Floats) -> NDArray[np.bool_]:
    """Match the detections of a class in one picture with its objects, the strongest first, IoU at least 0.5.

    Args:
        boxes: x0, y0, x1, y1, float64 [d, 4].
        scores: float64 [d].
        truth: boxes of the objects, float64 [m, 4].

    Returns:
        Whether each detection is the match of an object; each object has one at most.
    """
    return assigned(boxes, scores, truth) >= 0


def assigned(boxes: Floats, scores: Floats, truth: Floats) -> NDArray[np.int64]:
    """Return the number of the object that each detection matches, -1 for none, int64 [d]; see `match`."""
    objects, free = np.full(len(boxes), -1, np.int64), np.ones(len(truth), bool)
    shared = overlaps(boxes, truth)
    for number in np.argsort(-scores, kind="stable"):
        candidates = np.where(free, shared[number], 0.0) if len(truth) else np.zeros(1)
        best = int(candidates.argmax())
        if candidates[best] >= _IOU:
            objects[number], free[best] = best, False
    return objects


def overlaps(boxes: Floats, truth: Floats) -> Floats:
    """Return the intersection over union of boxes [d, 4] and [m, 4], float64 [d, m]."""
    corner = np.maximum(boxes[:, None, :2], truth[None, :, :2])
    other = np.minimum(boxes[:, None, 2:], truth[None, :, 2:])
    shared = np.prod(np.clip(other - corner, 0.0, None), axis=2)
    areas = [np.prod(one[:, 2:] - one[:, :2], axis=1) for one in (boxes, truth)]
    return np.asarray(shared / np.maximum(areas[0][:, None] + areas[1][None] - shared, 1e-12))


def box_point(found: Found, threshold: float) -> OperatingPoint:
    """Return what a threshold gives on boxes of one class; there is at least one object."""
    taken = found.scores >= threshold
    hits, total = int((taken & found.hits).sum()), int(found.objects.sum())
    alarms = int((taken & ~found.hits).sum())
    precision = hits / (hits + alarms) if hits + alarms else None
    interval = wilson(hits, total)
    return OperatingPoint(threshold, hits / total, interval, alarms / len(found.objects), precision, total - hits)


def box_threshold_for(found: Found, target: float) -> float:
    """Return the highest threshold that finds at least a share of the objects; -inf: none does."""
    lost = int(found.objects.sum()) - int(found.hits.sum())
    return threshold_for(np.concatenate([found.scores[found.hits], np.full(lost, -np.inf)]), target)


class FrocPoint(Struct, frozen=True):
    """Sensitivity, 0..1, at a number of false positives for each picture."""

    false_positives: float
    sensitivity: float


def froc(found: Found, rates: Sequence[float] = FROC_RATES) -> tuple[FrocPoint, ...]:
    """Return the free-response operating characteristic of one class (Bunch et al., 1977).

    Args:
        found: detections and objects.
        rates: false positives for each picture.
    """
    order = np.argsort(-found.scores, kind="stable")
    scores, hits = found.scores[order], found.hits[order]
    right, false = (np.concatenate([[0], np.cumsum(one)]) for one in (hits, ~hits))
    # A threshold lies between different scores: equal ones are taken together.
    ends = np.flatnonzero(np.concatenate([[True], np.append(np.diff(scores) != 0, True)[: len(scores)]]))
    total, pictures = max(1, int(found.objects.sum())), len(found.objects)
    last = [int(np.searchsorted(false[ends], rate * pictures, "right")) - 1 for rate in rates]
    return tuple(
        FrocPoint(rate, float(right[ends][place] / total)) for rate, place in zip(rates, last, strict=True)
    )


WORST = 24
"""Most errors that are told."""
NOTHING = -1
"""In place of the number of a class: the model tells none."""
_NO_OBJECT = "nothing"


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
