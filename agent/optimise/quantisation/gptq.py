"""Rounding of weights so that the errors of one layer cancel out on real inputs (GPTQ).

Each weight is rounded in turn, and the weights not yet rounded take up its error, as far as their inputs go
together. Source: Frantar et al., GPTQ, https://arxiv.org/abs/2210.17323.

Weights are matrices [groups, out, in]: `in` is the kernel's height × width × channels of one group. Moments are
mean products of inputs, [groups, in, in].

Quantises the weights of a network layer by layer, each on what the quantised layers before it give.

Two copies of the network run side by side over the same examples, one float and one quantised so far. Weights
and bias of each layer are first corrected towards the outputs of the float network, then rounded (see `gptq`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from agent.optimise.graph.integers import INT8_MAX, INT8_MIN, IntegerWeights, Scale
from agent.optimise.graph.torch_graph import (
    WEIGHTED,
    GraphOverrides,
    Key,
    TorchGraph,
    TorchOperation,
    WeightedLayer,
    dilations,
    pad,
    strides,
)
from agent.optimise.quantisation import gptq

Tensor = Any
_DAMPING = 0.01
"""Share of the mean square that is added to every input's, so that inputs that hardly occur do no harm."""
_BLOCK = 64
_LEAST_CLIP, _CLIPS = 0.4, 61


class Moments(NamedTuple):
    """Moments of the inputs of one layer, at the same places of the float and of the quantised network.

    Attributes:
        products: mean of quantised input × quantised inputᵀ, float64 [groups, in, in].
        crossed: mean of float input × quantised inputᵀ, of the same shape.
        float_mean, mean: of float and quantised input, float64 [groups, in].
    """

    products: Tensor
    crossed: Tensor
    float_mean: Tensor
    mean: Tensor


def limits(bits: int) -> tuple[int, int]:
    """Return least and greatest integer of a weight; -128 is left out, as kernels for INT8 want it."""
    return (-8, 7) if bits == 4 else (-127, 127)


def as_matrix(layer: WeightedLayer, weights: Tensor) -> Tensor:
    """Return the weights of a layer, in the file's shape, as [groups, out of a group, in of a group]."""
    if layer.channel_axis == 3:
        channels = weights.reshape(-1, layer.groups, weights.shape[3] // layer.groups)
        return channels.permute(1, 2, 0)
    return weights.reshape(layer.groups, weights.shape[0] // layer.groups, -1)


def from_matrix(layer: WeightedLayer, matrix: Tensor) -> Tensor:
    """Undo `as_matrix`."""
    if layer.channel_axis == 3:
        return matrix.permute(2, 0, 1).reshape(layer.shape)
    return matrix.reshape(layer.shape)


def patches(layer: WeightedLayer, x: Tensor, places: int, generator: Any) -> Tensor:
    """Return what a layer's kernel sees at random places: [groups, batch × places, in of a group].

    Args:
        layer: the layer.
        x: its input [batch, …, in].
        places: most places per example.
        generator: torch's; the same state gives the same places.
    """
    if layer.operation.kind == "FULLY_CONNECTED":
        return x.reshape(-1, layer.shape[-1])[None]
    options, size = layer.operation.options, layer.shape[1:3]
    stride, dilation = strides(options), dilations(options)
    padded = pad(x, options.padding, size, stride, dilation)
    counts = [
        (padded.shape[1 + axis] - (size[axis] - 1) * dilation[axis] - 1) // stride[axis] + 1 for axis in (0, 1)
    ]
    chosen = torch.randperm(counts[0] * counts[1], generator=generator)[:places]
    rows, columns = chosen // counts[1] * stride[0], chosen % counts[1] * stride[1]
    taps = [
        padded[:, rows + y * dilation[0], columns + x * dilation[1]]
        for y in range(size[0])
        for x in range(size[1])
    ]
    seen = torch.stack(taps, 2).flatten(0, 1)  # [batch × places, taps, channels]
    split = seen.reshape(*seen.shape[:2], layer.groups, -1)
    return split.permute(2, 0, 1, 3).flatten(2)


def best_scales(matrix: Tensor, bits: int, products: Tensor | None = None) -> Tensor:
    """Find for each output channel the scale whose clipping and rounding does the least squared damage.

    Args:
        matrix: weights [groups, out, in].
        bits: 4 or 8.
        products: moments of the inputs, which weigh the damage of 4 bits; None: all inputs count alike, as always
            for 8 bits, whose weights are hardly clipped. Rare inputs keep a part of their weight.

    Returns:
        float32 [groups, out, 1], greater than 0.
    """
    low, high = limits(bits)
    peaks = matrix.abs().amax(2, keepdim=True).clamp_min(1e-12) / high
    weights = torch.ones_like(matrix[:, :1])
    if products is not None and bits == 4:
        squares = _diagonal(products)[:, None]
        weights = (squares + squares.mean(2, keepdim=True)).to(matrix.dtype)
    best, least = peaks.clone(), torch.full_like(peaks, torch.inf)
    for clip in torch.linspace(_LEAST_CLIP if bits == 4 else 0.6, 1.0, _CLIPS):
        scales = peaks * clip
        damage = ((nearest(matrix, scales, low, high) * scales - matrix).square() * weights).sum(2, keepdim=True)
        best, least = torch.where(damage < least, scales, best), torch.minimum(damage, least)
    return best.float()


def nearest(matrix: Tensor, scales: Tensor, low: int, high: int) -> Tensor:
    """Return the nearest integers of weights."""
    return (matrix / scales).round().clamp(low, high)


def round_weights(matrix: Tensor, scales: Tensor, bits: int, products: Tensor) -> Tensor:
    """Round weights to integers, so that the errors cancel out on inputs with these moments.

    Args:
        matrix: weights [groups, out, in].
        scales: [groups, out, 1].
        bits: 4 or 8.
        products: moments of the inputs [groups, in, in].

    Returns:
        Integers as floats, of the matrix' shape.
    """
    low, high = limits(bits)
    order = torch.argsort(_diagonal(products), descending=True, stable=True)
    spread = _spread(products, order)
    work = torch.gather(matrix.double(), 2, order[:, None].expand(matrix.shape))
    integers, steps = torch.empty_like(work), scales[..., 0].double()
    for start in range(0, work.shape[2], _BLOCK):
        stop = min(start + _BLOCK, work.shape[2])
        errors = torch.empty((*work.shape[:2], stop - start), dtype=torch.double)
        for at in range(start, stop):
            integers[..., at] = nearest(work[..., at], steps, low, high)
            error = (work[..., at] - integers[..., at] * steps) / spread[:, None, at, at]
            errors[..., at - start] = error
            work[..., at + 1 : stop] -= error[..., None] * spread[:, None, at, at + 1 : stop]
        work[..., stop:] -= errors @ spread[:, start:stop, stop:]
    return torch.empty_like(integers).scatter_(2, order[:, None].expand(integers.shape), integers)


def _diagonal(products: Tensor) -> Tensor:
    return torch.diagonal(products, dim1=1, dim2=2)


def _spread(products: Tensor, order: Tensor) -> Tensor:
    """Return the upper Cholesky factor of the inverse of the damped moments, inputs in the given order."""
    count = products.shape[1]
    rows = order[:, :, None].expand(products.shape)
    ordered = torch.gather(torch.gather(products.double(), 1, rows), 2, rows.transpose(1, 2))
    mean = _diagonal(ordered).mean(1).clamp_min(1e-12)
    damped = ordered + torch.eye(count, dtype=torch.double) * (mean * _DAMPING)[:, None, None]
    return torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(damped)), upper=True)


def corrected(matrix: Tensor, moments: Moments, ridge: float) -> tuple[Tensor, Tensor]:
    """Return weights and a change of the bias that bring the outputs close to those of the float network.

    The least squares solution, with a ridge that keeps both near the float ones: what few examples say about rare
    inputs counts little. The bias is the weight of an input that is always 1.

    Args:
        matrix: float weights [groups, out, in].
        moments: of the layer's inputs.
        ridge: share of the mean square that is added to every input's.

    Returns:
        Weights of the matrix' shape, and the change of the bias, float64 [out].
    """
    products = _with_one(moments.products, moments.mean, moments.mean)
    crossed = _with_one(moments.crossed, moments.float_mean, moments.mean)
    count = products.shape[1]
    damping = (_diagonal(moments.products).mean(1).clamp_min(1e-12) * ridge)[:, None].expand(-1, count).clone()
    damping[:, -1] = ridge
    # What the float weights give is W × crossed; with a bias of 0, its row does not count.
    missing = (crossed - products)[:, :-1]
    solved = torch.linalg.solve(products + torch.diag_embed(damping), missing.transpose(1, 2))
    change = solved @ matrix.double().transpose(1, 2)
    return matrix + change[:, :-1].transpose(1, 2).to(matrix.dtype), change[:, -1].reshape(-1)


def _with_one(products: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Return moments with an input that is always 1, given the means of both sides: [groups, in + 1, in + 1]."""
    above = torch.cat([products, left[:, :, None]], 2)
    ones = torch.ones((len(products), 1, 1), dtype=products.dtype)
    return torch.cat([above, torch.cat([right[:, None], ones], 2)], 1)


def corrected_bias(matrix: Tensor, rounded: Tensor, bias: Tensor, moments: Moments) -> Tensor:
    """Return the bias that undoes what rounding does to the mean output, float64 [out].

    Args:
        matrix: weights before rounding, [groups, out, in].
        rounded: weights after it.
        bias: [out].
        moments: of the layer's inputs.
    """
    lost = ((matrix.double() - rounded.double()) @ moments.mean[..., None])[..., 0]
    return bias.double() + lost.reshape(-1)


_SLICE = 8
"""Examples whose patches are gathered at a time."""
_MEMORY = 3 << 30
"""Bytes that the activations of all examples may take."""


class RoundingOptions(NamedTuple):
    """How weights are quantised.

    Attributes:
        bits: of each layer, by its key; a layer without has 8, and one of 32 stays float.
        places: most places of each example at which a convolution's input is seen.
        ridge: see `gptq.corrected`.
        seed: of the choice of places.
    """

    bits: Mapping[Key, int] = {}
    places: int = 200
    ridge: float = 0.5
    seed: int = 0


class RoundedLayer(NamedTuple):
    """One layer after `quantise_layers`.

    Attributes:
        layer: the layer.
        weights: its integers; None: it stays float.
        error: mean square of the change of its output, as a share of the output's variance.
    """

    layer: WeightedLayer
    weights: IntegerWeights | None
    error: float


def fake_quantised(x: Tensor, scale: Scale) -> Tensor:
    """Return the values that INT8 integers of a scale stand for."""
    integers = (x / scale.scale).round() + scale.zero_point
    return (integers.clamp(INT8_MIN, INT8_MAX) - scale.zero_point) * scale.scale


def overrides(
    graph: TorchGraph, scales: Mapping[str, Scale], weights: Mapping[Key, IntegerWeights]
) -> GraphOverrides:
    """Return what makes a graph compute as its quantised version."""

    def activation(index: int, value: Tensor) -> Tensor:
        scale = scales.get(graph.name(index))
        return fake_quantised(value, scale) if scale else value

    reals = {layer.key: real_weights(layer, weights[layer.key]) for layer in graph.layers if layer.key in weights}
    biases = {
        key: torch.from_numpy(found.bias.astype(np.float32))
        for key, found in weights.items()
        if found.bias is not None
    }
    return GraphOverrides(reals, biases, activation if scales else None)


def real_weights(layer: WeightedLayer, weights: IntegerWeights) -> Tensor:
    """Return the real values of integer weights, float32 of the file's shape."""
    sizes = [1] * len(layer.shape)
    sizes[layer.channel_axis] = -1
    return torch.from_numpy(weights.integers.astype(np.float32) * weights.scales.reshape(sizes))


def most_examples(graph: TorchGraph) -> int:
    """Return how many examples fit into memory, float and quantised at once."""
    sizes = {index: 4 * int(np.prod(graph.shape(index))) for index in graph.inputs}
    peak, live = 0, dict(sizes)
    for operation in graph.operations:
        live.update({index: 4 * int(np.prod(graph.shape(index))) for index in operation.outputs})
        peak = max(peak, sum(live.values()))
        for index in operation.inputs:
            if index in live and graph.is_last_use(operation, index):
                live.pop(index)
    return max(8, _MEMORY // (2 * max(1, peak)))


def quantise_layers(
    graph: TorchGraph,
    inputs: Sequence[Tensor],
    scales: Mapping[str, Scale],
    options: RoundingOptions,
    progress: Callable[[str], None],
) -> dict[Key, RoundedLayer]:
    """Quantise the weights of every layer.

    Args:
        graph: float.
        inputs: one tensor [examples, …] per input.
        scales: of activations by name; none: activations stay float.
        options: see `RoundingOptions`.
        progress: called with a line of text for each layer.
    """
    with torch.inference_mode():
        walk = _Walk(graph, inputs, scales, options)
        for operation in graph.operations:
            if operation.kind in WEIGHTED:
                walk.quantise(operation)
                progress(f"quantising layers: {len(walk.done) + 1} of {len(graph.layers)}")
            walk.step(operation)
    return walk.done


class _Walk:
    """The two networks on their way through the operations."""

    def __init__(
        self, graph: TorchGraph, inputs: Sequence[Tensor], scales: Mapping[str, Scale], options: RoundingOptions
    ) -> None:
        self._graph, self._scales, self._options = graph, scales, options
        self._generator = torch.Generator().manual_seed(options.seed)
        self._layers = {layer.operation.outputs[0]: layer for layer in graph.layers}
        self._weights: dict[Key, IntegerWeights] = {}
        self.done: dict[Key, RoundedLayer] = {}
        self._float = dict(zip(graph.inputs, inputs, strict=True))
        self._quantised = {index: self._fake(index, value) for index, value in self._float.items()}

    def _fake(self, index: int, value: Tensor) -> Tensor:
        scale = self._scales.get(self._graph.name(index))
        return fake_quantised(value, scale) if scale else value

    def quantise(self, operation: TorchOperation) -> None:
        layer = self._layers[operation.outputs[0]]
        bits = self._options.bits.get(layer.key, 8)
        if layer.key in self._weights or bits == 32:
            return
        moments = self._moments(layer)
        matrix = gptq.as_matrix(layer, self._graph.weights(layer))
        wanted, change = gptq.corrected(matrix, moments, self._options.ridge)
        scales = gptq.best_scales(wanted, bits, moments.products)
        integers = gptq.round_weights(wanted, scales, bits, moments.products)
        bias = self._graph.bias(layer)
        if bias is not None:
            bias = gptq.corrected_bias(wanted, integers * scales, bias + change, moments).numpy()
        rounded = gptq.from_matrix(layer, integers).numpy().astype(np.int8)
        self._weights[layer.key] = IntegerWeights(rounded, scales.reshape(-1).numpy(), bits, bias)

    def _moments(self, layer: WeightedLayer) -> gptq.Moments:
        index = layer.operation.inputs[0]
        count, sums = 0, [torch.zeros(()).double()] * 4
        for start in range(0, len(self._float[index]), _SLICE):
            state = self._generator.get_state()
            real, quantised = (
                self._patches(layer, values[index][start : start + _SLICE], state)
                for values in (self._float, self._quantised)
            )
            found = (
                quantised.transpose(1, 2) @ quantised,
                real.transpose(1, 2) @ quantised,
                real.sum(1),
                quantised.sum(1),
            )
            sums = [total + part.double() for total, part in zip(sums, found, strict=True)]
            count += real.shape[1]
        return gptq.Moments(*(total / count for total in sums))

    def _patches(self, layer: WeightedLayer, x: Tensor, state: Tensor) -> Tensor:
        self._generator.set_state(state)
        return gptq.patches(layer, x, self._options.places, self._generator)

    def step(self, operation: TorchOperation) -> None:
        graph = self._graph
        graph.step(operation, self._float)
        graph.step(operation, self._quantised, overrides(graph, self._scales, self._current(operation)))
        layer = self._layers.get(operation.outputs[0])
        if layer:
            real, found = (values[operation.outputs[0]] for values in (self._float, self._quantised))
            error = float((found - real).square().mean() / real.var().clamp_min(1e-12))
            self.done[layer.key] = RoundedLayer(layer, self._weights.get(layer.key), error)
        for index in operation.inputs:
            if index in self._float and graph.is_last_use(operation, index):
                self._float.pop(index)
                self._quantised.pop(index)

    def _current(self, operation: TorchOperation) -> dict[Key, IntegerWeights]:
        layer = self._layers.get(operation.outputs[0])
        return {layer.key: self._weights[layer.key]} if layer and layer.key in self._weights else {}
