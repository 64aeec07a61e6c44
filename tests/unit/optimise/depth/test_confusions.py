"""Classes that are taken for others."""

from __future__ import annotations

import numpy as np
import pytest

from agent.errors import ModelError
from agent.optimise.depth.confusions import Confusion, check_labels, confusions

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


def test_labels_of_most_classes_that_are_those_of_others_are_refused() -> None:
    swapped, unsure = Confusion(0, 1, 0.1, 0.9), Confusion(2, 3, 0.3, 0.4)
    check_labels([swapped, unsure, unsure], 3, "here", "look")
    check_labels([swapped, swapped], 4, "here", "look")
    with pytest.raises(ModelError, match=r"here: most inputs of 2 of the 3 .*: look"):
        check_labels([swapped, swapped], 3, "here", "look")
