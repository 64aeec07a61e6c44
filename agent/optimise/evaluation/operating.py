"""Operating points: what a threshold on a score finds, and what it finds in vain.

Scores are those of the decoder, 0..1; a threshold takes what is at or above it. Intervals are of 95 %: Wilson's
for shares, else by bootstrap over pictures (Efron and Tibshirani, An Introduction to the Bootstrap, 1993).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from agent.optimise.evaluate import wilson

Floats = NDArray[np.float64]
FROC_RATES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""False positives for each picture at which the sensitivity is told, as in LUNA16 (Setio et al., 2017)."""
_SAMPLES = 1000
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
    """Sensitivity at a number of false positives for each picture, with its interval of 95 % by bootstrap."""

    false_positives: float
    sensitivity: float
    interval: tuple[float, float]


def froc(found: Found, rates: Sequence[float] = FROC_RATES, seed: int = 0) -> tuple[FrocPoint, ...]:
    """Return the free-response operating characteristic of one class (Bunch et al., 1977).

    Args:
        found: detections and objects.
        rates: false positives for each picture.
        seed: of the bootstrap.
    """
    whole = _sensitivities(
        found.scores, found.hits, np.ones(len(found.scores)), int(found.objects.sum()), rates, len(found.objects)
    )
    draws, random = [], np.random.default_rng(seed)
    for _ in range(_SAMPLES):
        times = np.bincount(
            random.integers(0, len(found.objects), len(found.objects)), minlength=len(found.objects)
        )
        total = int((found.objects * times).sum())
        if total:
            weights = times[found.pictures].astype(np.float64)
            draws.append(_sensitivities(found.scores, found.hits, weights, total, rates, len(found.objects)))
    low, high = np.percentile(np.array(draws), (2.5, 97.5), axis=0) if draws else (whole, whole)
    return tuple(
        FrocPoint(rate, float(value), (float(least), float(most)))
        for rate, value, least, most in zip(rates, whole, low, high, strict=True)
    )


def _sensitivities(
    scores: Floats, hits: NDArray[np.bool_], weights: Floats, objects: int, rates: Sequence[float], pictures: int
) -> Floats:
    """Return the share of objects found at each rate, with detections that count `weights` times."""
    order = np.argsort(-scores, kind="stable")
    found = np.concatenate([[0.0], np.cumsum(weights[order] * hits[order])])
    false = np.concatenate([[0.0], np.cumsum(weights[order] * ~hits[order])])
    # A threshold lies between different scores: equal ones are taken together.
    ends = np.concatenate([[True], np.append(np.diff(scores[order]) != 0, True) if len(scores) else []]).astype(
        bool
    )
    found, false = found[ends], false[ends]
    last = [int(np.searchsorted(false, rate * pictures, "right")) - 1 for rate in rates]
    return np.array([found[one] / max(1, objects) for one in last])
