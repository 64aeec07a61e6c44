"""Logistic regression of what is true, and how far its probabilities can be trusted."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

_FOLDS, _BINS, _STEPS, _LONGEST = 5, 10, 50, 2.0


def predict(inputs: Floats, weights: Floats) -> Floats:
    """Return probabilities, [n], of inputs, float64 [n, features]."""
    return np.asarray(1.0 / (1.0 + np.exp(-np.clip(inputs @ weights, -700.0, 700.0))))


def fit(inputs: Floats, targets: Floats, penalty: Floats, prior: Floats) -> Floats:
    """Return the weights that minimise the logistic loss, by Newton's method.

    Args:
        inputs: float64 [n, features].
        targets: probabilities, [n].
        penalty: on the square of each weight's distance from its prior, [features].
        prior: of the weights, [features].
    """
    weights = prior.copy()
    for _ in range(_STEPS):
        told = predict(inputs, weights)
        slope = inputs.T @ (told - targets) + penalty * (weights - prior)
        bend = (inputs * (told * (1 - told))[:, None]).T @ inputs + np.diag(penalty)
        step = np.linalg.solve(bend, slope)
        weights = weights - np.clip(step, -_LONGEST, _LONGEST)
        if float(np.abs(step).max()) < 1e-9:
            break
    return weights


def held_out(inputs: Floats, parts: NDArray[np.int64], fitted: Callable[[Flags], Floats]) -> Floats:
    """Return the probability of each input by weights that were fitted without its fifth, [n].

    Args:
        inputs: float64 [n, features].
        parts: number of what each input belongs to, all of which is held out together, [n].
        fitted: returns the weights that are fitted to the inputs that are chosen, [n].
    """
    told = np.empty(len(inputs))
    for fold in range(_FOLDS):
        out = parts % _FOLDS == fold
        told[out] = predict(inputs[out], fitted(out if out.all() else ~out))
    return told


def calibration_error(told: Floats, true: Flags) -> float:
    """Return the expected calibration error over ten bins of the probability (Naeini et al., AAAI 2015)."""
    bins = np.minimum((told * _BINS).astype(int), _BINS - 1)
    gaps = [abs(float((told - true)[bins == number].sum())) for number in range(_BINS)]
    return sum(gaps) / max(1, len(told))
