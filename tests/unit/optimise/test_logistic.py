"""Probabilities by logistic regression: what they are on data whose odds are known, and their error."""

from __future__ import annotations

import numpy as np
import pytest

from agent.optimise.logistic import calibration_error, fit, held_out, predict

RANDOM = np.random.default_rng(0)
INPUTS = np.stack((RANDOM.normal(size=4000), np.ones(4000)), axis=1)
TRUE = RANDOM.random(4000) < predict(INPUTS, np.array([2.0, -1.0]))


def test_weights_are_found_and_a_penalty_draws_them_to_their_prior() -> None:
    free = fit(INPUTS, TRUE.astype(float), np.full(2, 1e-6), np.zeros(2))
    assert free == pytest.approx([2.0, -1.0], abs=0.15)
    bound = fit(INPUTS, TRUE.astype(float), np.full(2, 1e9), np.array([1.0, 3.0]))
    assert bound == pytest.approx([1.0, 3.0], abs=1e-3)


def test_what_is_held_out_is_told_by_the_others() -> None:
    chosen = []

    def fitted(rows: np.ndarray) -> np.ndarray:
        chosen.append(int(rows.sum()))
        return fit(INPUTS[rows], TRUE[rows].astype(float), np.full(2, 1e-3), np.zeros(2))

    told = held_out(INPUTS, np.arange(4000), fitted)
    assert chosen == [3200] * 5
    assert calibration_error(told, TRUE) < 0.03
    assert held_out(INPUTS[:3], np.zeros(3, int), lambda rows: np.zeros(2)) == pytest.approx(0.5)


def test_the_error_is_the_distance_of_probability_and_share() -> None:
    true = np.array([True, False] * 50)
    assert calibration_error(np.full(100, 0.5), true) == pytest.approx(0.0)
    assert calibration_error(np.full(100, 0.9), true) == pytest.approx(0.4)
