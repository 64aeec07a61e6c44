"""Values of a PyTorch module in a network in NHWC: how their axes lie there, and how layers take up neighbours.

PyTorch keeps channels in front of height and width, TFLite behind them. A `Value` says which axis of the module's
tensor each axis of the stored one is, so that transposing costs no operation until one needs a certain order.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agent.optimise.graph.layers import NONE, Network, Pads, Shape

NHWC = (0, 2, 3, 1)
"""Order of a picture: axis 1 of the module's tensor, the channels, lies last."""
_FUSED = frozenset({"ADD", "CONV_2D", "DEPTHWISE_CONV_2D", "DIV", "FULLY_CONNECTED", "MUL", "SUB"})
"""Operations that may apply an activation to their result."""
_MOST_JOINED = 5
"""Parts of a concatenation that XNNPACK takes."""


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor of the module.

    Attributes:
        name: of the tensor in the network.
        order: axis `i` there is axis `order[i]` of the module's tensor.
        flattened: height, width and channels of a picture that was flattened to [batch, features]: the features
            lie in this order; the module's lie channel by channel. Empty: no such value.
        source: name of the layer whose result this is, but for maxima over windows, if nothing else reads it.
        pooled: there are such maxima.
        positive: no element is below zero.
    """

    name: str
    order: Shape
    flattened: Shape = ()
    source: str = ""
    pooled: bool = False
    positive: bool = False


class Emission:
    """A network in the making.

    Attributes:
        network: with the layers so far.
        normalisation: factor and offset [channels] of the input that the first convolution takes up, if any.
    """

    def __init__(self, network: Network) -> None:
        self.network = network
        self.normalisation: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None

    def shape(self, value: Value) -> Shape:
        """Return the shape of the module's tensor."""
        stored = self.network.shapes[value.name]
        return tuple(stored[value.order.index(axis)] for axis in range(len(stored)))

    def ordered(self, value: Value, order: Shape) -> Value:
        """Return the value with its axes in this order."""
        if value.flattened:
            value = self._unflattened(value)
        if value.order == order:
            return value
        moved = tuple(value.order.index(axis) for axis in order)
        stored = self.network.shapes[value.name]
        shape = tuple(stored[axis] for axis in moved)
        long = [axis for axis in moved if stored[axis] > 1]
        if long == sorted(long):
            return Value(self._reshape(value.name, shape), order, positive=value.positive)
        return Value(self.network.transpose(value.name, moved), order, positive=value.positive)

    def plain(self, value: Value) -> Value:
        """Return the value with its axes in the module's own order."""
        return self.ordered(value, tuple(range(len(value.order))))

    def picture(self, value: Value) -> Value:
        """Return a value [batch, channels, height, width] in the order of TFLite."""
        return self.ordered(value, NHWC)

    def reshaped(self, value: Value, shape: Shape) -> Value:
        """Return the value in another shape of the module's tensor."""
        if shape == self.shape(value):
            return value
        if value.flattened:
            value = self._unflattened(value)
        order = reshaped_order(self.shape(value), value.order, shape)
        if order is None and value.order == NHWC and shape == (shape[0], prod(self.shape(value)[1:])):
            stored = self.network.shapes[value.name]
            name = self.network.reshape(value.name, shape)
            return Value(name, (0, 1), flattened=stored[1:], positive=value.positive)
        if order is None:
            value = self.ordered(value, gathered_order(self.shape(value), value.order, shape))
            order = reshaped_order(self.shape(value), value.order, shape)
            assert order is not None
        stored = tuple(shape[axis] for axis in order)
        return Value(self._reshape(value.name, stored), order, positive=value.positive)

    def ranked(self, value: Value, rank: int) -> Value:
        """Return the value with axes of length 1 in front, `rank` in all."""
        shape = self.shape(value)
        return self.reshaped(value, (1,) * (rank - len(shape)) + shape)

    def made(self, name: str, like: Value, **properties: Any) -> Value:
        """Return the value of a new layer with the axes of `like`; `properties` are further attributes."""
        return Value(name, like.order, like.flattened, source=name, **properties)

    def unused(self, name: str) -> str:
        """Return a name for a new layer: this one, with a number if there is a layer of that name."""
        number, found = 1, name
        while found in self.network.shapes:
            number, found = number + 1, f"{name}_{number + 1}"
        return found

    def constant(self, name: str, values: NDArray[np.floating], like: Value) -> str:
        """Add a constant of the module for an operation with `like`. Return its name."""
        if like.flattened and values.size > 1:
            values = values.reshape(-1)[feature_order(like.flattened)]
        elif values.ndim:
            values = values.reshape((1,) * (len(like.order) - values.ndim) + values.shape).transpose(like.order)
        return self.network.constant(self.unused(name), values)

    def fold(self, value: Value, factor: NDArray[np.float64], offset: NDArray[np.float64]) -> bool:
        """Turn the value into `factor × value + offset` inside the layer that computes it.

        Args:
            value: to be changed.
            factor: one number or one for each channel.
            offset: as the factor.

        Returns:
            False if that layer cannot take them up.
        """
        layer = self.network.layer(value.source)
        if layer is None or layer.convolution is None or layer.activation != NONE or value.flattened:
            return False
        if value.pooled and (factor <= 0).any():
            return False
        if not {factor.size, offset.size} <= {1, len(layer.convolution.bias)}:
            return False
        self.network.change(value.source, convolution=layer.convolution.scaled(factor.ravel(), offset.ravel()))
        return True

    def activated(self, value: Value, activation: str, op: str = "") -> Value:
        """Return the value after an activation, which the layer that computes it takes up where it can.

        Args:
            value: before.
            activation: of `agent.optimise.graph.layers`.
            op: operation for it, where none takes it up; default: of the same name.
        """
        if activation == "RELU" and value.positive:
            return value
        layer = self.network.layer(value.source)
        positive = activation in ("RELU", "RELU6")
        if layer and layer.op in _FUSED and layer.activation == NONE:
            self.network.change(value.source, activation=activation)
            return replace(value, positive=positive)
        return replace(self.made(self.network.each(op or activation, value.name), value), positive=positive)

    def joined(self, parts: list[Value], axis: int) -> Value:
        """Return the concatenation of values along an axis of the module's tensors."""
        like = parts[0] if not parts[0].flattened else self.plain(parts[0])
        names = [self.ordered(part, like.order).name for part in parts]
        along = like.order.index(axis)
        while len(names) > 1:
            groups = [names[at : at + _MOST_JOINED] for at in range(0, len(names), _MOST_JOINED)]
            names = [self.network.join(*group, axis=along) if len(group) > 1 else group[0] for group in groups]
        return Value(names[0], like.order, positive=all(part.positive for part in parts))

    def cut(self, value: Value, axis: int, start: int, stop: int) -> Value:
        """Return the positions `start` to `stop` along an axis of the module's tensor."""
        value = self._unflattened(value) if value.flattened else value
        if (start, stop) == (0, self.shape(value)[axis]):
            return value
        name = self.network.cut(value.name, value.order.index(axis), start, stop)
        return Value(name, value.order, positive=value.positive)

    def padded(self, x: str, pads: Pads) -> str:
        """Add zeros to a stored tensor, unless there are none to add. Return its name."""
        return self.network.pad(x, pads) if any(map(any, pads)) else x

    def repeated_border(self, x: str, pads: Pads) -> str:
        """Repeat the outermost pixels of a stored picture: maxima find nothing new there. Return its name."""
        for axis, (before, behind) in enumerate(pads):
            size = self.network.shapes[x][axis]
            first = self.network.cut(x, axis, 0, 1) if before else ""
            last = self.network.cut(x, axis, size - 1, size) if behind else ""
            parts = [first] * before + [x] + [last] * behind
            if len(parts) > 1:
                x = self.joined([Value(part, NHWC) for part in parts], NHWC[axis]).name
        return x

    def _unflattened(self, value: Value) -> Value:
        """Return [batch, features] in the module's order."""
        stored = self.network.shapes[value.name]
        picture = Value(self.network.reshape(value.name, (stored[0], *value.flattened)), NHWC)
        name = self._reshape(self.plain(picture).name, stored)
        return Value(name, (0, 1), positive=value.positive)

    def _reshape(self, x: str, shape: Shape) -> str:
        return x if shape == self.network.shapes[x] else self.network.reshape(x, shape)


def feature_order(flattened: Shape) -> NDArray[np.int64]:
    """Return for each feature of a flattened picture, as it is stored, its number in the module.

    Args:
        flattened: height, width, channels.
    """
    height, width, channels = flattened
    order: NDArray[np.int64] = np.arange(prod(flattened)).reshape(channels, height, width).transpose(1, 2, 0)
    return order.ravel()


def reshaped_order(shape: Shape, order: Shape, target: Shape) -> Shape | None:
    """Return the order of the axes after a reshape that leaves all elements where they are stored.

    Args:
        shape: of the module's tensor.
        order: of its axes, see `Value`.
        target: shape of the module's tensor afterwards, with as many elements.

    Returns:
        The order; None if the elements would have to move.
    """
    groups = list(_groups(shape, target))
    stored = [axis for axis in order if shape[axis] > 1]
    found: list[int] = []
    while stored:
        old, new = next(group for group in groups if stored[0] in group[0])
        if stored[: len(old)] != old:
            return None
        found, stored = found + new, stored[len(old) :]
    ones = [axis for axis, size in enumerate(target) if size == 1]
    wishes = [NHWC] * (len(target) == 4) + [tuple(range(len(target)))]
    fitting = (wish for wish in wishes if [axis for axis in wish if axis not in ones] == found)
    return next(fitting, (*ones, *found))


def gathered_order(shape: Shape, order: Shape, target: Shape) -> Shape:
    """Return the order nearest to `order` from which a reshape can leave all elements where they are stored.

    Args:
        shape: of the module's tensor.
        order: of its axes, see `Value`.
        target: shape of the module's tensor afterwards.
    """
    groups = [old for old, _ in _groups(shape, target)]
    places = {axis: number for number, group in enumerate(groups) for axis in group}
    stored = dict.fromkeys(places[axis] for axis in order if axis in places)
    ones = [axis for axis, size in enumerate(shape) if size == 1]
    return (*ones, *(axis for number in stored for axis in groups[number]))


def _groups(shape: Shape, target: Shape) -> Iterator[tuple[list[int], list[int]]]:
    """Yield the smallest groups of axes that a reshape turns into each other, without those of length 1."""
    olds, news = ([axis for axis, size in enumerate(sizes) if size > 1] for sizes in (shape, target))
    ends = [np.cumprod([1, *(sizes[axis] for axis in axes)]) for sizes, axes in ((shape, olds), (target, news))]
    common = sorted({*ends[0].tolist()} & {*ends[1].tolist()})
    for start, stop in pairwise(common):
        old, new = (
            [axis for axis, end in zip(axes, ended[1:], strict=True) if start < end <= stop]
            for axes, ended in ((olds, ends[0]), (news, ends[1]))
        )
        yield old, new
