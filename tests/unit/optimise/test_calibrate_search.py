from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.errors import ModelError
from agent.optimise.calibrate import calibrate, evaluate, temperature

pytestmark = pytest.mark.numerics

COSTS = (1.0, 1.0, 4.0)


def answers(seed: int, count: int = 600) -> tuple[np.ndarray, np.ndarray]:
    """Deeper variants see more clearly; some inputs are hard for all."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 5, count)
    truth = np.eye(5)[labels][:, None]
    hardness = random.uniform(0.2, 2.0, (count, 1, 1))
    clarity = np.array([4.5, 5.0, 6.0])[None, :, None]
    noise = random.standard_normal((count, 3, 5))
    return (truth * clarity + noise * hardness).astype(np.float32), labels


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), loss=st.sampled_from([0.0, 0.002, 0.02, 1.0]))
def test_the_choice_loses_no_more_than_allowed_and_nothing_allowed_is_cheaper(seed: int, loss: float) -> None:
    learned = calibrate(*answers(seed), COSTS, loss)
    assert learned.chosen.accuracy >= learned.full - loss - 1e-9
    assert all(p.cost >= learned.chosen.cost for p in learned.curve if p.accuracy >= learned.full - loss)
    assert sum(learned.chosen.used) == pytest.approx(1.0)
    assert 1 / 6 <= learned.chosen.cost <= 1.0
    assert evaluate(*answers(seed), COSTS, learned)[0] == learned.chosen


def test_it_is_much_cheaper_than_going_deep_each_time() -> None:
    learned = calibrate(*answers(1, 4000), COSTS, 0.002)
    assert learned.chosen.cost < 0.8
    other = evaluate(*answers(2, 4000), COSTS, learned)[0]
    assert other.accuracy == pytest.approx(learned.chosen.accuracy, abs=0.03)
    assert other.cost == pytest.approx(learned.chosen.cost, abs=0.05)
    assert calibrate(*answers(1), COSTS, 1.0).chosen.cost < 0.2, "anything goes: nearly always the first variant"


def test_a_temperature_makes_confidence_a_share_of_hits() -> None:
    logits, labels = answers(3, 20_000)
    for factor in (0.3, 1.0, 5.0):
        variant = logits[:, 1] * factor
        scaled = variant / temperature(variant, labels)
        scores = np.exp(scaled) / np.exp(scaled).sum(axis=1, keepdims=True)
        hits = scores.argmax(axis=1) == labels
        assert scores.max(axis=1).mean() == pytest.approx(hits.mean(), abs=0.02)


@pytest.mark.parametrize("count", [8, 60, 2000])
@pytest.mark.parametrize("margin", [0.5, 8.0])
def test_answers_that_are_all_right_do_not_make_endless_confidence(count: int, margin: float) -> None:
    labels = np.arange(count) % 5
    logits = (margin * np.eye(5)[labels]).astype(np.float32)
    logits[np.arange(count), (labels + 1) % 5] += margin / 4  # the likeliest other class
    scaled = logits / temperature(logits, labels)
    scores = np.exp(scaled) / np.exp(scaled).sum(axis=1, keepdims=True)
    assert scores.max(axis=1).mean() == pytest.approx((count + 1) / (count + 2), abs=0.02)


def test_a_choice_holds_in_each_part() -> None:
    logits, labels = answers(4, 3000)
    parts = np.arange(3000) % 3
    # In one part the first variant is always sure, and always wrong.
    logits[parts == 2, 0] = 12.0 * np.eye(5)[(labels[parts == 2] + 1) % 5]
    chosen = calibrate(logits, labels, COSTS, 0.35, parts=parts).chosen
    assert calibrate(logits, labels, COSTS, 0.35).chosen.used[0] > 0.5
    assert chosen.used[0] < 0.1


def test_what_nobody_is_told_of_is_one_answer() -> None:
    logits, labels = answers(5, 3000)
    # The first variant takes classes 3 and 4 for each other, and else knows as much as the last one.
    logits[:, 0] = logits[:, 2][:, [0, 1, 2, 4, 3]]
    told = calibrate(logits, labels, COSTS, 0.0, wanted=(0, 1, 2)).chosen
    assert told.used[0] > 0.9
    assert calibrate(logits, labels, COSTS, 0.0).chosen.cost > 0.3


def test_a_choice_that_nothing_allows_is_to_go_deep_each_time() -> None:
    labels = np.arange(40) % 5
    logits = np.repeat(8.0 * np.eye(5)[labels][:, None], 2, axis=1).astype(np.float32)
    logits[::2, 0] = logits[::2, 0][:, [1, 2, 3, 4, 0]]
    chosen = calibrate(logits, labels, (1.0, 1.0), 0.0).chosen
    assert (chosen.cost, chosen.accuracy) == (1.0, 1.0)


def test_what_cannot_be_learned_is_refused() -> None:
    logits, labels = answers(0)
    with pytest.raises(ModelError, match="one variant"):
        calibrate(logits[:, :1], labels, (1.0,), 0.0)
    with pytest.raises(ModelError, match="no labelled answers"):
        calibrate(logits[:0], labels[:0], COSTS, 0.0)
