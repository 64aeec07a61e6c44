"""Rounding that lets errors cancel out does less damage than rounding to the nearest."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="quantising needs the extra [optimise]")

from agent.optimise.graph.objects import load
from agent.optimise.graph.torch_graph import TorchGraph, linear
from agent.optimise.quantisation import gptq
from tests.support.float_models import SIDE, classifier, float_file

sizes = st.integers(1, 3), st.integers(1, 6), st.integers(2, 90)


def inputs(groups: int, count: int, seed: int) -> Any:
    """Inputs that go together, [groups, places, in]."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn((groups, count, count), generator=generator)
    return torch.randn((groups, 400, count), generator=generator) @ mixing


def moments(x: Any, quantised: Any) -> gptq.Moments:
    count = x.shape[1]
    return gptq.Moments(
        (quantised.transpose(1, 2) @ quantised).double() / count,
        (x.transpose(1, 2) @ quantised).double() / count,
        x.double().mean(1),
        quantised.double().mean(1),
    )


def damage(matrix: Any, rounded: Any, x: Any) -> float:
    return float(((matrix - rounded).double() @ x.double().transpose(1, 2)).square().mean())


@given(*sizes, st.integers(0, 1000), st.sampled_from([4, 8]))
def test_rounded_weights_are_integers_of_so_many_bits(
    groups: int, outputs: int, count: int, seed: int, bits: int
) -> None:
    x = inputs(groups, count, seed)
    matrix = torch.randn((groups, outputs, count), generator=torch.Generator().manual_seed(seed + 1))
    products = moments(x, x).products
    integers = gptq.round_weights(matrix, gptq.best_scales(matrix, bits, products), bits, products)
    low, high = gptq.limits(bits)
    assert torch.equal(integers, integers.round())
    assert low <= float(integers.min())
    assert float(integers.max()) <= high


@given(st.integers(2, 90), st.integers(0, 100_000), st.sampled_from([4, 8]))
def test_rounding_on_inputs_does_no_more_damage_than_to_the_nearest(count: int, seed: int, bits: int) -> None:
    """In a layer as a whole: it is greedy, so that a single output may lose."""
    x = inputs(1, count, seed)
    matrix = torch.randn((1, 64, count), generator=torch.Generator().manual_seed(seed + 1))
    products = moments(x, x).products
    scales = gptq.best_scales(matrix, bits, products)
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
    matrix = torch.randn((1, 32, 64), generator=torch.Generator().manual_seed(1))
    products = moments(x, x).products
    scales = gptq.best_scales(matrix, 4, products)
    nearest = damage(matrix, gptq.nearest(matrix, scales, -8, 7) * scales, x)
    assert damage(matrix, gptq.round_weights(matrix, scales, 4, products) * scales, x) < nearest / 2


def test_inputs_that_never_occur_do_no_harm() -> None:
    x = inputs(1, 12, 3)
    x[..., 4:8] = 0.0
    matrix = torch.ones((1, 3, 12))
    products = moments(x, x).products
    integers = gptq.round_weights(matrix, gptq.best_scales(matrix, 8, products), 8, products)
    assert torch.isfinite(integers).all()


def test_a_correction_brings_outputs_closer_to_those_of_the_float_network() -> None:
    x = inputs(1, 24, 4)
    quantised = (x / 2.0).round() * 2.0 + 0.3
    matrix = torch.randn((1, 8, 24), generator=torch.Generator().manual_seed(5))
    wanted = x @ matrix.transpose(1, 2)

    def error(weights: Any, bias: Any) -> float:
        return float((quantised @ weights.transpose(1, 2) + bias - wanted).square().mean())

    weights, bias = gptq.corrected(matrix, moments(x, quantised), ridge=0.01)
    assert error(weights, bias.float()) < error(matrix, 0.0) * 0.75
    kept, none = gptq.corrected(matrix, moments(x, quantised), ridge=1e9)
    torch.testing.assert_close(kept, matrix, atol=1e-4, rtol=1e-4)
    assert float(none.abs().max()) < 1e-4


def test_patches_times_weights_are_the_layer() -> None:
    graph = TorchGraph(load(float_file(classifier())))
    generator = torch.Generator().manual_seed(0)
    for layer in graph.layers:
        x = torch.randn((2, *graph.shape(layer.operation.inputs[0])[1:]), generator=generator)
        with torch.inference_mode():
            wanted = linear(layer, x, graph.weights(layer), None)
            matrix = gptq.as_matrix(layer, graph.weights(layer))
            torch.testing.assert_close(gptq.from_matrix(layer, matrix), graph.weights(layer))
            seen = gptq.patches(layer, x, 10**6, generator)
            found = seen @ matrix.transpose(1, 2)
        everything = found.permute(1, 0, 2).reshape(2, -1, wanted.shape[-1])
        whole = wanted.reshape(2, -1, wanted.shape[-1])
        # The places come in random order.
        torch.testing.assert_close(everything.sum(1), whole.sum(1), atol=1e-3, rtol=1e-3)


def test_all_places_are_within_the_picture() -> None:
    graph = TorchGraph(load(float_file(classifier())))
    for layer in graph.layers:
        shape = graph.shape(layer.operation.inputs[0])
        seen = gptq.patches(layer, torch.ones((3, *shape[1:])), 5, torch.Generator().manual_seed(1))
        assert seen.shape[0] == layer.groups
        assert seen.shape[1] in (3, 15)
    assert SIDE > 5
