"""Words by their embeddings: which is which, and what is none of them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.compute import listening as module
from agent.compute.listening import WordHead, is_embedding
from agent.compute.states import UNSURE, leave_one_out
from agent.compute.tflite.model import TensorSpec

pytestmark = pytest.mark.numerics

SIZE = 96


def cluster(seed: int, count: int = 8, spread: float = 1.0) -> np.ndarray:
    """Embeddings around a place of their own."""
    place = np.random.default_rng(seed).normal(0, 8, SIZE)
    return (place + np.random.default_rng(seed + 1000).normal(0, spread, (count, SIZE))).astype(np.float32)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 10_000), count=st.integers(1, 8), shots=st.integers(5, 20))
def test_words_are_told_and_what_is_elsewhere_is_unlike(seed: int, count: int, shots: int) -> None:
    kept = {f"w{number}": cluster(seed + number, shots + 1) for number in range(count)}
    head = WordHead({word: some[:shots] for word, some in kept.items()})
    assert head.values == tuple(kept)
    for word, some in kept.items():
        answer = head.classify(some[shots])
        assert (answer.nearest, answer.unlike) == (word, False)
        assert answer.value == word
        assert 0.5 <= answer.score <= 1.0
    strange = head.classify(cluster(seed + 50_000, 1)[0])
    assert (strange.value, strange.unlike) == (UNSURE, True)
    assert strange.score < 0.5


def test_what_lies_between_two_words_is_unsure() -> None:
    near = cluster(1, 10)
    other = (near.mean(axis=0) + np.random.default_rng(5).normal(0.8, 1.0, (10, SIZE))).astype(np.float32)
    head = WordHead({"one": near, "other": other})
    middle = (near.mean(axis=0) + other.mean(axis=0)) / 2
    answer = head.classify(middle)
    assert (answer.value, answer.unlike) == (UNSURE, False)


def test_a_higher_score_may_be_asked_for() -> None:
    head = WordHead({"one": cluster(1, 10)})
    answer = head.classify(cluster(1, 11)[10])
    assert answer.value == "one"
    assert head.classify(cluster(1, 11)[10], answer.score + 0.01).value == UNSURE


def test_nothing_is_learned_from_nothing() -> None:
    with pytest.raises(ValueError, match="at least one word"):
        WordHead({})
    with pytest.raises(ValueError, match="the same"):
        WordHead({"one": np.ones((5, SIZE), np.float32)})


def test_each_example_is_told_by_the_others() -> None:
    examples = {word: list(cluster(seed, 6)[:, None]) for seed, word in enumerate(("one", "two"))}
    examples["two"][3] = cluster(77, 1)
    found = leave_one_out(examples, WordHead)
    assert found["one"].count == 6
    assert found["one"].wrong == 0
    assert (found["two"].right, found["two"].wrong) <= (5, 0)
    assert found["two"].unsure >= 1


def test_the_formula_for_an_example_that_was_not_learned_is_that_of_learning_without_it() -> None:
    """Up to the common variance, which one example of ten hardly changes."""
    groups = [cluster(seed, 10) for seed in (1, 2)]
    rest = np.concatenate([one - one.mean(axis=0) for one in groups]).astype(np.float64)

    def covariance(rows: np.ndarray, free: int) -> np.ndarray:
        shrinkage = module._SHRINKAGE
        common = shrinkage * np.square(rest).sum() / (18 * SIZE)
        return np.asarray((1 - shrinkage) / free * rows.T @ rows + common * np.eye(SIZE))

    own = np.array([row @ np.linalg.solve(covariance(rest, 18), row) for row in rest])
    told = module._left_out(own, np.full(20, 10), 18)
    others = groups[0][1:].astype(np.float64)
    without = np.concatenate((others - others.mean(axis=0), rest[10:]))
    away = groups[0][0] - others.mean(axis=0)
    assert told[0] == pytest.approx(np.sqrt(away @ np.linalg.solve(covariance(without, 18), away)), rel=1e-4)


@pytest.mark.parametrize(
    ("name", "shape", "fits"),
    [
        ("features", (1, 1, 1, 96), True),
        ("features", (1, 96), True),
        ("features", (1, 4, 96), False),
        ("features", (1, 2048), False),
        ("features", (1, 1), False),
        ("scores", (1, 96), False),
    ],
)
def test_an_embedding_is_one_row_of_numbers(name: str, shape: tuple[int, ...], fits: bool) -> None:
    assert is_embedding(TensorSpec(name, shape, "int8", 0.5, 0)) is fits
