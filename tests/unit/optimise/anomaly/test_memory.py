from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.optimise.anomaly.memory import (
    CANDIDATES,
    PatchMemory,
    learn,
    limit_of,
    roc_area,
    some_places,
)


def rows(count: int, channels: int = 5, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(2.0, 3.0, (count, channels)).astype(np.float32)


@given(seed=st.integers(0, 2**32 - 1), size=st.integers(1, 40))
@settings(deadline=None, max_examples=40)
def test_a_distance_is_that_to_the_nearest_place(seed: int, size: int) -> None:
    memory = learn(rows(60, seed=seed), size)
    assert len(memory.places) == size
    picture = rows(12, seed=seed + 1).reshape(3, 4, 5)
    known = (picture - memory.mean) / memory.std
    wanted = np.square(known[:, :, None] - memory.places).sum(-1).min(-1)
    np.testing.assert_allclose(memory.distances(picture), wanted, rtol=1e-3, atol=1e-3)


@given(seed=st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=20)
def test_more_places_leave_no_seen_place_farther_away(seed: int) -> None:
    seen = rows(80, seed=seed)
    farthest = [learn(seen, size).distances(seen).max() for size in (1, 5, 20, 80)]
    assert farthest == sorted(farthest, reverse=True)
    assert farthest[-1] == pytest.approx(0.0, abs=1e-3)


def test_places_that_are_there_already_are_not_kept_twice() -> None:
    assert len(learn(np.repeat(rows(3), 50, axis=0), 100).places) == 3


def test_a_channel_that_never_varied_does_not_count_a_thousandfold() -> None:
    seen = rows(50)
    seen[:, 0] = 7.0
    memory = learn(seen, 10)
    assert memory.std[0] == pytest.approx(0.1 * np.median(memory.std[1:]), rel=0.5)
    other = seen[:1].copy()
    other[:, 0] += 0.01
    assert memory.distances(other)[0] < 1.0


def test_many_pictures_give_some_places_each() -> None:
    features, random = rows(1024).reshape(32, 32, 5), np.random.default_rng(0)
    assert len(some_places(features, 10, random)) == 1024
    chosen = some_places(features, 200, random)
    assert len(chosen) == CANDIDATES // 200
    assert len(np.unique(chosen, axis=0)) == len(chosen)
    assert len(some_places(features, 10**6, random)) == 1


@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 50), share=st.floats(0.0, 0.5))
def test_no_more_parts_than_asked_for_exceed_the_limit(seed: int, count: int, share: float) -> None:
    scores = np.random.default_rng(seed).random(count).astype(np.float32)
    limit = limit_of(scores, share)
    assert (scores > np.float32(limit)).sum() <= share * (count + 1)


def test_the_limit_keeps_its_promise_on_parts_it_never_saw() -> None:
    """Over many draws, the mean share of new parts above the limit is at most what was asked for."""
    random = np.random.default_rng(3)
    above = [
        (random.random(200) > limit_of(random.random(60).astype(np.float32), 0.1)).mean() for _ in range(300)
    ]
    assert 0.06 < np.mean(above) <= 0.105


@given(seed=st.integers(0, 2**32 - 1))
def test_the_roc_area_is_the_share_of_pairs_in_order(seed: int) -> None:
    random = np.random.default_rng(seed)
    sound, faulty = (random.integers(0, 6, count).astype(np.float32) for count in (7, 9))
    pairs = np.sign(faulty[:, None] - sound)
    assert roc_area(sound, faulty) == pytest.approx(float((pairs + 1.0).mean() / 2.0))


def test_a_memory_is_of_float32() -> None:
    memory = learn(rows(20), 5)
    assert isinstance(memory, PatchMemory)
    assert {one.dtype for one in memory} == {np.dtype(np.float32)}
