"""Channels of equal range: the float model answers as before, and INT8 loses less."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="quantising needs the extra [optimise]")
from ai_edge_litert.interpreter import Interpreter

from agent.models.library import open_whole_model
from agent.optimise.data import read_examples
from agent.optimise.graph.layers import RELU, Convolution, Network
from agent.optimise.graph.objects import load
from agent.optimise.graph.torch_graph import GraphOverrides, TorchGraph
from agent.optimise.graph.writer import ModelWriter
from agent.optimise.qat import FakeQuantised
from agent.optimise.quantisation.lowering import channel_factors, equalise
from agent.optimise.quantise import quantise
from agent.optimise.recipe import QuantiseRecipe
from tests.support.float_models import CLASSES, SIDE, write_examples, write_model

torch.set_num_threads(1)
RANDOM = np.random.default_rng(11)
WIDTH = 8
UNEQUAL = 2.0 ** -np.arange(WIDTH)
"""Ranges of channels, which the layer behind them makes good."""


def separable(*, shared: bool = False) -> bytes:
    """A depthwise convolution whose channels have unequal ranges, and a 1×1 one that makes them equal again."""

    def weights(*shape: int) -> Any:
        return RANDOM.normal(size=shape).astype(np.float32)

    net = Network("image", shapes={"image": (1, SIDE, SIDE, 3)})
    x = net.convolve("image", Convolution(weights(1, 1, 3, WIDTH), np.zeros(WIDTH, np.float32)), activation=RELU)
    deep = Convolution((weights(3, 3, 1, WIDTH) * UNEQUAL).astype(np.float32), np.zeros(WIDTH, np.float32))
    x = net.convolve(x, deep, depthwise=True)
    point = Convolution(
        (weights(1, 1, WIDTH, CLASSES) / UNEQUAL[:, None]).astype(np.float32), np.zeros(CLASSES, np.float32)
    )
    first = net.convolve(x, point)
    x = net.combine("ADD", first, net.convolve(x, point)) if shared else first
    output = net.reduce("MEAN", x, (1, 2))
    writer = ModelWriter("separable")
    writer.add("serving_default", net, [output], {output: "scores"})
    return writer.pack()


def answers(content: bytes, x: Any) -> Any:
    runner = Interpreter(model_content=content, num_threads=1).get_signature_runner("serving_default")
    (name,) = runner.get_input_details()
    (found,) = runner(**{name: x}).values()
    return found


def inputs(count: int = 32) -> list[tuple[Any]]:
    random = np.random.default_rng(2)
    return [(random.normal(size=(1, SIDE, SIDE, 3)).astype(np.float32),) for _ in range(count)]


def test_the_float_model_answers_the_same_to_the_bit() -> None:
    content = separable()
    found, count = equalise(content, inputs())
    assert count == 2
    for (x,) in inputs(4):
        assert np.array_equal(answers(content, x), answers(found, x))


def test_channels_become_as_wide_as_the_widest_within_a_factor_of_two() -> None:
    found, _ = equalise(separable(), inputs())
    graph = TorchGraph(load(found))
    deep = next(layer for layer in graph.layers if layer.operation.kind == "DEPTHWISE_CONV_2D")
    seen: dict[int, Any] = {}

    def observe(index: int, value: Any) -> Any:
        widths = value.abs().reshape(-1, value.shape[-1]).amax(0)
        seen[index] = torch.maximum(seen.get(index, widths), widths)
        return value

    for (x,) in inputs():
        with torch.inference_mode():
            graph(torch.from_numpy(x), overrides=GraphOverrides(activation=observe))
    widths = seen[deep.operation.outputs[0]]
    assert float(widths.max() / widths[: WIDTH - 3].min()) < 4.0


def test_int8_loses_less(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = separable()
    examples = read_examples(
        write_examples(tmp_path / "examples.npz"), open_whole_model(str(write_model(tmp_path, content)))
    )
    pictures = examples.batch(range(len(examples)))
    with torch.inference_mode():
        (wanted,) = TorchGraph(load(content))(torch.from_numpy(pictures))

    def error() -> float:
        made = quantise(content, [examples], QuantiseRecipe(method="int8", examples=32))
        graph = TorchGraph(load(made.quantiser.content))
        with torch.inference_mode():
            (found,) = FakeQuantised(graph, made.scales, made.rounded)(torch.from_numpy(pictures))
        return float((found - wanted).square().mean() / wanted.var())

    equalised = error()
    monkeypatch.setattr("agent.optimise.quantise.equalise", lambda content, _: (content, 0))
    assert equalised < 0.5 * error()


def test_a_layer_that_two_places_share_stays() -> None:
    content = separable(shared=True)
    found, count = equalise(content, inputs())
    assert count == 1  # the first convolution and the depthwise one
    ((x,),) = inputs(1)
    np.testing.assert_allclose(answers(found, x), answers(content, x), atol=1e-3)


@given(st.lists(st.floats(0.0, 1e6), min_size=1, max_size=20))
def test_factors_are_powers_of_two_that_never_pass_the_widest(widths: list[float]) -> None:
    given_widths = np.array(widths)
    factors = channel_factors(given_widths)
    exponents = np.log2(factors)
    assert np.all(exponents == np.round(exponents))
    assert np.all((factors >= 1.0) & (factors <= 32.0))
    assert np.all(given_widths * factors <= given_widths.max() * (1 + 1e-12))
