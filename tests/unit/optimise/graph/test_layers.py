"""Shapes and sizes of networks built layer by layer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from agent.optimise.graph.layers import RELU, Convolution, Network


def network() -> Network:
    return Network("image", shapes={"image": (1, 9, 8, 3)})


def weights(height: int, width: int, inputs: int, outputs: int) -> Convolution:
    kernel = np.random.default_rng(0).normal(size=(height, width, inputs, outputs)).astype(np.float32)
    return Convolution(kernel, np.ones(outputs, np.float32))


@pytest.mark.parametrize(
    ("needs", "size"),
    [
        ({}, (9, 8)),
        ({"stride": (2, 2)}, (5, 4)),
        ({"padding": "VALID"}, (7, 6)),
        ({"padding": "VALID", "stride": (2, 2)}, (4, 3)),
        ({"padding": "VALID", "dilation": (2, 3)}, (5, 2)),
    ],
)
def test_a_convolution_has_the_size_that_tensorflow_defines(needs: dict[str, str], size: tuple[int, int]) -> None:
    net = network()
    assert net.shapes[net.convolve("image", weights(3, 3, 3, 5), **needs)] == (1, *size, 5)  # type: ignore[arg-type]


def test_shapes_follow_the_operations() -> None:
    net = network()
    x = net.convolve("image", weights(3, 3, 1, 6), depthwise=True, activation=RELU)
    assert net.shapes[x] == (1, 9, 8, 6)
    assert net.layer(x).multiplier == 2  # type: ignore[union-attr]
    assert net.shapes[net.pool("MAX_POOL_2D", x, (3, 2), stride=(3, 2))] == (1, 3, 4, 6)
    assert net.shapes[net.pad(x, ((0, 0), (1, 2), (0, 1), (0, 0)))] == (1, 12, 9, 6)
    assert net.shapes[net.join(x, x, axis=1)] == (1, 18, 8, 6)
    assert net.shapes[net.cut(x, 3, 2, 5)] == (1, 9, 8, 3)
    assert net.shapes[net.transpose(x, (0, 3, 1, 2))] == (1, 6, 9, 8)
    assert net.shapes[net.reduce("MEAN", x, (1, 2))] == (1, 6)
    assert net.shapes[net.reduce("MEAN", x, (1, 2), keep=True)] == (1, 1, 1, 6)
    assert net.shapes[net.combine("ADD", net.constant("c", np.ones((1, 1, 6))), x)] == (1, 9, 8, 6)
    rows = net.reshape(x, (1, 72, 6))
    assert net.shapes[net.multiply(rows, rows, (False, True))] == (1, 72, 72)
    assert net.shapes[net.multiply(rows, rows, (True, False))] == (1, 6, 6)
    assert net.shapes[net.connect(rows, weights(1, 1, 6, 4))] == (1, 72, 4)


def test_multiply_adds_count_kernels_matrices_and_products() -> None:
    net = network()
    x = net.convolve("image", weights(3, 3, 3, 5))
    rows = net.reshape(x, (1, 72, 5))
    net.multiply(rows, rows, (False, True))
    net.combine("MUL", x, x)
    assert net.multiply_adds() == 72 * 27 * 5 + 72 * 72 * 5 + 72 * 5


def test_a_part_of_a_network_keeps_what_its_outputs_need() -> None:
    net = network()
    first = net.convolve("image", weights(1, 1, 3, 4))
    second = net.combine("ADD", first, net.constant("offset", np.ones(4)))
    net.combine("MUL", first, net.constant("factor", np.ones(4)))
    part = net.between("image", [second])
    assert [layer.output for layer in part.layers] == [first, second]
    assert set(part.constants) == {"offset"}
    rest = net.between(first, [second])
    assert [layer.output for layer in rest.layers] == [second]
    assert set(rest.shapes) == {first, second, "offset"}


def test_a_convolution_takes_up_factors_of_its_input_and_of_its_result() -> None:
    random = np.random.default_rng(1)
    layer, x = weights(1, 1, 3, 5), random.normal(size=(7, 3))
    factor, offset = random.normal(size=(2, 3))

    def result(one: Convolution, of: Any) -> Any:
        return of @ one.kernel[0, 0].astype(np.float64) + one.bias

    expected = result(layer, x * factor + offset)
    np.testing.assert_allclose(result(layer.of_scaled(factor, offset), x), expected, rtol=1e-5, atol=1e-5)
    scaled = layer.scaled(np.arange(5.0), 2.0)
    np.testing.assert_allclose(result(scaled, x), result(layer, x) * np.arange(5) + 2, rtol=1e-5, atol=1e-5)
