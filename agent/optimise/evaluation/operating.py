"""Operating points: what a threshold finds, and what in vain; confusions, and the worst errors.

Scores are those of the decoder, 0..1; a threshold takes what is at or above it. Intervals are Wilson's, of 95 %.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from agent.optimise.data import Examples
from agent.optimise.data.annotations import ObjectBoxes
from agent.optimise.evaluate import wilson
from agent.types import Detection

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
    taken = scores >= threshold
    return _point(threshold, taken & positive, taken & ~positive, int(positive.sum()), int((~positive).sum()))


def _point(
    threshold: float, hits: NDArray[np.bool_], alarms: NDArray[np.bool_], total: int, of: int
) -> OperatingPoint:
    """Return a point with so many of `total` hits; `of`: the number that the false alarms are a share of."""
    right, false = int(hits.sum()), int(alarms.sum())
    precision = right / (right + false) if right + false else None
    return OperatingPoint(threshold, right / total, wilson(right, total), false / of, precision, total - right)


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


def match(boxes: Floats, scores: Floats, truth: Floats) -> NDArray[np.int64]:
    """Match the detections of a class in one picture with its objects, the strongest first, IoU at least 0.5.

    Args:
        boxes: x0, y0, x1, y1, float64 [d, 4].
        scores: float64 [d].
        truth: boxes of the objects, float64 [m, 4].

    Returns:
        Number of the object that each detection matches, -1 for none, int64 [d]; each object has one at most.
    """
    objects, free = np.full(len(boxes), -1, np.int64), np.ones(len(truth), bool)
    shared = overlaps(boxes, truth)
    for number in np.argsort(-scores, kind="stable") if len(truth) else ():
        candidates = np.where(free, shared[number], 0.0)
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
    taken, total = found.scores >= threshold, int(found.objects.sum())
    return _point(threshold, taken & found.hits, taken & ~found.hits, total, len(found.objects))


def box_threshold_for(found: Found, target: float) -> float:
    """Return the highest threshold that finds at least a share of the objects; -inf: none does."""
    lost = int(found.objects.sum()) - int(found.hits.sum())
    return threshold_for(np.concatenate([found.scores[found.hits], np.full(lost, -np.inf)]), target)


def froc(found: Found, rates: Sequence[float] = FROC_RATES) -> tuple[float, ...]:
    """Return the sensitivity of one class, 0..1, at numbers of false positives a picture (Bunch et al., 1977).

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
    return tuple(float(share) for share in right[ends][last] / total)


_WORST, _CONFUSED = 24, 20
"""Most errors that are named, and most pairs of classes that are confused."""
NOTHING = "nothing"
"""In place of a class: there is none, or none is found."""


class Confusion(Struct, frozen=True):
    """How many examples of a class were taken for another one."""

    truth: str
    told: str
    count: int


def confusions(pairs: Iterable[tuple[str, str]]) -> tuple[Confusion, ...]:
    """Return what is most often taken for something else, of pairs of the right class and of the answer."""
    counts = Counter((truth, told) for truth, told in pairs if truth != told)
    return tuple(Confusion(*pair, count) for pair, count in counts.most_common(_CONFUSED))


class WrongAnswer(Struct, frozen=True, omit_defaults=True):
    """An error.

    Attributes:
        name: of the example's file, or its number.
        truth, told: classes, or `NOTHING`.
        score: of what is told, 0..1; 0 if that is nothing.
        at_s: where in a recording, s; None: a picture.
    """

    name: str
    truth: str
    told: str
    score: float
    at_s: float | None = None


def worst(wrong: Iterable[WrongAnswer]) -> tuple[WrongAnswer, ...]:
    """Return the surest errors, up to half of them where something is missed, and then what is missed."""
    ordered = sorted(wrong, key=lambda one: -one.score)
    missed = [one for one in ordered if one.told == NOTHING]
    vain = [one for one in ordered if one.told != NOTHING]
    kept = vain[: max(_WORST // 2, _WORST - len(missed))]
    return (*kept, *missed[: _WORST - len(kept)])


def box_errors(
    examples: Examples, found: Sequence[Sequence[Detection]], names: Sequence[str], threshold: float
) -> Iterator[WrongAnswer]:
    """Yield what is found in vain, and objects that are missed.

    Args:
        examples: with boxes.
        found: detections in each example, whose boxes are fractions of the whole picture.
        names: of the classes.
        threshold: least score that counts.
    """
    for index, some in enumerate(found):
        truth, shown = examples.truth(index), examples.name(index)
        for number, name in enumerate(names):
            own = [one for one in some if one.label == name and one.score >= threshold]
            boxes = np.array([one.box for one in own], np.float64).reshape(-1, 4)
            wanted = truth.boxes[truth.classes == number]
            objects = match(boxes, np.array([one.score for one in own]), wanted)
            for place in np.flatnonzero(objects < 0):
                other = _class_at(boxes[place], truth, names)
                told = f"{name} once more" if other == name else name
                yield WrongAnswer(shown, other, told, own[place].score)
            yield from [WrongAnswer(shown, name, NOTHING, 0.0)] * (len(wanted) - int((objects >= 0).sum()))


def _class_at(box: Floats, truth: ObjectBoxes, names: Sequence[str]) -> str:
    """Return the class of the object that a box overlaps most, by half or more."""
    shared = overlaps(box[None], truth.boxes)[0]
    best = int(shared.argmax()) if len(shared) else -1
    return names[int(truth.classes[best])] if len(shared) and shared[best] >= _IOU else NOTHING
