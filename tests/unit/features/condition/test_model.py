from __future__ import annotations

import numpy as np
import pytest

from agent.features.condition.answers import ConstantAnswer
from agent.types import Array, Image

RANDOM = np.random.default_rng(0)
ONE = RANDOM.random(500).astype(np.float32)


def picture(number: int) -> Image:
    """Another one each time."""
    return np.roll(np.arange(160 * 120, dtype=np.uint8).reshape(120, 160), 7 * number, 1)


def show(
    answers: ConstantAnswer, seconds: int, answer: Array | None, *, still: bool = False, from_s: int = 0
) -> bool:
    for number in range(from_s, from_s + seconds):
        given = [RANDOM.random(500) if answer is None else answer]
        answers.update(number * 10**9, lambda given=given: given, lambda n=number: picture(0 if still else n))  # type: ignore[misc]
    return answers.active


def test_one_answer_to_different_pictures_is_told_until_another_comes() -> None:
    answers = ConstantAnswer()
    assert not show(answers, 10, ONE)
    assert show(answers, 30, ONE, from_s=10)
    assert not show(answers, 5, None, from_s=40)


def test_other_answers_are_no_problem() -> None:
    assert not show(ConstantAnswer(), 120, None)


def test_one_answer_to_one_picture_is_no_problem() -> None:
    assert not show(ConstantAnswer(), 600, ONE, still=True)


@pytest.mark.parametrize("size", [0, 2, 63])
def test_a_model_with_few_numbers_may_give_the_same_for_long(size: int) -> None:
    assert not show(ConstantAnswer(), 120, np.zeros(size, np.int8))
