"""Quantises the weights of a network layer by layer, each on what the quantised layers before it give.

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
)
from agent.optimise.quantisation import gptq

Tensor = Any
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
