from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.compute.decode.decoder import ScoreFilter, ShapeMismatchError, logit, sigmoid, stored_threshold, top_k
from tests.support.decoding import spec

pytestmark = pytest.mark.numerics


@given(
    st.sampled_from(["uint8", "int8", "int16"]),
    st.floats(0.001, 0.1),
    st.integers(-128, 127),
    st.floats(0.0, 1.0),
    st.integers(1, 500),
    st.integers(0, 2**32 - 1),
)
def test_the_stored_comparison_finds_what_the_real_one_finds(
    dtype: str, scale: float, zero: int, threshold: float, size: int, seed: int
) -> None:
    tensor = spec("t", size, dtype=dtype, scale=scale, zero_point=zero)
    limits = np.iinfo(dtype)
    stored = np.random.default_rng(seed).integers(limits.min, limits.max, size, dtype, endpoint=True)
    indices, scores = ScoreFilter(tensor, (size,), threshold)(stored)
    real = tensor.real(stored)
    assert indices.tolist() == np.flatnonzero(real >= np.float32(threshold)).tolist()
    assert np.array_equal(scores, real[indices])


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.99, 1.0])
def test_logits_are_compared_before_their_sigmoid(threshold: float) -> None:
    logits = np.array([-200, -1, 0, 1, 5, 90, 200], np.float32)
    indices, scores = ScoreFilter(spec("t", 7), (7,), threshold, logits=True)(logits)
    expected = {0.0: 6, 0.3: 5, 0.99: 3, 1.0: 1}[threshold]
    assert len(indices) == expected
    assert np.allclose(scores, sigmoid(logits[indices]))
    assert (scores >= threshold).all()


def test_what_is_not_finite_does_not_survive() -> None:
    stored = np.array([np.nan, np.inf, 0.9, -np.inf, 0.5], np.float32)
    indices, scores = ScoreFilter(spec("t", 5), (5,), 0.4)(stored)
    assert indices.tolist() == [2, 4]
    assert scores.tolist() == [np.float32(0.9), 0.5]


@pytest.mark.parametrize("shape", [(1, -1), (-1, -4), (1 << 14, 1 << 14)])
def test_a_size_that_is_unknown_or_beyond_any_board_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeMismatchError, match="of a fixed size, at most 134,217,728; found t float32"):
        ScoreFilter(spec("t", *shape), shape, 0.5)


@pytest.mark.parametrize("dtype", ["int4", "#121"])
def test_scores_of_a_type_that_cannot_be_compared_are_refused(dtype: str) -> None:
    with pytest.raises(ShapeMismatchError, match="expected scores of a numpy dtype, found t"):
        ScoreFilter(spec("t", 1, 4, dtype=dtype), (1, 4), 0.5)


def test_a_threshold_out_of_reach_finds_nothing() -> None:
    tensor = spec("t", 4, dtype="uint8", scale=1 / 512)
    assert stored_threshold(tensor, 0.9) is None
    indices, scores = ScoreFilter(tensor, (4,), 0.9)(np.full(4, 255, np.uint8))
    assert indices.size == scores.size == 0


@pytest.mark.parametrize(("threshold", "expected"), [(0.5, 50), (1e12, None), (-1e12, -(2**31))])
def test_wide_integers_are_computed_instead_of_tried(threshold: float, expected: int | None) -> None:
    assert stored_threshold(spec("t", 1, dtype="int32", scale=0.01), threshold) == expected


def test_columns_that_are_no_scores_are_skipped_and_strides_do_not_matter() -> None:
    table = np.array([[9, 9, 0.1, 0.8], [9, 9, 0.7, 0.2]], np.float32)
    indices, _ = ScoreFilter(spec("t", 2, 4), (2, 4), 0.5, skip=2)(table)
    assert indices.tolist() == [3, 6]
    indices, scores = ScoreFilter(spec("t", 2, 4), (2,), 0.5)(table[:, 3])
    assert indices.tolist() == [0]
    assert scores.tolist() == [np.float32(0.8)]


def test_logit_is_the_inverse() -> None:
    assert logit(0.0) == -100
    assert logit(1.0) == 100
    assert sigmoid(np.array([logit(0.3)], np.float32))[0] == pytest.approx(0.3)


def test_strongest() -> None:
    scores = np.array([0.1, 0.9, 0.5, 0.7], np.float32)
    assert top_k(scores, 4) is None
    best = top_k(scores, 2)
    assert best is not None
    assert sorted(best.tolist()) == [1, 3]
