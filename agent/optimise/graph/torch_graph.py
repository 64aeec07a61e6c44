"""Runs a float graph of a `.tflite` file in PyTorch, so that it can be trained and measured layer by layer.

Tensors are NHWC, as in the file. Convolutions see them as NCHW in PyTorch's channels-last layout, which copies
nothing. The batch may be larger than the file's.

Definitions of the operations: tensorflow/tensorflow, tensorflow/compiler/mlir/lite/ir/tfl_ops.td.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from ai_edge_litert import schema_py_generated as schema
from torch import nn
from torch.nn import functional

from agent.errors import ModelError
from agent.optimise.graph.objects import Graph
from agent.optimise.graph.operations import (
    WEIGHTED,
    GraphOperation,
    Key,
    WeightedLayer,
    dilations,
    paddings,
    read_layer,
    read_operation,
    strides,
)

Tensor = Any
"""A torch tensor; torch has no types here."""


class GraphOverrides(NamedTuple):
    """Replacements of what a graph computes with; for quantisation.

    Attributes:
        weights, biases: by `WeightedLayer.key`, in the file's shape.
        activation: called with the index of each computed tensor and its value; returns the value to go on with.
        layer: called with each layer, its input and its output before the activation; returns what is activated.
    """

    weights: Mapping[Key, Tensor] = {}
    biases: Mapping[Key, Tensor] = {}
    activation: Callable[[int, Tensor], Tensor] | None = None
    layer: Callable[[WeightedLayer, Tensor, Tensor], Tensor] | None = None


NOTHING = GraphOverrides()


class TorchGraph(nn.Module):
    """A graph whose float weights are parameters.

    Attributes:
        graph: the subgraph in object form.
        operations: in the order of execution.
        layers: operations with weights.
    """

    def __init__(self, model: Any) -> None:
        """Read the first graph of a float file in object form.

        Raises:
            ModelError: an operation that is not supported, weights that are not float or not constant.
        """
        super().__init__()
        self.graph = Graph(model, model.subgraphs[0])
        self.inputs, self.outputs = list(self.graph.inputs), list(self.graph.outputs)
        self.parameters_by_buffer = nn.ParameterDict()
        self._constants: dict[int, Tensor] = {}
        self.operations = [self._read(operator) for operator in self.graph.operators]
        self.layers = [layer for layer in map(self._layer, self.operations) if layer]
        self._layer_at = {layer.operation.outputs[0]: layer for layer in self.layers}
        self._last = {index: at for at, one in enumerate(self.operations) for index in one.inputs}

    def name(self, index: int) -> str:
        """Return the name of a tensor."""
        return self.graph.name(index)

    def shape(self, index: int) -> tuple[int, ...]:
        """Return the shape of a tensor in the file, batch first."""
        return self.graph.shape(index)

    def constant(self, index: int) -> Tensor | None:
        """Return the value of a constant that is no weight; None: it is computed, or a weight."""
        return self._constants.get(index)

    def weights(self, layer: WeightedLayer) -> Tensor:
        """Return the weights of a layer in the file's shape."""
        return self.parameters_by_buffer[str(layer.weights)]

    def bias(self, layer: WeightedLayer) -> Tensor | None:
        """Return the bias of a layer, [out]."""
        return self.parameters_by_buffer[str(layer.bias)] if layer.bias else None

    def forward(self, *inputs: Tensor, overrides: GraphOverrides = NOTHING) -> list[Tensor]:
        """Compute the outputs, in the order of the graph, of inputs float32 [batch, …]."""
        values = dict(zip(self.inputs, inputs, strict=True))
        kept = set(self.outputs)
        if overrides.activation:
            values = {index: overrides.activation(index, value) for index, value in values.items()}
        for at, operation in enumerate(self.operations):
            self.step(operation, values, overrides)
            for index in operation.inputs:
                if self._last.get(index) == at and index not in kept:
                    values.pop(index, None)
        return [values[index] for index in self.outputs]

    def step(
        self, operation: GraphOperation, values: dict[int, Tensor], overrides: GraphOverrides = NOTHING
    ) -> None:
        """Run one operation on computed tensors, and put its outputs beside them."""
        if operation.kind in WEIGHTED:
            results = (self._weighted(operation, values, overrides),)
        else:
            operands = [self._value(index, values) for index in operation.inputs]
            results = _OPERATIONS[operation.kind](self, operation, operands)
        for index, result in zip(operation.outputs, results, strict=True):
            values[index] = overrides.activation(index, result) if overrides.activation else result

    def _value(self, index: int, values: Mapping[int, Tensor]) -> Tensor | None:
        if index < 0:
            return None
        return values[index] if index in values else self._constants[index]

    def _read(self, operator: Any) -> GraphOperation:
        operation = read_operation(self.graph, operator)
        if operation.kind not in _OPERATIONS and operation.kind not in WEIGHTED:
            names = ", ".join(repr(self.name(index)) for index in operation.outputs)
            raise ModelError(f"operation {operation.kind}, which computes {names}, cannot be trained")
        skipped = operation.inputs[1:3] if operation.kind in WEIGHTED else ()
        for index in operation.inputs:
            if index >= 0 and index not in skipped and (value := self.graph.constant(index)) is not None:
                self._constants[index] = torch.from_numpy(np.array(value))
        return operation

    def _layer(self, operation: GraphOperation) -> WeightedLayer | None:
        """Read a layer, and make its weights parameters."""
        if operation.kind not in WEIGHTED:
            return None
        layer = read_layer(self.graph, operation)
        if layer is None:
            name = self.name(operation.outputs[0])
            raise ModelError(f"layer {name!r} cannot be trained: its weights are computed, or not float32")
        for index, buffer in zip(operation.inputs[1:3], layer.key, strict=False):
            if buffer and str(buffer) not in self.parameters_by_buffer:
                value = torch.from_numpy(np.array(self.graph.constant(index)))
                self.parameters_by_buffer[str(buffer)] = nn.Parameter(value)
        return layer

    def _weighted(
        self, operation: GraphOperation, values: Mapping[int, Tensor], overrides: GraphOverrides
    ) -> Tensor:
        layer = self._layer_at[operation.outputs[0]]
        weights, bias = overrides.weights.get(layer.key), overrides.biases.get(layer.key)
        if weights is None:
            weights = self.weights(layer)
        if bias is None:
            bias = self.bias(layer)
        result = linear(layer, values[operation.inputs[0]], weights, bias)
        if overrides.layer:
            result = overrides.layer(layer, values[operation.inputs[0]], result)
        return _activated(result, operation.options.fusedActivationFunction)


def linear(layer: WeightedLayer, x: Tensor, weights: Tensor, bias: Tensor | None) -> Tensor:
    """Compute a layer without its activation: x [batch, …, in] → [batch, …, out]."""
    options = layer.operation.options
    if layer.operation.kind == "FULLY_CONNECTED":
        flat = x if options.keepNumDims else x.reshape(-1, weights.shape[1])
        return functional.linear(flat, weights, bias)
    kernel = weights.permute(3, 0, 1, 2) if layer.channel_axis == 3 else weights.permute(0, 3, 1, 2)
    stride, dilation = strides(options), dilations(options)
    padded = pad(x, options.padding, kernel.shape[2:], stride, dilation)
    result = functional.conv2d(padded.permute(0, 3, 1, 2), kernel, bias, stride, 0, dilation, layer.groups)
    return result.permute(0, 2, 3, 1)


def pad(
    x: Tensor,
    padding: int,
    size: tuple[int, int],
    stride: tuple[int, int],
    dilation: tuple[int, int] = (1, 1),
    value: float = 0.0,
) -> Tensor:
    """Pad NHWC pictures as a convolution or pooling does."""
    rows, columns = paddings((int(x.shape[1]), int(x.shape[2])), padding, size, stride, dilation)
    amounts = [0, 0, *columns, *rows]
    return functional.pad(x, amounts, value=value) if any(amounts) else x


def _activated(x: Tensor, activation: int) -> Tensor:
    kinds = schema.ActivationFunctionType
    limits = {kinds.RELU: (0.0, None), kinds.RELU6: (0.0, 6.0), kinds.RELU_N1_TO_1: (-1.0, 1.0)}
    if activation in limits:
        return x.clamp(*limits[activation])
    if activation == kinds.TANH:
        return torch.tanh(x)
    if activation != kinds.NONE:
        raise ModelError(f"fused activation {activation} cannot be trained or quantised")
    return x


Results = tuple[Tensor, ...]
Compute = Callable[[TorchGraph, GraphOperation, list[Tensor]], Results]


def _each(function: Callable[[Tensor], Tensor]) -> Compute:
    return lambda graph, operation, operands: (function(operands[0]),)


def _two(function: Callable[[Tensor, Tensor], Tensor], activates: bool = True) -> Compute:
    def compute(graph: TorchGraph, operation: GraphOperation, operands: list[Tensor]) -> Results:
        result = function(operands[0], operands[1])
        return (_activated(result, operation.options.fusedActivationFunction) if activates else result,)

    return compute


def _max_pool(graph: TorchGraph, operation: GraphOperation, operands: list[Tensor]) -> Results:
    options, stride = operation.options, strides(operation.options)
    size = (options.filterHeight, options.filterWidth)
    x = pad(operands[0], options.padding, size, stride, value=-math.inf)
    result = functional.max_pool2d(x.permute(0, 3, 1, 2), size, stride).permute(0, 2, 3, 1)
    return (_activated(result, options.fusedActivationFunction),)


def _average_pool(graph: TorchGraph, operation: GraphOperation, operands: list[Tensor]) -> Results:
    """Average over the pixels inside the picture: what SAME pads does not count."""
    options, stride = operation.options, strides(operation.options)
    size = (options.filterHeight, options.filterWidth)
    x = pad(operands[0], options.padding, size, stride).permute(0, 3, 1, 2)
    result = functional.avg_pool2d(x, size, stride).permute(0, 2, 3, 1)
    if options.padding == schema.Padding.SAME:
        ones = pad(torch.ones_like(operands[0][:1, :, :, :1]), options.padding, size, stride)
        result = result / functional.avg_pool2d(ones.permute(0, 3, 1, 2), size, stride).permute(0, 2, 3, 1)
    return (_activated(result, options.fusedActivationFunction),)


def _reduced(function: Callable[..., Tensor]) -> Compute:
    def compute(graph: TorchGraph, operation: GraphOperation, operands: list[Tensor]) -> Results:
        axes = [int(axis) for axis in operands[1].reshape(-1)]
        return (function(operands[0], axes, keepdim=operation.options.keepDims),)

    return compute


def _pad_constant(graph: TorchGraph, operation: GraphOperation, operands: list[Tensor]) -> Results:
    value = float(operands[2].reshape(-1)[0]) if operation.kind == "PADV2" else 0.0
    amounts = [int(amount) for row in operands[1].tolist()[::-1] for amount in row]
    return (functional.pad(operands[0], amounts, value=max(value, float(np.finfo(np.float32).min))),)


def _concatenate(graph: TorchGraph, operation: GraphOperation, operands: list[Tensor]) -> Results:
    batch = max(operand.shape[0] for operand in operands)
    axis = operation.options.axis % operands[0].ndim
    if axis:
        operands = [one.expand(batch, *one.shape[1:]) if one.shape[0] == 1 else one for one in operands]
    return (_activated(torch.cat(operands, axis), operation.options.fusedActivationFunction),)


def _reshape(graph: TorchGraph, operation: GraphOperation, operands: list[Tensor]) -> Results:
    """Reshape to the file's shape, with the batch that comes in."""
    source, result = graph.shape(operation.inputs[0]), graph.shape(operation.outputs[0])
    times = operands[0].numel() // max(1, math.prod(source))
    return (operands[0].reshape(result[0] * times, *result[1:]),) if result else (operands[0].reshape(-1),)


def _slice(graph: TorchGraph, operation: GraphOperation, operands: list[Tensor]) -> Results:
    x = operands[0]
    for axis, (begin, size) in enumerate(zip(operands[1].tolist(), operands[2].tolist(), strict=True)):
        if axis:
            x = x.narrow(axis, begin, x.shape[axis] - begin if size < 0 else size)
    return (x,)


def _strided_slice(graph: TorchGraph, operation: GraphOperation, operands: list[Tensor]) -> Results:
    options, x = operation.options, operands[0]
    if options.ellipsisMask or options.newAxisMask:
        raise ModelError(f"STRIDED_SLICE {graph.name(operation.outputs[0])!r} adds axes, which is not supported")
    index: list[Any] = [slice(None)]
    for axis, (begin, end, step) in enumerate(zip(*(one.tolist() for one in operands[1:4]), strict=True)):
        if axis == 0:
            continue
        if options.shrinkAxisMask >> axis & 1:
            index.append(begin)
            continue
        first = None if options.beginMask >> axis & 1 else begin
        index.append(slice(first, None if options.endMask >> axis & 1 else end, step))
    return (x[tuple(index)],)


def _split(graph: TorchGraph, operation: GraphOperation, operands: list[Tensor]) -> Results:
    return tuple(operands[1].chunk(operation.options.numSplits, int(operands[0].reshape(-1)[0])))


def _depth_to_space(graph: TorchGraph, operation: GraphOperation, operands: list[Tensor]) -> Results:
    block = operation.options.blockSize
    batch, height, width, channels = operands[0].shape
    blocks = operands[0].reshape(batch, height, width, block, block, channels // block**2)
    return (blocks.permute(0, 1, 3, 2, 4, 5).reshape(batch, block * height, block * width, -1),)


def _resize(mode: str) -> Compute:
    def compute(graph: TorchGraph, operation: GraphOperation, operands: list[Tensor]) -> Results:
        size, options = [int(length) for length in operands[1]], operation.options
        x = operands[0].permute(0, 3, 1, 2)
        if mode == "nearest":
            kind = "nearest-exact" if options.halfPixelCenters else "nearest"
            return (functional.interpolate(x, size=size, mode=kind).permute(0, 2, 3, 1),)
        if not (options.halfPixelCenters or options.alignCorners):
            raise ModelError(f"RESIZE_BILINEAR {graph.name(operation.outputs[0])!r} needs half-pixel centres")
        result = functional.interpolate(x, size=size, mode=mode, align_corners=bool(options.alignCorners))
        return (result.permute(0, 2, 3, 1),)

    return compute


def _batch_matmul(graph: TorchGraph, operation: GraphOperation, operands: list[Tensor]) -> Results:
    options, (a, b) = operation.options, operands
    return ((a.transpose(-1, -2) if options.adjX else a) @ (b.transpose(-1, -2) if options.adjY else b),)


_OPERATIONS: Mapping[str, Compute] = {
    "ADD": _two(torch.add),
    "AVERAGE_POOL_2D": _average_pool,
    "BATCH_MATMUL": _batch_matmul,
    "CONCATENATION": _concatenate,
    "DEPTH_TO_SPACE": _depth_to_space,
    "DEQUANTIZE": _each(torch.Tensor.float),
    "DIV": _two(torch.div),
    "EXPAND_DIMS": _reshape,
    "HARD_SWISH": _each(functional.hardswish),
    "LEAKY_RELU": lambda graph, one, operands: (functional.leaky_relu(operands[0], one.options.alpha),),
    "LOGISTIC": _each(torch.sigmoid),
    "MAX_POOL_2D": _max_pool,
    "MAXIMUM": _two(torch.maximum, activates=False),
    "MEAN": _reduced(torch.mean),
    "MINIMUM": _two(torch.minimum, activates=False),
    "MUL": _two(torch.mul),
    "PAD": _pad_constant,
    "PADV2": _pad_constant,
    "PRELU": _two(lambda x, slope: torch.where(x < 0, x * slope, x), activates=False),
    "REDUCE_MAX": _reduced(torch.amax),
    "RELU": _each(functional.relu),
    "RELU6": _each(functional.relu6),
    "RELU_N1_TO_1": _each(lambda x: x.clamp(-1.0, 1.0)),
    "RESHAPE": _reshape,
    "RESIZE_BILINEAR": _resize("bilinear"),
    "RESIZE_NEAREST_NEIGHBOR": _resize("nearest"),
    "SLICE": _slice,
    "SOFTMAX": lambda graph, one, operands: (torch.softmax(operands[0] * (one.options.beta or 1.0), -1),),
    "SPLIT": _split,
    "SQUEEZE": _reshape,
    "STRIDED_SLICE": _strided_slice,
    "SUB": _two(torch.sub),
    "SUM": _reduced(torch.sum),
    "TANH": _each(torch.tanh),
    "TRANSPOSE": _two(lambda x, order: x.permute(order.tolist()), activates=False),
}
