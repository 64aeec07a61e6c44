"""States that are told by a few examples: what is learned, what is unsure, and what is followed over time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from agent.compute.states import (
    GRID,
    UNSURE,
    LeftOut,
    StateAnswer,
    StateHead,
    StateSensor,
    confused_values,
    leave_one_out,
    pool_region,
    vary,
)
from agent.compute.tflite.model import TensorSpec
from agent.compute.vision import is_feature_map
from agent.types import WHOLE

S = 1_000_000_000
EDGE = st.floats(0.0, 1.0)


def spec(*shape: int, name: str = "features", scale: float = 0.0, zero: int = 0) -> TensorSpec:
    return TensorSpec(name, shape, "int8" if scale else "float32", scale, zero)


def examples(seed: int, centres: dict[str, float], count: int = 6, size: int = 40) -> dict[str, NDArray[Any]]:
    """Embeddings that differ along one direction, with noise in all of them."""
    random = np.random.default_rng(seed)
    axis = random.normal(size=size).astype(np.float32)
    axis /= np.linalg.norm(axis)
    return {
        name: (centre * axis + 0.02 * random.normal(size=(count, size))).astype(np.float32)
        for name, centre in centres.items()
    }


@given(st.integers(1, 40), st.integers(1, 40), st.tuples(EDGE, EDGE, EDGE, EDGE))
def test_every_region_has_an_embedding_within_the_values_of_the_map(
    height: int, width: int, edges: tuple[float, float, float, float]
) -> None:
    left, right = sorted(edges[:2])
    top, bottom = sorted(edges[2:])
    made = np.random.default_rng(0).uniform(-1, 1, (1, height, width, 4)).astype(np.float32)
    found = pool_region(made, spec(1, height, width, 4), (left, top, right, bottom))
    assert found.shape == ((GRID * GRID + 1) * 4,)
    assert found.min() >= made.min() - 1e-6
    assert found.max() <= made.max() + 1e-6


def test_cells_lie_where_the_region_is() -> None:
    made = np.zeros((1, 12, 12, 1), np.float32)
    made[0, 6:, 6:] = 1.0
    *cells, largest = pool_region(made, spec(1, 12, 12, 1), WHOLE).tolist()
    found = np.reshape(cells, (GRID, GRID))
    assert largest == 1.0
    assert found[0, 0] == 0.0
    assert found[2, 2] == 1.0
    assert found[1, 1] == pytest.approx(0.25)
    assert pool_region(made, spec(1, 12, 12, 1), (0.5, 0.5, 1.0, 1.0)).tolist() == [1.0] * 10


def test_a_quantised_map_gives_real_values() -> None:
    stored = np.full((1, 6, 6, 2), 30, np.int8)
    assert pool_region(stored, spec(1, 6, 6, 2, scale=0.5, zero=10), WHOLE).tolist() == [10.0] * 20


def test_only_a_map_called_features_counts() -> None:
    assert is_feature_map(spec(1, 26, 26, 8))
    assert not is_feature_map(spec(1, 26, 26, 8, name="scores"))
    assert not is_feature_map(spec(1, 26))


@given(st.integers(0, 10_000), st.integers(5, 20), st.integers(2, 4))
def test_values_are_told_and_what_lies_between_or_elsewhere_is_unsure(seed: int, count: int, values: int) -> None:
    found = examples(seed, {f"v{number}": float(number) for number in range(values)}, count)
    head = StateHead(found)
    for name, some in found.items():
        for one in some:
            answer = head.classify(one)
            assert (answer.value, answer.unlike) == (name, False)
            assert answer.score > 0.5
    middle = (found["v0"].mean(axis=0) + found["v1"].mean(axis=0)) / 2
    assert head.classify(middle).value == UNSURE
    far = found["v0"][0] + np.random.default_rng(seed).normal(size=40).astype(np.float32) * 5
    assert head.classify(far) == StateAnswer(UNSURE, *head.classify(far)[1:3], True)


@given(st.integers(0, 1000))
def test_the_order_of_the_values_changes_nothing(seed: int) -> None:
    found = examples(seed, {"a": 0.0, "b": 1.0, "c": 2.0})
    other = StateHead(dict(reversed(found.items())))
    for one in found["b"]:
        assert StateHead(found).classify(one).value == other.classify(one).value == "b"


def test_one_value_or_two_alike_cannot_be_told() -> None:
    one = np.ones((6, 8), np.float32)
    with pytest.raises(ValueError, match="at least two"):
        StateHead({"a": one})
    with pytest.raises(ValueError, match="alike"):
        StateHead({"a": one, "b": one.copy()})


def test_an_example_is_checked_by_the_others_alone() -> None:
    found = examples(3, {"a": 0.0, "b": 1.0})
    groups = {name: [np.stack([row, row]) for row in some] for name, some in found.items()}
    assert leave_one_out(groups) == {"a": LeftOut(6, 0, 0), "b": LeftOut(6, 0, 0)}
    groups["a"][0], groups["b"][0] = groups["b"][0], groups["a"][0]
    swapped = leave_one_out(groups)
    assert (swapped["a"].right, swapped["b"].right) == (5, 5)
    assert swapped["a"].count == 6
    assert leave_one_out({"a": groups["a"][:1], "b": groups["b"]})["a"] == LeftOut(0, 1, 0)


def confused(found: dict[str, NDArray[Any]]) -> tuple[str, ...]:
    return confused_values({name: list(some[:, None]) for name, some in found.items()})


@given(st.integers(0, 1000), st.integers(5, 20))
def test_values_that_differ_are_not_confused(seed: int, count: int) -> None:
    assert confused(examples(seed, {"a": 0.0, "b": 1.0, "c": 2.0}, count)) == ()


def test_values_without_any_difference_are_confused_and_stay_unsure_beside_another() -> None:
    found = [examples(seed, {"a": 0.0, "b": 0.0, "c": 2.0}, 10, 1000) for seed in range(60)]
    alike = [one for one in found if confused(one) == ("a", "b")]
    assert len(alike) >= 58
    head = StateHead(alike[0], ("a", "b"))
    assert {head.classify(one).value for name in "ab" for one in alike[0][name]} == {UNSURE}
    assert {head.classify(one).value for one in alike[0]["c"]} == {"c"}


def test_variations_are_darker_and_brighter() -> None:
    picture = np.full((4, 4, 3), 120, np.uint8)
    dark, bright = vary(picture)
    assert dark.max() < 120 < bright.min()
    assert dark.shape == picture.shape


def sure(value: str) -> StateAnswer:
    return StateAnswer(value, value, 1.0)


def test_a_value_is_taken_when_answers_agree_for_a_second() -> None:
    sensor = StateSensor()
    assert [sensor.update(sure("open"), at * S // 2) for at in range(4)] == [False, False, True, False]
    assert (sensor.value, sensor.is_settling) == ("open", False)
    assert not sensor.update(sure("closed"), 2 * S)
    assert sensor.is_settling
    assert not sensor.update(sure("open"), 3 * S)
    assert (sensor.value, sensor.is_settling) == ("open", False)


def test_who_passes_by_makes_no_state_unsure() -> None:
    sensor, unsure = StateSensor(), StateAnswer(UNSURE, "open", 0.1)
    for at in range(3):
        sensor.update(sure("open"), at * S)
    assert not any(sensor.update(unsure, (3 + at) * S) for at in range(5))
    assert sensor.update(unsure, 8 * S)
    assert sensor.value == UNSURE


@given(st.lists(st.tuples(st.sampled_from(["a", "b", UNSURE]), st.integers(1, 3 * S)), max_size=30))
def test_a_value_never_changes_sooner_than_it_settles(steps: list[tuple[str, int]]) -> None:
    sensor, now, since, last = StateSensor(), 0, 0, ""
    for value, step in steps:
        now += step
        if value != last:
            since, last = now, value
        before = sensor.value
        if sensor.update(StateAnswer(value, value, 0.5), now):
            assert (sensor.value, before != value) == (value, True)
            assert now - since >= (5 * S if value == UNSURE else S)
        else:
            assert sensor.value == before
