"""Calibrates the log-odds of a fused event on a labelled recording.

The recording is cut into stretches: each situation with the window behind it, and the time between situations in
pieces of the window's length. Two windows behind each situation are left out: what belongs to it may still count
there. Of each stretch the moment with the most evidence counts, as at run time. The
weights are those of a logistic regression with a penalty on their squares, found by Newton's method; a negative
weight of a score is set to 0 and the others are fitted again. What is reported is of stretches that were held
out, a fifth at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from agent.errors import ConfigError
from agent.features.fusion.expression import FusionCalibration, Judgement, Reading, Term, TermWeights, logit
from agent.features.fusion.rules import Fusion, FusionTimes
from agent.optimise.late_fusion.recording import Recorded, Span, replay, within

Floats = NDArray[np.float64]

SITUATIONS_MIN = 20
"""Situations, and as many stretches with some evidence and without a situation, that weights are fitted on."""
PER_TERM = 3
"""Features of one term: absent, present, and the logit of the score."""
_GUARD = 2
"""Windows behind a situation that are left out."""
_PENALTY, _STEPS, _FOLDS, _BINS = 0.5, 50, 5, 10


def features(readings: Sequence[Reading]) -> list[float]:
    """Return the features of a moment, `PER_TERM` for each term; all are 0 where nothing is known."""
    made: list[float] = []
    for one in readings:
        is_absent = one.known and not one.present
        made += (float(is_absent), float(one.present), logit(one.score) if one.present else 0.0)
    return made


class _Watched:
    """A condition that is never true: its terms are only read."""

    is_monotone = True

    def __init__(self, terms: Sequence[Term]) -> None:
        self.terms = terms

    def judge(self, readings: Sequence[Reading]) -> Judgement:
        return Judgement(False, 0.0)


def stretches(
    recorded: Sequence[Recorded], truth: Sequence[Span], terms: Sequence[Term], times: FusionTimes
) -> tuple[Floats, NDArray[np.bool_]]:
    """Return the features of every stretch, [n, terms × `PER_TERM`], and if it is a situation, [n].

    Situations outside the recording are left out.
    """
    first, last = recorded[0].at_ns, recorded[-1].at_ns + times.window
    spans = list(_spans(within(truth, recorded), first, last, times.window))
    ticks = sorted({(begin + end) // 2 for begin, end, _ in spans})
    best: list[tuple[float, list[float]]] = [(-1.0, [])] * len(spans)
    fusion, number = Fusion("", _Watched(terms), times), 0
    for at_ns, _ in replay(recorded, fusion, ticks):
        while number < len(spans) - 1 and at_ns > spans[number][1]:
            number += 1
        if spans[number][0] <= at_ns <= spans[number][1]:
            readings = fusion.readings(at_ns)
            amount = sum(one.present + one.score for one in readings)
            if amount > best[number][0]:
                best[number] = amount, features(readings)
    kept = [(made, is_one) for (amount, made), (_, _, is_one) in zip(best, spans, strict=True) if amount >= 0]
    return np.array([made for made, _ in kept]), np.array([is_one for _, is_one in kept])


def _spans(truth: Sequence[Span], first: int, last: int, window: int) -> Iterator[tuple[int, int, bool]]:
    """Yield stretches in order: beginning, end, and if it is a situation."""
    at = first
    for begin, end in truth:
        yield from _between(at, begin - 1, window)
        if end + window >= at:
            yield max(at, begin), end + window, True
        at = max(at, end + (1 + _GUARD) * window + 1)
    yield from _between(at, last, window)


def _between(begin: int, end: int, window: int) -> Iterator[tuple[int, int, bool]]:
    while begin < end:
        yield begin, min(end, begin + window), False
        begin += window + 1


def calibrate(
    recorded: Sequence[Recorded], truth: Sequence[Span], terms: Sequence[Term], times: FusionTimes
) -> FusionCalibration:
    """Fit the weights of terms on a recording.

    Args:
        recorded: in the order of capture.
        truth: situations, sorted.
        terms: that give evidence.
        times: of the fused event.

    Raises:
        ConfigError: there are too few situations, or too few stretches with evidence and without a situation.
    """
    x, y = _checked_stretches(recorded, truth, terms, times)
    weights, held_out = _fit(x, y), _held_out_predictions(x, y)
    fitted = tuple(
        TermWeights(term.text, *(round(float(value), 4) for value in weights[1 + PER_TERM * number :][:PER_TERM]))
        for number, term in enumerate(terms)
    )
    return FusionCalibration(
        fitted,
        round(float(weights[0]), 4),
        times.window / 1e9,
        int(y.sum()),
        len(y),
        round(log_loss(held_out, y), 4),
        round(calibration_error(held_out, y), 4),
    )


def _checked_stretches(
    recorded: Sequence[Recorded], truth: Sequence[Span], terms: Sequence[Term], times: FusionTimes
) -> tuple[Floats, NDArray[np.bool_]]:
    """Return `stretches`, of which there are enough. Raises ConfigError as `calibrate` does."""
    x, y = stretches(recorded, truth, terms, times)
    similar = int((x[~y][:, 1::PER_TERM].sum(1) > 0).sum()) if len(x) else 0
    for count, what in ((int(y.sum()), "situations"), (similar, "stretches with evidence but no situation")):
        if count < SITUATIONS_MIN:
            raise ConfigError(f"expected at least {SITUATIONS_MIN} {what}; found {count}")
    return x, y


def _held_out_predictions(x: Floats, y: NDArray[np.bool_]) -> Floats:
    """Return the probability of each stretch from what was fitted without its fifth."""
    found = np.zeros(len(y))
    for fold in range(_FOLDS):
        is_held = np.arange(len(y)) % _FOLDS == fold
        found[is_held] = _predict(x[is_held], _fit(x[~is_held], y[~is_held]))
    return found


def _predict(x: Floats, weights: Floats) -> Floats:
    made: Floats = 1.0 / (1.0 + np.exp(-np.clip(weights[0] + x @ weights[1:], -30.0, 30.0)))
    return made


def _fit(x: Floats, y: NDArray[np.bool_]) -> Floats:
    """Return the intercept and the weights, [1 + features]; weights of scores are not negative."""
    used = np.ones(x.shape[1], bool)
    while True:
        found = _newton(x * used, y)
        wrong = (found[1:] < 0) & used & (np.arange(x.shape[1]) % PER_TERM == PER_TERM - 1)
        if not wrong.any():
            return found
        used &= ~wrong


def _newton(x: Floats, y: NDArray[np.bool_]) -> Floats:
    """Minimise the logistic loss with `_PENALTY` on the squares of all weights but the intercept."""
    design = np.concatenate((np.ones((len(x), 1)), x), 1)
    penalty = np.diag([1e-6, *(_PENALTY for _ in range(x.shape[1]))])
    weights = np.zeros(design.shape[1])
    for _ in range(_STEPS):
        share = _predict(x, weights)
        slope = design.T @ (share - y) + penalty @ weights
        bend = (design * (share * (1.0 - share))[:, None]).T @ design + penalty
        step = np.linalg.solve(bend, slope)
        weights = weights - step
        if np.abs(step).max() < 1e-9:
            break
    return weights


def log_loss(probabilities: Floats, y: NDArray[np.bool_]) -> float:
    """Return the mean logarithmic loss, nats."""
    bounded = np.clip(probabilities, 1e-9, 1.0 - 1e-9)
    return float(-np.where(y, np.log(bounded), np.log(1.0 - bounded)).mean())


def calibration_error(probabilities: Floats, y: NDArray[np.bool_]) -> float:
    """Return the mean distance of probability and share of truth, in bins of as many moments each.

    Source: Naeini, Cooper and Hauskrecht, Obtaining well calibrated probabilities using Bayesian binning, 2015.
    """
    order = np.argsort(probabilities, kind="stable")
    bins = [part for part in np.array_split(order, _BINS) if len(part)]
    return float(sum(len(one) * abs(probabilities[one].mean() - y[one].mean()) for one in bins) / len(y))
