"""Operations without an INT8 kernel in XNNPACK become others that compute the same."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("torch", reason="rewrites need the extra [optimise]")

from agent.compute.infer.litert import load_runtime
from agent.compute.tflite.read import read_modelfile

if load_runtime()[0] != "litert":
    pytest.skip("rewrites need LiteRT's schema", allow_module_level=True)

from ai_edge_litert.interpreter import Interpreter

from agent.optimise.graph.layers import Network
from agent.optimise.graph.writer import ModelWriter
from agent.optimise.quantisation.lowering import for_integers

SHAPE = (1, 6, 8, 3)
X = (4 * np.random.default_rng(5).normal(size=SHAPE)).astype(np.float32)


def file(*, window: tuple[int, int] = (6, 8)) -> bytes:
    """A picture through HARD_SWISH and an average pooling."""
    net = Network("image", shapes={"image": SHAPE})
    pooled = net.pool("AVERAGE_POOL_2D", net.each("HARD_SWISH", "image", name="swished"), window, stride=(1, 1))
    writer = ModelWriter("test")
    writer.add("main", net, ["swished", pooled], {"swished": "each", pooled: "mean"})
    return writer.pack()


def answers(content: bytes) -> dict[str, NDArray[np.float32]]:
    found: dict[str, NDArray[np.float32]] = Interpreter(model_content=content).get_signature_runner("main")(
        image=X
    )
    return found


def names(content: bytes) -> list[str]:
    return [operation.name for _, operation in read_modelfile(content).steps()]


def test_the_answers_stay() -> None:
    found, wanted = answers(for_integers(file())), answers(file())
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, atol=1e-5)


def test_a_hard_swish_becomes_products_and_a_global_average_a_mean() -> None:
    assert names(for_integers(file())) == ["ADD", "MUL", "MUL", "MEAN"]


def test_an_average_over_a_part_stays() -> None:
    assert "AVERAGE_POOL_2D" in names(for_integers(file(window=(2, 2))))


def test_a_file_without_such_operations_stays() -> None:
    content = for_integers(file())
    assert for_integers(content) == content
