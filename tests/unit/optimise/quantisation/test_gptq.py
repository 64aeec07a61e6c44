"""Rounding that lets errors cancel out does less damage than rounding to the nearest."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("torch", reason="the networks need the extra [optimise]")

from agent.optimise.graph.objects import load
from agent.optimise.graph.runtime_graph import RuntimeGraph
from agent.optimise.quantisation import gptq
from tests.support.float_models import SIDE, classifier, float_file

sizes = st.integers(1, 3), st.integers(1, 6), st.integers(2, 90)


def inputs(groups: int, count: int, seed: int) -> Any:
    """Inputs that go together, [groups, places, in]."""
    mixing = drawn((groups, count, count), seed)
    return drawn((groups, 400, count), seed + 10_000) @ mixing


def drawn(shape: tuple[int, ...], seed: int) -> Any:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def moments(x: Any, quantised: Any) -> gptq.Moments:
    count = x.shape[1]
    x, quantised = x.astype(np.float64), quantised.astype(np.float64)
    return gptq.Moments(
        quantised.transpose(0, 2, 1) @ quantised / count,
        x.transpose(0, 2, 1) @ quantised / count,
        x.mean(1),
        quantised.mean(1),
    )


def damage(matrix: Any, rounded: Any, x: Any) -> float:
    return float(np.square((matrix - rounded) @ x.astype(np.float64).transpose(0, 2, 1)).mean())


@given(*sizes, st.integers(0, 1000), st.sampled_from([4, 8]))
def test_rounded_weights_are_integers_of_so_many_bits(
    groups: int, outputs: int, count: int, seed: int, bits: int
) -> None:
    x = inputs(groups, count, seed)
    matrix = drawn((groups, outputs, count), seed + 1)
    products = moments(x, x).products
    integers = gptq.round_weights(
        matrix, gptq.best_scales(matrix, bits, np.diagonal(products, axis1=1, axis2=2)), bits, products
    )
    low, high = gptq.limits(bits)
    assert np.array_equal(integers, np.rint(integers))
    assert low <= float(integers.min())
    assert float(integers.max()) <= high


@given(st.integers(2, 90), st.integers(0, 100_000), st.sampled_from([4, 8]))
def test_rounding_on_inputs_does_no_more_damage_than_to_the_nearest(count: int, seed: int, bits: int) -> None:
    """In a layer as a whole: it is greedy, so that a single output may lose."""
    x = inputs(1, count, seed)
    matrix = drawn((1, 64, count), seed + 1)
    products = moments(x, x).products
    scales = gptq.best_scales(matrix, bits, np.diagonal(products, axis1=1, axis2=2))
    found, nearest = (
        damage(matrix, integers * scales, x)
        for integers in (
            gptq.round_weights(matrix, scales, bits, products),
            gptq.nearest(matrix, scales, *gptq.limits(bits)),
        )
    )
    assert found <= nearest * 1.01


def test_rounding_on_inputs_that_go_together_halves_the_damage() -> None:
    x = inputs(1, 64, 0)
    matrix = drawn((1, 32, 64), 1)
    products = moments(x, x).products
    scales = gptq.best_scales(matrix, 4, np.diagonal(products, axis1=1, axis2=2))
    nearest = damage(matrix, gptq.nearest(matrix, scales, -8, 7) * scales, x)
    assert damage(matrix, gptq.round_weights(matrix, scales, 4, products) * scales, x) < nearest / 2


def test_inputs_that_never_occur_do_no_harm() -> None:
    x = inputs(1, 12, 3)
    x[..., 4:8] = 0.0
    matrix = np.ones((1, 3, 12), np.float32)
    products = moments(x, x).products
    integers = gptq.round_weights(matrix, gptq.best_scales(matrix, 8), 8, products)
    assert np.isfinite(integers).all()


def test_a_correction_brings_outputs_closer_to_those_of_the_float_network() -> None:
    x = inputs(1, 24, 4)
    quantised = np.rint(x / 2.0) * 2.0 + 0.3
    matrix = drawn((1, 8, 24), 5)
    wanted = x @ matrix.transpose(0, 2, 1)

    def error(weights: Any, bias: Any) -> float:
        return float(np.square(quantised @ weights.transpose(0, 2, 1) + bias - wanted).mean())

    weights, bias = gptq.corrected(matrix, moments(x, quantised), ridge=0.01)
    assert error(weights, bias) < error(matrix, 0.0) * 0.75
    kept, none = gptq.corrected(matrix, moments(x, quantised), ridge=1e9)
    np.testing.assert_allclose(kept, matrix, atol=1e-4, rtol=1e-4)
    assert float(np.abs(none).max()) < 1e-4


def test_patches_times_weights_are_the_layer() -> None:
    graph = RuntimeGraph(load(float_file(classifier())))
    for at, operation in enumerate(graph.operations):
        if (layer := graph.layer_at.get(operation.outputs[0])) is None:
            continue
        x = drawn(graph.shape(operation.inputs[0]), at)
        values = graph.values(layer)
        still = {layer.key: values._replace(bias=None if values.bias is None else np.zeros_like(values.bias))}
        operation.options.fusedActivationFunction = 0
        (whole,) = graph.piece(at, at + 1, operation.inputs[:1], operation.outputs, still)(x)
        matrix = gptq.as_matrix(layer, values.weights)
        np.testing.assert_array_equal(gptq.from_matrix(layer, matrix), values.weights)
        found = gptq.patches(layer, x, 10**6, 0) @ matrix.transpose(0, 2, 1)
        everything = found.transpose(1, 0, 2).reshape(-1, whole.shape[-1])
        # The places come in random order.
        wanted = whole.reshape(-1, whole.shape[-1])
        np.testing.assert_allclose(everything.sum(0), wanted.sum(0), atol=1e-3, rtol=1e-3)


def test_all_places_are_within_the_picture() -> None:
    graph = RuntimeGraph(load(float_file(classifier())))
    for layer in graph.layers:
        shape = graph.shape(layer.operation.inputs[0])
        seen = gptq.patches(layer, np.ones((3, *shape[1:]), np.float32), 5, 1)
        assert seen.shape[0] == layer.groups
        assert seen.shape[1] in (3, 15)
    assert SIDE > 5
