"""Classes that are taken for others."""

from __future__ import annotations

import numpy as np

from agent.optimise.depth.confusions import Confusion, confusions

_ONE_HOT = np.eye(4, dtype=np.float32)


def test_classes_that_are_swapped_are_found() -> None:
    labels = np.array([0, 0, 0, 0, 1, 1, 1, 1, 2, 3])
    told = np.array([1, 1, 1, 0, 0, 0, 1, 3, 2, 3])
    assert confusions(_ONE_HOT[told], labels) == (Confusion(0, 1, 0.25, 0.75), Confusion(1, 0, 0.25, 0.5))


def test_only_what_is_published_counts_and_as_many_right_as_wrong_is_no_swap() -> None:
    labels, told = np.array([0, 0, 1, 1, 2]), np.array([3, 3, 0, 1, 0])
    assert confusions(_ONE_HOT[told], labels, [0, 1]) == ()


def test_a_class_without_inputs_is_not_confused() -> None:
    assert confusions(_ONE_HOT[np.array([0])], np.array([0])) == ()
