"""Files of written networks, as LiteRT runs them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

pytest.importorskip("ai_edge_litert", reason="the schema comes with LiteRT")
from ai_edge_litert.interpreter import Interpreter

from agent.optimise.graph.layers import RELU, Convolution, Network
from agent.optimise.graph.objects import load
from agent.optimise.graph.operations import VERSIONS
from agent.optimise.graph.writer import ModelWriter

Array = Any
X = np.random.default_rng(0).normal(size=(1, 4, 6, 4)).astype(np.float32)
KERNEL = np.random.default_rng(1).normal(size=(1, 1, 4, 3)).astype(np.float32)
BIAS = np.array([1.0, -1.0, 0.5], np.float32)


def run(build: Callable[[Network], str]) -> Array:
    net = Network("image", shapes={"image": X.shape})
    output = build(net)
    writer = ModelWriter("test")
    writer.add("main", net, [output], {output: "result"})
    runner = Interpreter(model_content=writer.pack()).get_signature_runner("main")
    result = runner(image=X)["result"]
    assert result.shape == net.shapes[output]
    return result


EACH: dict[str, Callable[[Array], Array]] = {
    "ABS": np.abs,
    "ELU": lambda x: np.where(x < 0, np.expm1(x), x),
    "EXP": np.exp,
    "HARD_SWISH": lambda x: x * np.clip(x + 3, 0, 6) / 6,
    "LOGISTIC": lambda x: 1 / (1 + np.exp(-x)),
    "NEG": np.negative,
    "RELU": lambda x: np.maximum(x, 0),
    "RELU6": lambda x: np.clip(x, 0, 6),
    "RELU_N1_TO_1": lambda x: np.clip(x, -1, 1),
    "SOFTMAX": lambda x: np.exp(x) / np.exp(x).sum(axis=-1, keepdims=True),
    "SQUARE": np.square,
    "TANH": np.tanh,
}


@pytest.mark.parametrize("op", EACH)
def test_elementwise_operations(op: str) -> None:
    np.testing.assert_allclose(run(lambda net: net.each(op, "image")), EACH[op](X), rtol=1e-4, atol=1e-5)


def test_a_leaky_relu_has_its_own_slope() -> None:
    found = run(lambda net: net.each("LEAKY_RELU", "image", alpha=0.3))
    np.testing.assert_allclose(found, np.where(X < 0, 0.3 * X, X), rtol=1e-6)


PAIRS: dict[str, Callable[[Array, Array], Array]] = {
    "ADD": np.add,
    "DIV": np.divide,
    "MAXIMUM": np.maximum,
    "MINIMUM": np.minimum,
    "MUL": np.multiply,
    "SUB": np.subtract,
}


@pytest.mark.parametrize("op", PAIRS)
def test_operations_with_a_constant_on_either_side(op: str) -> None:
    constant = np.array([2.0, 3.0, 4.0, 5.0], np.float32)
    behind = run(lambda net: net.combine(op, "image", net.constant("c", constant)))
    np.testing.assert_allclose(behind, PAIRS[op](X, constant), rtol=1e-5)
    before = run(lambda net: net.combine(op, net.constant("c", constant), "image"))
    np.testing.assert_allclose(before, PAIRS[op](constant, X), rtol=1e-5)


SHAPED: dict[str, tuple[Callable[[Network], str], Array]] = {
    "reshape": (lambda net: net.reshape("image", (1, 24, 4)), X.reshape(1, 24, 4)),
    "transpose": (lambda net: net.transpose("image", (0, 3, 1, 2)), X.transpose(0, 3, 1, 2)),
    "pad": (
        lambda net: net.pad("image", ((0, 0), (1, 0), (0, 2), (0, 0))),
        np.pad(X, ((0, 0), (1, 0), (0, 2), (0, 0))),
    ),
    "cut": (lambda net: net.cut("image", 2, 1, 4), X[:, :, 1:4]),
    "join": (lambda net: net.join("image", "image", axis=2), np.concatenate([X, X], 2)),
    "mean": (lambda net: net.reduce("MEAN", "image", (1, 2)), X.mean(axis=(1, 2))),
    "maximum": (lambda net: net.reduce("REDUCE_MAX", "image", (3,), keep=True), X.max(axis=3, keepdims=True)),
    "sum": (lambda net: net.reduce("SUM", "image", (1,)), X.sum(axis=1)),
    "product": (lambda net: net.multiply("image", "image", (True, False)), np.swapaxes(X, 2, 3) @ X),
    "max-pool": (
        lambda net: net.pool("MAX_POOL_2D", "image", (2, 3), stride=(2, 3)),
        X.reshape(1, 2, 2, 2, 3, 4).max(axis=(2, 4)),
    ),
    "average-pool": (
        lambda net: net.pool("AVERAGE_POOL_2D", "image", (2, 3), stride=(2, 3)),
        X.reshape(1, 2, 2, 2, 3, 4).mean(axis=(2, 4)),
    ),
    "nearest": (
        lambda net: net.add("RESIZE_NEAREST_NEIGHBOR", "image", shape=(1, 8, 12, 4), sampling="edges"),
        X.repeat(2, axis=1).repeat(2, axis=2),
    ),
    "convolution": (
        lambda net: net.convolve("image", Convolution(KERNEL, BIAS), activation=RELU),
        np.maximum(X @ KERNEL[0, 0] + BIAS, 0),
    ),
    "connection": (lambda net: net.connect("image", Convolution(KERNEL, BIAS)), X @ KERNEL[0, 0] + BIAS),
    "depthwise": (
        lambda net: net.convolve(
            "image",
            Convolution(np.arange(8, dtype=np.float32).reshape(1, 1, 1, 8), np.ones(8, np.float32)),
            depthwise=True,
        ),
        X.repeat(2, axis=3) * np.arange(8) + 1,
    ),
    "blocks": (
        lambda net: net.add("DEPTH_TO_SPACE", "image", shape=(1, 8, 12, 1)),
        X.reshape(1, 4, 6, 2, 2, 1).transpose(0, 1, 3, 2, 4, 5).reshape(1, 8, 12, 1),
    ),
}


@pytest.mark.parametrize("name", SHAPED)
def test_operations_that_change_the_shape(name: str) -> None:
    build, expected = SHAPED[name]
    np.testing.assert_allclose(run(build), expected, rtol=1e-4, atol=1e-5)


def test_every_operation_is_one_of_the_schema() -> None:
    from ai_edge_litert import schema_py_generated as schema

    assert [op for op in VERSIONS if not hasattr(schema.BuiltinOperator, op)] == []


def test_equal_weights_of_two_signatures_are_stored_once() -> None:
    writer, sizes = ModelWriter(), []
    kernel = np.random.default_rng(2).normal(size=(3, 3, 4, 64)).astype(np.float32)
    for key, height in (("large", 8), ("small", 4)):
        net = Network("image", shapes={"image": (1, height, 8, 4)})
        writer.add(key, net, [net.convolve("image", Convolution(kernel, np.zeros(64, np.float32)))])
        sizes.append(len(writer.pack()))
    assert sizes[1] - sizes[0] < kernel.nbytes / 4
    model = load(writer.pack())
    assert [signature.signatureKey for signature in model.signatureDefs] == [b"large", b"small"]
