"""Writes one network as a TFLite subgraph: a tensor and an operator per layer, constants as shared buffers."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import quantise
from ai_edge_litert import schema_py_generated as schema
from layers import Graph, Layer, Shape
from numpy.typing import NDArray
from operations import OPTIONS
from quantise import Quantisation

_TYPES = {
    np.dtype(np.float32): schema.TensorType.FLOAT32,
    np.dtype(np.int32): schema.TensorType.INT32,
    np.dtype(np.int8): schema.TensorType.INT8,
    np.dtype(np.uint8): schema.TensorType.UINT8,
}
_UINT8_PIXELS = Quantisation(quantise.PIXELS.scale, 0)


Kernels = Mapping[str, tuple[NDArray[np.int8], Quantisation]]
"""Integer kernels [height, width, in, out] and their scales, by the name of the layer's output."""


class Store(Protocol):
    """Where constants and operator codes are kept, once for all subgraphs."""

    def buffer(self, data: bytes) -> int:
        """The index of the buffer that holds `data`."""
        ...

    def code(self, op: str) -> int:
        """The index of the operator code of `op`."""
        ...


class Subgraph:
    """A subgraph in the making: INT8 where `scales` are given, else float."""

    def __init__(
        self, store: Store, network: Graph, scales: Mapping[str, Quantisation] | None, kernels: Kernels
    ) -> None:
        self._store = store
        self.kernels = kernels
        self._network = network
        self._scales = scales
        self._graph = schema.SubGraphT()
        self._graph.tensors, self._graph.operators = [], []
        self._index: dict[str, int] = {}

    def write(self, key: str, outputs: Sequence[str]) -> schema.SubGraphT:
        """Write all layers; `outputs` are the names of the tensors that leave the subgraph."""
        self._graph.name = key
        self._graph.inputs = [self._write_input()]
        for layer in self._network.layers:
            operands = [self._index[name] for name in layer.inputs]
            operands += _CONSTANTS.get(layer.op, _no_constants)(self, layer)
            self._index[layer.output] = self._activation(layer.output)
            self._operator(layer.op, operands, self._index[layer.output], OPTIONS[layer.op](layer))
        self._graph.outputs = [self._index[name] for name in outputs]
        return self._graph

    def constant(self, name: str, values: NDArray[Any], scale: Quantisation | None = None, axis: int = 0) -> int:
        """Add a tensor with fixed values."""
        index = self._tensor(name, values.shape, values.dtype, scale, axis)
        self._graph.tensors[index].buffer = self._store.buffer(values.tobytes())
        return index

    def scale(self, name: str) -> Quantisation | None:
        """The scale of an activation; None in a float subgraph."""
        return self._scales[name] if self._scales else None

    def _write_input(self) -> int:
        """The input; INT8 layers read pixels through a QUANTIZE that shifts uint8 to int8."""
        name = self._network.entry
        if not (self._scales and self._network.pixels):
            self._index[name] = self._activation(name)
            return self._index[name]
        pixels = self._tensor(name, self._network.shapes[name], np.dtype(np.uint8), _UINT8_PIXELS)
        self._index[name] = self._activation(name, f"{name}_int8")
        self._operator("QUANTIZE", [pixels], self._index[name], schema.QuantizeOptionsT())
        return pixels

    def _activation(self, name: str, written_as: str = "") -> int:
        dtype = np.dtype(np.int8 if self._scales else np.float32)
        return self._tensor(written_as or name, self._network.shapes[name], dtype, self.scale(name))

    def _tensor(
        self, name: str, shape: Shape, dtype: np.dtype[Any], scale: Quantisation | None, axis: int = 0
    ) -> int:
        tensor = schema.TensorT()
        tensor.name, tensor.shape, tensor.type = name, np.array(shape, np.int32), _TYPES[dtype]
        if scale:
            tensor.quantization = schema.QuantizationParametersT()
            tensor.quantization.scale = scale.scale
            tensor.quantization.zeroPoint = np.full(scale.scale.shape, scale.zero_point, np.int64)
            tensor.quantization.quantizedDimension = axis
        self._graph.tensors.append(tensor)
        return len(self._graph.tensors) - 1

    def _operator(self, op: str, inputs: Sequence[int], output: int, options: object | None) -> None:
        operator = schema.OperatorT()
        operator.opcodeIndex = self._store.code(op)
        operator.inputs, operator.outputs = list(inputs), [output]
        if options is not None:
            operator.builtinOptions = options
            operator.builtinOptionsType = getattr(schema.BuiltinOptions, type(options).__name__.removesuffix("T"))
        self._graph.operators.append(operator)


def _no_constants(graph: Subgraph, layer: Layer) -> list[int]:
    return []


def _convolution(graph: Subgraph, layer: Layer) -> list[int]:
    """Kernel and bias, rounded where the input has a scale."""
    assert layer.convolution is not None
    place, axis = _KERNELS[layer.op]
    kernel, bias, incoming = layer.convolution.kernel, layer.convolution.bias, graph.scale(layer.inputs[0])
    if incoming is None:
        kernel = np.ascontiguousarray(place(kernel))
        return [graph.constant(f"{layer.output}/kernel", kernel), graph.constant(f"{layer.output}/bias", bias)]
    integers, scale = graph.kernels.get(layer.output) or quantise.nearest(layer)
    integers = np.ascontiguousarray(place(integers))
    product = Quantisation(incoming.scale * scale.scale, 0)
    return [
        graph.constant(f"{layer.output}/kernel", integers, scale, axis),
        graph.constant(f"{layer.output}/bias", quantise.bias(bias, product.scale), product),
    ]


_KERNELS: Mapping[str, tuple[Callable[[NDArray[Any]], NDArray[Any]], int]] = {
    "CONV_2D": (lambda kernel: kernel.transpose(3, 0, 1, 2), 0),
    "DEPTHWISE_CONV_2D": (lambda kernel: kernel.transpose(2, 0, 1, 3), 3),
    "FULLY_CONNECTED": (lambda kernel: kernel[0, 0].T, 0),
}
"""How a kernel [height, width, in, out] lies in the file, and the axis of its scales there."""


def _padding(graph: Subgraph, layer: Layer) -> list[int]:
    return [graph.constant(f"{layer.output}/pixels", np.array(layer.pads, np.int32))]


def _size(graph: Subgraph, layer: Layer) -> list[int]:
    return [graph.constant(f"{layer.output}/size", np.array(layer.shape[1:3], np.int32))]


def _shape(graph: Subgraph, layer: Layer) -> list[int]:
    return [graph.constant(f"{layer.output}/shape", np.array(layer.shape, np.int32))]


def _axes(graph: Subgraph, layer: Layer) -> list[int]:
    return [graph.constant(f"{layer.output}/axes", np.array(layer.axes, np.int32))]


def _slice(graph: Subgraph, layer: Layer) -> list[int]:
    begin = graph.constant(f"{layer.output}/begin", np.array(layer.begin, np.int32))
    return [begin, graph.constant(f"{layer.output}/size", np.array(layer.shape, np.int32))]


_CONSTANTS: Mapping[str, Callable[[Subgraph, Layer], list[int]]] = {
    "CONV_2D": _convolution,
    "DEPTHWISE_CONV_2D": _convolution,
    "FULLY_CONNECTED": _convolution,
    "MEAN": _axes,
    "PAD": _padding,
    "RESHAPE": _shape,
    "RESIZE_BILINEAR": _size,
    "SLICE": _slice,
}
"""Further operands of each operation."""
