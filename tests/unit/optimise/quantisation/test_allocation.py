"""The layers with 4 bits are those that cost least for the bytes that are needed."""

from __future__ import annotations

from itertools import chain, combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("torch", reason="the networks need the extra [optimise]")

from agent.errors import ModelError
from agent.optimise.graph.objects import load
from agent.optimise.graph.runtime_graph import RuntimeGraph
from agent.optimise.quantisation.allocation import choose, damage, fits_int4, sensitivities
from tests.support.float_models import SIDE, classifier, float_file

layers = st.lists(st.tuples(st.floats(0.0, 10.0), st.integers(1, 500)), min_size=1, max_size=8)


@settings(deadline=None)
@given(layers, st.floats(0.0, 1.0))
def test_no_other_choice_that_saves_enough_costs_less(found: list[tuple[float, int]], share: float) -> None:
    costs = {(number, 0): cost for number, (cost, _) in enumerate(found)}
    savings = {(number, 0): saved for number, (_, saved) in enumerate(found)}
    needed = share * sum(savings.values())
    chosen = choose(costs, savings, needed)
    assert sum(savings[key] for key in chosen) >= needed - 1e-6
    every = chain.from_iterable(combinations(costs, size) for size in range(len(costs) + 1))
    best = min(sum(costs[key] for key in one) for one in every if sum(savings[key] for key in one) >= needed)
    assert sum(costs[key] for key in chosen) <= best + 1e-4


def test_more_than_there_is_cannot_be_saved() -> None:
    with pytest.raises(ModelError, match="save 5 of 9 bytes"):
        choose({(1, 0): 1.0}, {(1, 0): 5}, 9)


def test_nothing_is_chosen_where_nothing_is_needed() -> None:
    assert choose({(1, 0): 1.0}, {(1, 0): 5}, 0) == set()


def test_a_layer_that_the_outputs_do_not_feel_is_not_sensitive() -> None:
    module = classifier()
    module.point.weight.data.mul_(1e-4)
    graph = RuntimeGraph(load(float_file(module)))
    wanted = [layer for layer in graph.layers if fits_int4(layer)]
    assert {layer.operation.kind for layer in wanted} == {"CONV_2D"}
    x = np.random.default_rng(0).uniform(-1, 1, (8, 1, SIDE, SIDE, 3)).astype(np.float32)
    found = sensitivities(graph, [(one,) for one in x], wanted, lambda _: None)
    point = next(layer for layer in wanted if layer.shape[1:3] == (1, 1))
    assert found[point.key] == min(found.values())
    assert all(cost >= 0 for cost in found.values())


def test_damage_is_a_share_of_the_variance() -> None:
    wanted = np.array([[0.0, 2.0]])
    assert damage([wanted + 1.0], [wanted]) == pytest.approx(0.5)
