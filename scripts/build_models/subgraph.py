"""Writes one network as a TFLite subgraph: a tensor and an operator per layer, constants as shared buffers."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import quantise
from ai_edge_litert import schema_py_generated as schema
from network import LEAK, Layer, Network, Shape
from numpy.typing import NDArray
from quantise import Quantisation

_TYPES = {
    np.dtype(np.float32): schema.TensorType.FLOAT32,
    np.dtype(np.int32): schema.TensorType.INT32,
    np.dtype(np.int8): schema.TensorType.INT8,
    np.dtype(np.uint8): schema.TensorType.UINT8,
}
_ONE_PIXEL = np.array([[0, 0], [1, 1], [1, 1], [0, 0]], np.int32)
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
        self, store: Store, network: Network, scales: Mapping[str, Quantisation] | None, kernels: Kernels
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
            self._operator(layer.op, operands, self._index[layer.output], _OPTIONS[layer.op](layer))
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
        """The image as it comes in; the INT8 layers read it through a QUANTIZE that shifts uint8 to int8."""
        if not self._scales:
            self._index["image"] = self._activation("image")
            return self._index["image"]
        pixels = self._tensor("image", self._network.shapes["image"], np.dtype(np.uint8), _UINT8_PIXELS)
        self._index["image"] = self._activation("image", "image_int8")
        self._operator("QUANTIZE", [pixels], self._index["image"], schema.QuantizeOptionsT())
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
    kernel, bias, incoming = layer.convolution.kernel, layer.convolution.bias, graph.scale(layer.inputs[0])
    if incoming is None:
        kernel = np.ascontiguousarray(kernel.transpose(3, 0, 1, 2))
        return [graph.constant(f"{layer.output}/kernel", kernel), graph.constant(f"{layer.output}/bias", bias)]
    integers, scale = graph.kernels.get(layer.output) or _nearest(kernel)
    integers = np.ascontiguousarray(integers.transpose(3, 0, 1, 2))
    product = Quantisation(incoming.scale * scale.scale, 0)
    return [
        graph.constant(f"{layer.output}/kernel", integers, scale),
        graph.constant(f"{layer.output}/bias", quantise.bias(bias, product.scale), product),
    ]


def _nearest(kernel: NDArray[np.float32]) -> tuple[NDArray[np.int8], Quantisation]:
    scale = quantise.weight_scale(kernel)
    return quantise.round_weights(kernel, scale.scale), scale


def _padding(graph: Subgraph, layer: Layer) -> list[int]:
    return [graph.constant(f"{layer.output}/pixels", _ONE_PIXEL)]


def _size(graph: Subgraph, layer: Layer) -> list[int]:
    return [graph.constant(f"{layer.output}/size", np.array(layer.shape[1:3], np.int32))]


def _shape(graph: Subgraph, layer: Layer) -> list[int]:
    return [graph.constant(f"{layer.output}/shape", np.array(layer.shape, np.int32))]


_CONSTANTS: Mapping[str, Callable[[Subgraph, Layer], list[int]]] = {
    "CONV_2D": _convolution,
    "PAD": _padding,
    "RESHAPE": _shape,
    "RESIZE_BILINEAR": _size,
}
"""What each operation reads besides its inputs."""


def _options(kind: type, **values: Any) -> Any:
    options = kind()
    for name, value in values.items():
        setattr(options, name, value)
    return options


def _conv_options(layer: Layer) -> Any:
    padding = schema.Padding.SAME if layer.stride == 1 else schema.Padding.VALID
    return _options(
        schema.Conv2DOptionsT,
        padding=padding,
        strideW=layer.stride,
        strideH=layer.stride,
        dilationWFactor=1,
        dilationHFactor=1,
    )


def _pool_options(layer: Layer) -> Any:
    return _options(
        schema.Pool2DOptionsT,
        padding=schema.Padding.VALID,
        strideW=layer.stride,
        strideH=layer.stride,
        filterWidth=3,
        filterHeight=3,
    )


_OPTIONS: Mapping[str, Callable[[Layer], Any]] = {
    "ADD": lambda _: schema.AddOptionsT(),
    "CONCATENATION": lambda layer: _options(schema.ConcatenationOptionsT, axis=layer.axis),
    "CONV_2D": _conv_options,
    "LEAKY_RELU": lambda _: _options(schema.LeakyReluOptionsT, alpha=LEAK),
    "LOGISTIC": lambda _: None,
    "MAX_POOL_2D": _pool_options,
    "PAD": lambda _: schema.PadOptionsT(),
    "RESHAPE": lambda layer: _options(schema.ReshapeOptionsT, newShape=list(layer.shape)),
    "RESIZE_BILINEAR": lambda _: _options(
        schema.ResizeBilinearOptionsT, halfPixelCenters=True, alignCorners=False
    ),
    "SOFTMAX": lambda _: _options(schema.SoftmaxOptionsT, beta=1.0),
}
"""What each operation is told besides its operands."""
