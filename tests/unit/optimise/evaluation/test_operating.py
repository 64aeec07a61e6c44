"""Thresholds and curves, against what can be counted by hand or by brute force."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.optimise.evaluation.operating import (
    Found,
    box_point,
    box_threshold_for,
    froc,
    match,
    share_point,
    threshold_for,
)

SCORES = np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.4])
POSITIVE = np.array([True, True, False, True, False, False])


def test_a_threshold_finds_and_misses_and_alarms_in_vain() -> None:
    point = share_point(SCORES, POSITIVE, 0.7)
    assert point.recall == pytest.approx(2 / 3)
    assert point.missed == 1
    assert point.false_alarms == pytest.approx(1 / 3)
    assert point.precision == pytest.approx(2 / 3)
    assert point.recall_interval[0] < 2 / 3 < point.recall_interval[1]


def test_a_threshold_that_finds_nothing_has_no_precision() -> None:
    assert share_point(SCORES, POSITIVE, 0.95).precision is None


@given(
    scores=st.lists(st.sampled_from([0.1, 0.25, 0.5, 0.75, 1.0]), min_size=1, max_size=30),
    target=st.floats(0.01, 1.0),
)
def test_the_highest_threshold_that_finds_enough(scores: list[float], target: float) -> None:
    values = np.array(scores)
    found = threshold_for(values, target)
    assert (values >= found).mean() >= target - 1e-9
    higher = [one for one in set(scores) if one > found]
    assert all((values >= one).mean() < target for one in higher)


def test_each_object_has_one_match_the_strongest() -> None:
    truth = np.array([[0.0, 0.0, 0.4, 0.4], [0.5, 0.5, 0.9, 0.9]])
    boxes = np.array([[0.0, 0.0, 0.4, 0.38], [0.0, 0.0, 0.4, 0.4], [0.5, 0.5, 0.9, 0.8], [0.6, 0.0, 0.9, 0.3]])
    assert match(boxes, np.array([0.6, 0.9, 0.5, 0.8]), truth).tolist() == [-1, 0, 1, -1]


def test_without_objects_all_are_false_and_without_detections_none() -> None:
    assert match(np.array([[0.0, 0.0, 1.0, 1.0]]), np.array([0.5]), np.zeros((0, 4))).tolist() == [-1]
    assert match(np.zeros((0, 4)), np.zeros(0), np.array([[0.0, 0.0, 1.0, 1.0]])).tolist() == []


def found() -> Found:
    """Four pictures with five objects, of which one is never found, and two false detections."""
    return Found(
        np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.5]),
        np.array([True, False, True, True, False, True]),
        np.array([0, 0, 1, 2, 2, 3]),
        np.array([1, 1, 1, 2]),
    )


def test_boxes_at_a_threshold() -> None:
    point = box_point(found(), 0.6)
    assert (point.recall, point.false_alarms, point.precision, point.missed) == (0.6, 0.25, 0.75, 2)


def test_a_threshold_for_objects_counts_those_that_are_never_found() -> None:
    assert box_threshold_for(found(), 0.6) == 0.6
    assert box_threshold_for(found(), 0.8) == 0.5
    assert box_threshold_for(found(), 0.81) == -np.inf


def test_the_curve_tells_the_sensitivity_at_false_positives_a_picture() -> None:
    assert froc(found(), (0.0, 0.25, 0.5, 8.0)) == (0.2, 0.6, 0.8, 0.8)


@given(st.integers(0, 1000))
def test_the_curve_never_falls_and_no_point_costs_more_than_it_says(seed: int) -> None:
    random = np.random.default_rng(seed)
    count = int(random.integers(0, 30))
    hits = random.random(count) < 0.5
    objects = random.integers(0, 4, 10)
    objects[0] += int(hits.sum())
    made = Found(np.round(random.random(count), 1), hits, random.integers(0, 10, count), objects)
    if not objects.sum():
        return
    rates = (0.0, 0.1, 0.5, 2.0)
    curve = froc(made, rates)
    assert list(curve) == sorted(curve)
    thresholds = [2.0, *set(made.scores.tolist())]
    for rate, sensitivity in zip(rates, curve, strict=True):
        points = [box_point(made, one) for one in thresholds]
        assert sensitivity == pytest.approx(max(one.recall for one in points if one.false_alarms <= rate))
