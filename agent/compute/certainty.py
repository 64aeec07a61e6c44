"""How sure a detector is of its answer, and how far two of its answers agree. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from agent.compute.track.association import iou
from agent.messages import Detection

_SAME = 0.5
"""Least overlap of two boxes that stand for the same thing."""


def certainty(scores: Iterable[float], threshold: float) -> float:
    """How sure an answer is, 0.5..1: as sure as its least sure candidate.

    An answer is a yes or no to each candidate, and one that is wrong makes it wrong. A score becomes a
    probability p of being there: linear below the threshold and above it, and 0.5 at it, whatever the threshold
    is, for there a no turns into a yes. Of a candidate the answer is as sure as max(p, 1 - p). Scores below half
    the threshold tell little and need not be given; without candidates the answer is sure.

    Args:
        scores: of the candidates, 0..1, also of those below the threshold.
        threshold: at or above it a candidate is a detection, 0..1.
    """
    return min((0.5 + abs(_probability(score, threshold) - 0.5) for score in scores), default=1.0)


def _probability(score: float, threshold: float) -> float:
    if score < threshold:
        return score / (2.0 * threshold)
    return 0.5 + (score - threshold) / (2.0 * (1.0 - threshold)) if threshold < 1.0 else 0.5


def agreement(these: Sequence[Detection], those: Sequence[Detection]) -> float:
    """How far two answers to one picture agree, 0..1: F1 of the one against the other, 1 where both are empty.

    Detections are the same that have one label and overlap by half; those without a box have the label only.
    """
    left = list(those)
    for one in these:
        same = max(left, key=lambda other: _likeness(one, other), default=None)
        if same is not None and _likeness(one, same) >= _SAME:
            left.remove(same)
    return 2.0 * (len(those) - len(left)) / (len(these) + len(those)) if these or those else 1.0


def _likeness(one: Detection, other: Detection) -> float:
    if one.label != other.label:
        return -1.0
    return iou(one.box, other.box) if one.box and other.box else 1.0
