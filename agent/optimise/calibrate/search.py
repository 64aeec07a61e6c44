"""When to stop climbing, learned from labelled answers: a temperature per variant, and the cheapest thresholds.

Temperatures: the one that makes the answers' log-likelihood largest (Guo and others, On Calibration of Modern
Neural Networks, ICML 2017). Thresholds: for a price of a multiply-add, the best one of each variant given those
of the deeper ones is found exactly, from the deepest to the shallowest; a sweep over prices gives the curve of
accuracy against cost, and the cheapest point that loses no more than allowed is taken.

Most of what a stream hears is half a word or none. Such inputs have no right answer but that of the deepest
variant: they are learned from as well, with less weight, and the cost is that of all inputs.

What holds for all inputs together may be luck: a choice must hold for each part of them by itself.

Labels that nobody is told of (silence, other words) are one answer: which of them it is makes nothing better.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from agent.compute.decode.classify import softmax
from agent.errors import ModelError
from agent.types import Array

Logits = NDArray[np.float32]
"""Answers of every variant to every input, float32 [inputs, variants, classes]; shallow first."""

_PRICES = np.concatenate(([0.0], np.geomspace(1e-3, 3.0, 150)))
"""Errors that a whole climb is worth."""
_BETWEEN = 8
_WEIGHT = 0.25
"""Of an input without a label of its own, against one that has it."""
_LOWEST, _HIGHEST, _STEPS = 0.05, 20.0, 60


class Answers(NamedTuple):
    """What every variant says to every input.

    Attributes:
        confidence: of the answers, [inputs, variants]; shallow first.
        right: whether they are right, or how far, 0..1, of the same shape.
        known: which inputs have a label of their own, bool [inputs].
    """

    confidence: Array
    right: Array
    known: Array


class Point(Struct, frozen=True):
    """One choice of thresholds, and what it does on the data.

    Attributes:
        thresholds: least confidence of each variant but the last.
        accuracy: share of right answers to the inputs that have a label, 0..1.
        cost: mean multiply-adds, as a share of those of a whole climb.
        used: share of inputs that each variant answers.
    """

    thresholds: tuple[float, ...]
    accuracy: float
    cost: float
    used: tuple[float, ...]


class Calibration(Struct, frozen=True):
    """What was learned.

    Attributes:
        temperatures: one per variant.
        chosen: the point that was taken.
        curve: the points to choose from, dear ones first.
        full: accuracy of the deepest variant alone.
        alone: accuracy of each variant alone.
    """

    temperatures: tuple[float, ...]
    chosen: Point
    curve: tuple[Point, ...]
    full: float
    alone: tuple[float, ...]


def calibrate(
    logits: Logits,
    labels: Array,
    costs: Sequence[float],
    loss: float,
    known: Array | None = None,
    told: Sequence[int] | None = None,
    parts: Array | None = None,
) -> Calibration:
    """Learn temperatures and thresholds.

    Args:
        logits: see `Logits`.
        labels: the right class of each input, int [inputs].
        costs: multiply-adds of each variant by itself.
        loss: accuracy that may be given away, 0..1.
        known: which inputs have a label, bool [inputs]; None: all.
        told: numbers of the classes that make a difference, all others being one answer; None: all of them.
        parts: number of the part that each input belongs to, int [inputs]; None: there is one.

    Raises:
        ModelError: there is nothing to learn from, or nothing to learn.
    """
    if logits.ndim != 3 or logits.shape[1] < 2 or len(costs) != logits.shape[1]:
        raise ModelError("a model of one variant has no thresholds to learn")
    if len(labels) != len(logits) or not len(labels):
        raise ModelError("there are no labelled answers to learn from")
    known = np.ones(len(labels), bool) if known is None else known
    temperatures = tuple(temperature(logits[known, variant], labels[known]) for variant in range(logits.shape[1]))
    return search(_judged(logits, labels, temperatures, known, told), costs, loss, temperatures, parts)


def search(
    answers: Answers,
    costs: Sequence[float],
    loss: float,
    temperatures: tuple[float, ...],
    parts: Array | None = None,
) -> Calibration:
    """Learn thresholds only, from answers whose confidence and rightness are known.

    Args:
        answers: to every input.
        costs: multiply-adds of each variant by itself.
        loss: accuracy that may be given away, 0..1.
        temperatures: that the confidences were found with.
        parts: see `calibrate`.
    """
    curve = _curve(answers, costs)
    never = point(answers, costs, (1.0,) * (len(costs) - 1))
    parts = np.zeros(len(answers.known), int) if parts is None else parts
    allowed = [one for one in curve if _most_lost(answers, one, parts) <= loss + 1e-9]
    chosen = min(allowed, key=lambda one: one.cost, default=never)
    alone = tuple(float(share) for share in answers.right[answers.known].mean(axis=0))
    return Calibration(temperatures, chosen, tuple(curve), alone[-1], alone)


def temperature(logits: Array, labels: Array) -> float:
    """What to divide the logits [inputs, classes] of one variant by, so that a confidence is a share of hits."""
    grid = np.geomspace(_LOWEST, _HIGHEST, _STEPS)
    for _ in range(2):
        losses = [_loss(logits, labels, t) for t in grid]
        best = int(np.argmin(losses))
        grid = np.geomspace(grid[max(0, best - 1)], grid[min(len(grid) - 1, best + 1)], 20)
    return float(grid[int(np.argmin([_loss(logits, labels, t) for t in grid]))])


def tried(
    logits: Logits,
    labels: Array,
    costs: Sequence[float],
    learned: Calibration,
    known: Array | None = None,
    told: Sequence[int] | None = None,
) -> Point:
    """What the chosen thresholds do on other data; arguments as for `calibrate`."""
    known = np.ones(len(labels), bool) if known is None else known
    return point(_judged(logits, labels, learned.temperatures, known, told), costs, learned.chosen.thresholds)


def point(answers: Answers, costs: Sequence[float], thresholds: tuple[float, ...]) -> Point:
    """What these thresholds do; arguments as for `search`."""
    answered = _answered(answers, thresholds)
    used = np.bincount(answered, minlength=len(costs)) / len(answered)
    cost = np.cumsum(costs)[answered].mean() / np.sum(costs)
    accuracy = float(answers.right[np.arange(len(answered)), answered][answers.known].mean())
    return Point(thresholds, accuracy, float(cost), tuple(map(float, used)))


def _loss(logits: Array, labels: Array, t: float) -> float:
    scores = softmax(np.asarray(logits / np.float32(t), np.float32))
    return float(-np.log(np.maximum(scores[np.arange(len(labels)), labels], 1e-12)).mean())


def _judged(
    logits: Logits, labels: Array, temperatures: Sequence[float], known: Array, told: Sequence[int] | None
) -> Answers:
    scores = softmax(logits / np.asarray(temperatures, np.float32)[None, :, None])
    if told is not None and len(told) < scores.shape[2]:
        wanted, group = list(told), np.full(scores.shape[2], len(told))
        group[wanted] = np.arange(len(wanted))
        rest = scores.sum(axis=2, keepdims=True) - scores[..., wanted].sum(axis=2, keepdims=True)
        scores, labels = np.concatenate((scores[..., wanted], rest), axis=2), group[labels]
    best = scores.argmax(axis=2)
    labels = np.where(known, labels, best[:, -1])
    return Answers(scores.max(axis=2), best == labels[:, None], known)


def _curve(answers: Answers, costs: Sequence[float]) -> list[Point]:
    dear = np.asarray(costs, float)
    found = list(dict.fromkeys(_thresholds(answers, dear, price) for price in _PRICES))
    # A price finds the corners of the curve's hull only: what lies between two of them is tried as well.
    for one, other in pairwise(found.copy()):
        steps = np.linspace(one, other, _BETWEEN + 2)[1:-1]
        found += [tuple(thresholds) for thresholds in steps.tolist()]
    return sorted((point(answers, costs, thresholds) for thresholds in found), key=lambda one: -one.cost)


def _thresholds(answers: Answers, costs: Array, price: float) -> tuple[float, ...]:
    """The best for one price: each variant's given those of the deeper ones."""
    confidence, wrong = answers.confidence, (1.0 - answers.right) * np.where(answers.known, 1.0, _WEIGHT)[:, None]
    whole = costs.sum()
    later = wrong[:, -1] + price * costs[-1] / whole  # what it costs to go on, per input
    thresholds: list[float] = []
    for variant in range(confidence.shape[1] - 2, -1, -1):
        here = wrong[:, variant]
        order = np.argsort(-confidence[:, variant], kind="stable")
        # Answers above the threshold stop here, those below go on: the sum over every place to cut.
        stop = np.concatenate(([0.0], np.cumsum(here[order])))
        go_on = np.concatenate((np.cumsum(later[order][::-1])[::-1], [0.0]))
        cut = int(np.argmin(stop + go_on))
        threshold = _between(confidence[order, variant], cut)
        thresholds.insert(0, threshold)
        later = np.where(confidence[:, variant] >= threshold, here, later) + price * costs[variant] / whole
    return tuple(thresholds)


def _between(falling: Array, cut: int) -> float:
    """A confidence that the first `cut` reach and the others do not; ties go on."""
    if cut == 0:
        return 1.0
    if cut == len(falling):
        return 0.0
    return float(min(1.0, (falling[cut - 1] + falling[cut]) / 2 + 1e-6))


def _answered(answers: Answers, thresholds: Sequence[float]) -> Array:
    """Number of the variant that answers each input."""
    stops = answers.confidence[:, :-1] >= np.asarray(thresholds)
    answered: Array = np.column_stack((stops, np.ones(len(stops), bool))).argmax(axis=1)
    return answered


def _most_lost(answers: Answers, chosen: Point, parts: Array) -> float:
    """Accuracy that is given away, in the part of the inputs where it is most."""
    inputs = np.arange(len(parts))
    gained = answers.right[inputs, _answered(answers, chosen.thresholds)].astype(float) - answers.right[:, -1]
    return -min(float(gained[answers.known & (parts == part)].mean()) for part in np.unique(parts[answers.known]))
