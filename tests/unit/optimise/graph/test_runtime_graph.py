"""Pieces of a graph, run one after the other, compute what the whole computes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="the networks need the extra [optimise]")

from agent.errors import ModelError
from agent.optimise.graph.integers import from_range
from agent.optimise.graph.objects import load
from agent.optimise.graph.runtime_graph import GraphPiece, LayerValues, RuntimeGraph, entries_of
from tests.support.float_models import SIDE, classifier, float_file
from tests.support.graph_sketch import Sketch

X = np.random.default_rng(0).normal(size=(1, SIDE, SIDE, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def graph() -> RuntimeGraph:
    return RuntimeGraph(load(float_file(classifier())))


def whole(graph: RuntimeGraph, **options: Any) -> np.ndarray:
    (found,) = graph.piece(0, len(graph.operations), graph.inputs, graph.outputs, **options)(X)
    return np.asarray(found)


def test_pieces_compute_what_the_whole_computes(graph: RuntimeGraph) -> None:
    cuts = graph.cuts()
    assert len(cuts) == len(graph.layers)
    values = dict(zip(graph.inputs, [X], strict=True))
    for start, stop in zip(cuts, [*cuts[1:], len(graph.operations)], strict=True):
        operations = graph.operations[start:stop]
        taken = sorted({index for one in operations for index in one.inputs} & values.keys())
        made = [index for one in operations for index in one.outputs]
        piece = graph.piece(start, stop, taken, made)
        values |= zip(made, piece(*(values[index] for index in taken)), strict=True)
    np.testing.assert_allclose(values[graph.outputs[0]], whole(graph), rtol=1e-4, atol=1e-4)


def test_weights_in_place_of_those_of_a_layer_change_this_run_alone(graph: RuntimeGraph) -> None:
    before, last = whole(graph), graph.layers[-1]
    values = graph.values(last)
    assert values.bias is not None
    still = LayerValues(np.zeros_like(values.weights), values.bias)
    np.testing.assert_allclose(whole(graph, layers={last.key: still})[0], values.bias, rtol=1e-6)
    np.testing.assert_array_equal(whole(graph), before)


def test_a_result_with_a_scale_is_rounded_to_it(graph: RuntimeGraph) -> None:
    scale, (output,) = from_range(-100.0, 100.0), graph.outputs
    found = whole(graph, scales={graph.name(output): scale})
    steps = found / scale.scale
    np.testing.assert_allclose(steps, np.round(steps), atol=1e-3)
    assert np.abs(found - whole(graph)).max() <= scale.scale / 2 + 1e-5


def test_views_are_what_copies_are(graph: RuntimeGraph) -> None:
    piece = graph.piece(0, len(graph.operations), graph.inputs, graph.outputs)
    copied = piece.views(X)[0].copy()
    np.testing.assert_array_equal(copied, piece(X)[0])


def test_a_graph_without_signature_is_its_own_entry() -> None:
    sketch = Sketch()
    x = sketch.tensor((1, 4))
    (graph,) = entries_of(load(sketch.file([x], [sketch.same("FLOOR", [x])])))
    assert graph.cuts() == [0]
    assert not graph.takes_integers(graph.operations[0])


def test_what_the_runtime_refuses_is_told() -> None:
    with pytest.raises(ModelError, match="the runtime cannot run it"):
        GraphPiece(b"no model")
