"""Where the elements of a module's tensors lie."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from agent.optimise.graph.emission import NHWC, Emission, Value, feature_order, gathered_order, reshaped_order
from agent.optimise.graph.layers import Convolution, Network


@st.composite
def reshapes(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """A shape, the order in which it is stored, and another shape of as many elements."""
    factors = draw(st.lists(st.sampled_from([1, 2, 3]), min_size=2, max_size=5))

    def grouped() -> tuple[int, ...]:
        cuts = sorted(draw(st.lists(st.integers(0, len(factors)), max_size=4)))
        ends = [0, *cuts, len(factors)]
        return tuple(int(np.prod(factors[a:b])) for a, b in pairwise(ends))

    shape = grouped()
    return shape, tuple(draw(st.permutations(range(len(shape))))), grouped()


@given(reshapes())
def test_a_reshape_without_moving_finds_the_elements_where_they_are(
    case: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]],
) -> None:
    shape, order, target = case
    module = np.arange(np.prod(shape)).reshape(shape)
    found = reshaped_order(shape, order, target)
    if found is None:
        order = gathered_order(shape, order, target)
        assert sorted(order) == list(range(len(shape)))
        found = reshaped_order(shape, order, target)
    assert found is not None
    assert sorted(found) == list(range(len(target)))
    stored, expected = module.transpose(order), module.reshape(target).transpose(found)
    assert stored.ravel().tolist() == expected.ravel().tolist()


def test_pictures_become_rows_of_pixels_without_moving() -> None:
    assert reshaped_order((1, 8, 4, 4), NHWC, (1, 8, 16)) == (0, 2, 1)
    assert reshaped_order((1, 8, 1, 1), NHWC, (1, 8)) == (0, 1)
    assert reshaped_order((1, 8), (0, 1), (1, 8, 1, 1)) == NHWC
    assert reshaped_order((1, 8, 4, 4), NHWC, (1, 128)) is None


def test_features_of_a_flattened_picture_keep_their_numbers() -> None:
    module = np.random.default_rng(0).normal(size=(3, 4, 5))  # channels, height, width
    stored = module.transpose(1, 2, 0).ravel()
    np.testing.assert_array_equal(module.ravel()[feature_order((4, 5, 3))], stored)


def build() -> Emission:
    return Emission(Network("image", shapes={"image": (1, 4, 4, 3)}))


def test_an_axis_of_length_one_moves_without_a_transpose() -> None:
    emission = build()
    column = emission.cut(Value("image", NHWC), 1, 0, 1)
    emission.plain(column)
    assert [layer.op for layer in emission.network.layers] == ["SLICE", "RESHAPE"]
    emission.plain(Value("image", NHWC))
    assert emission.network.layers[-1].op == "TRANSPOSE"


def test_a_negative_factor_is_not_taken_up_through_a_maximum() -> None:
    emission = build()
    weights = Convolution(np.ones((1, 1, 3, 2), np.float32), np.zeros(2, np.float32))
    name = emission.network.convolve("image", weights)
    value = Value(name, NHWC, source=name, pooled=True)
    assert not emission.fold(value, np.array([1.0, -1.0]), np.zeros(()))
    assert emission.fold(value, np.array([1.0, 2.0]), np.zeros(()))
    layer = emission.network.layer(name)
    assert layer is not None
    assert layer.convolution is not None
    assert layer.convolution.kernel[0, 0, 0].tolist() == [1.0, 2.0]


def test_an_activated_layer_takes_up_no_factor() -> None:
    emission = build()
    weights = Convolution(np.ones((1, 1, 3, 2), np.float32), np.zeros(2, np.float32))
    name = emission.network.convolve("image", weights)
    value = emission.activated(Value(name, NHWC, source=name), "RELU")
    assert value.positive
    assert not emission.fold(value, np.array([2.0]), np.zeros(()))
    assert emission.activated(value, "RELU") is value


def test_more_parts_than_xnnpack_joins_are_joined_in_steps() -> None:
    emission = build()
    joined = emission.joined([Value("image", NHWC)] * 11, 1)
    assert emission.shape(joined) == (1, 33, 4, 4)
    assert [len(layer.inputs) for layer in emission.network.layers] == [5, 5, 3]
