"""Equalises the channels of activations, so that one scale serves all of them.

INT8 activations have one scale for a tensor. A channel that is much narrower than the widest then has few steps
of it, and a layer that multiplies it by large weights multiplies its rounding too: in separable networks without
an activation between depthwise and 1×1 convolution it is the largest error. A narrow channel is multiplied by a
factor in the layer that computes it, and the weights of the one layer that reads it are divided by it. Factors
are powers of two, so that the float model answers as before, to the bit.
Source: Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction,
https://arxiv.org/abs/1906.04721; Xiao et al., SmoothQuant, https://arxiv.org/abs/2211.10438.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from agent.optimise.graph.fusion import activation
from agent.optimise.graph.objects import Graph, compact, dump, graphs, load
from agent.optimise.graph.torch_graph import GraphOverrides, TorchGraph

_OPERATORS, _ACTIVATIONS = schema.BuiltinOperator, schema.ActivationFunctionType
_OUT = {_OPERATORS.CONV_2D: 0, _OPERATORS.DEPTHWISE_CONV_2D: 3, _OPERATORS.FULLY_CONNECTED: 0}
"""Axis of the output channels in the weights."""
_IN = {_OPERATORS.CONV_2D: 3, _OPERATORS.DEPTHWISE_CONV_2D: 3, _OPERATORS.FULLY_CONNECTED: 1}
"""Axis of the input channels in the weights."""
_HOMOGENEOUS = (_ACTIVATIONS.NONE, _ACTIVATIONS.RELU)
"""Activations f with f(a x) = a f(x) for each a > 0."""
_LARGEST = 5
"""Largest factor, as a power of two: a channel that is nearly always 0 is not blown up."""

Batches = Iterable[Sequence[Any]]
Ranges = dict[str, NDArray[np.float64]]
"""Largest absolute value of each channel, by name of the tensor."""


class _Pair(NamedTuple):
    """Two layers, of which one alone reads what the other computes.

    Attributes:
        tensor: between them.
        writer, reader: operators.
    """

    tensor: int
    writer: Any
    reader: Any


def equalise(content: bytes, batches: Batches) -> tuple[bytes, int]:
    """Equalise the channels between layers of a float model.

    Args:
        content: of a `.tflite` file with float weights.
        batches: examples for the first subgraph: for each batch one tensor per input.

    Returns:
        The file, whose answers are the same, and how many tensors were equalised.

    Raises:
        ModelError: the model cannot be computed here.
    """
    model = load(content)
    pairs = {graph.name(pair.tensor) for graph in graphs(model) for pair in _pairs(graph)}
    factors = {
        name: found
        for name, widths in _ranges(TorchGraph(model), batches, pairs).items()
        if (found := channel_factors(widths)).max() > 1.0
    }
    if not factors:
        return content, 0
    for graph in graphs(model):
        _apply(graph, factors)
    compact(model)
    return dump(model), len(factors)


def channel_factors(widths: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return by what each channel is multiplied: powers of two that bring it near the widest, at most 32.

    Args:
        widths: largest absolute value of each channel, [channels].
    """
    widest = widths.max(initial=0.0)
    if not widest > 0.0:
        return np.ones_like(widths)
    ratios = widest / np.maximum(widths, widest * 2.0**-_LARGEST)
    factors: NDArray[np.float64] = 2.0 ** np.floor(np.log2(ratios))
    return factors


def _ranges(graph: TorchGraph, batches: Batches, names: set[str]) -> Ranges:
    found: Ranges = {}

    def observe(index: int, value: Any) -> Any:
        name = graph.name(index)
        if name in names:
            widths = value.abs().reshape(-1, value.shape[-1]).amax(0).double().numpy()
            found[name] = np.maximum(found.get(name, 0.0), widths)
        return value

    with torch.inference_mode():
        for batch in batches:
            graph(*batch, overrides=GraphOverrides(activation=observe))
    return found


def _pairs(graph: Graph) -> Iterator[_Pair]:
    """Yield the pairs of layers of a graph whose channels can be exchanged for others."""
    shared = _shared(graph)
    for reader in graph.operators:
        if graph.kind(reader) not in _IN or graph.tensor(reader.inputs[1]).buffer in shared:
            continue
        tensor = int(reader.inputs[0])
        writer = graph.producer(tensor)
        if writer is None or graph.kind(writer) not in _OUT or not graph.is_inner(tensor):
            continue
        is_free = activation(writer) in _HOMOGENEOUS and graph.tensor(writer.inputs[1]).buffer not in shared
        if is_free and _fit(graph, tensor, writer, reader):
            yield _Pair(tensor, writer, reader)


def _shared(graph: Graph) -> set[int]:
    """Return the buffers of weights that several layers of a graph use, such as heads at several scales."""
    buffers = [int(graph.tensor(one.inputs[1]).buffer) for one in graph.operators if graph.kind(one) in _OUT]
    return {one for one in buffers if buffers.count(one) > 1}


def _fit(graph: Graph, tensor: int, writer: Any, reader: Any) -> bool:
    """Return True if the channels between two layers are an axis of the weights of both."""
    channels = graph.shape(tensor)[-1:]
    ends = ((writer, _OUT[graph.kind(writer)]), (reader, _IN[graph.kind(reader)]))
    weights = [graph.constant(one.inputs[1]) for one, _ in ends]
    return all(
        found is not None and found.dtype == np.float32 and found.shape[axis : axis + 1] == channels
        for found, (_, axis) in zip(weights, ends, strict=True)
    )


def _apply(graph: Graph, factors: Mapping[str, NDArray[np.float64]]) -> None:
    for pair in list(_pairs(graph)):
        factor = factors.get(graph.name(pair.tensor))
        if factor is None:
            continue
        _scale(graph, pair.writer, 1, _OUT[graph.kind(pair.writer)], factor)
        if len(pair.writer.inputs) > 2 and pair.writer.inputs[2] >= 0:
            _scale(graph, pair.writer, 2, 0, factor)
        _scale(graph, pair.reader, 1, _IN[graph.kind(pair.reader)], 1.0 / factor)


def _scale(graph: Graph, operator: Any, place: int, axis: int, factor: NDArray[np.float64]) -> None:
    """Multiply a constant operand of a layer by factors along an axis."""
    index = operator.inputs[place]
    value = graph.constant(index)
    assert value is not None
    sizes = [1] * value.ndim
    sizes[axis] = -1
    operator.inputs[place] = graph.add_constant(index, (value * factor.reshape(sizes)).astype(np.float32))
