"""Errors on boxes."""

from __future__ import annotations

from typing import Any

import numpy as np

from agent.optimise.data.annotations import ObjectBoxes
from agent.optimise.evaluation.operating import box_errors, worst
from agent.types import Box, Detection

A: Box = (0.1, 0.1, 0.3, 0.3)
B: Box = (0.5, 0.5, 0.8, 0.8)
C: Box = (0.0, 0.7, 0.2, 0.9)


class Pictures:
    """Examples that have boxes alone."""

    def __init__(self, *objects: list[tuple[int, Box]]) -> None:
        self._objects = objects

    def truth(self, index: int) -> ObjectBoxes:
        some = self._objects[index]
        boxes = np.array([box for _, box in some], np.float64).reshape(-1, 4)
        return ObjectBoxes(np.array([kind for kind, _ in some], np.int64), boxes)

    def name(self, index: int) -> str:
        return f"p{index}"


def errors(objects: list[tuple[int, Box]], found: list[Detection]) -> list[tuple[str, str, float]]:
    examples: Any = Pictures(objects)
    return [(one.truth, one.told, one.score) for one in box_errors(examples, [found], ("cat", "dog"), 0.5)]


def test_what_is_right_is_no_error() -> None:
    assert errors([(0, A), (1, B)], [Detection("cat", 0.9, A), Detection("dog", 0.5, B)]) == []
    assert errors([], [Detection("cat", 0.4, A)]) == []


def test_what_is_found_in_vain_is_told_with_what_lies_there() -> None:
    found = [
        Detection("dog", 0.9, A),
        Detection("cat", 0.7, C),
        Detection("dog", 0.6, B),
        Detection("dog", 0.8, B),
    ]
    assert sorted(errors([(0, A), (1, B)], found)) == [
        ("cat", "dog", 0.9),
        ("cat", "nothing", 0.0),
        ("dog", "dog once more", 0.6),
        ("nothing", "cat", 0.7),
    ]


def test_not_all_are_told_and_both_kinds_are() -> None:
    examples: Any = Pictures(*([[(0, A)]] * 50))
    found = [[Detection("dog", 0.5 + number / 100, B)] for number in range(50)]
    told = worst(box_errors(examples, found, ("cat", "dog"), 0.5))
    assert len(told) == 24
    assert [one.name for one in told[:3]] == ["p49", "p48", "p47"]
    assert sum(one.told == "nothing" for one in told) == 12
    few = worst(box_errors(examples, [*found[:2], *([[]] * 48)], ("cat", "dog"), 0.5))
    assert sum(one.told == "nothing" for one in few) == 22
