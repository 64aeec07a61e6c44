"""Write networks as one `.tflite` file: a signature per network, equal constants stored once.

Source of the format: https://github.com/google-ai-edge/LiteRT/blob/main/tflite/converter/schema/schema.fbs

What the TFLite schema stores of each operation: version, options, and integer operands.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from agent.optimise.graph.layers import Layer, Network, Shape
from agent.optimise.graph.objects import dump
from agent.optimise.graph.operations import VERSIONS


def _options(kind: type, **values: Any) -> Any:
    options = kind()
    for name, value in values.items():
        setattr(options, name, value)
    return options


def _activation(layer: Layer) -> int:
    return int(getattr(schema.ActivationFunctionType, layer.activation))


def _activated(kind: type) -> Callable[[Layer], Any]:
    return lambda layer: _options(kind, fusedActivationFunction=_activation(layer))


def _conv_options(layer: Layer, kind: type = schema.Conv2DOptionsT, **values: Any) -> Any:
    return _options(
        kind,
        padding=getattr(schema.Padding, layer.padding),
        strideW=layer.stride[1],
        strideH=layer.stride[0],
        dilationWFactor=layer.dilation[1],
        dilationHFactor=layer.dilation[0],
        fusedActivationFunction=_activation(layer),
        **values,
    )


def _depthwise_options(layer: Layer) -> Any:
    return _conv_options(layer, schema.DepthwiseConv2DOptionsT, depthMultiplier=layer.multiplier)


def _connected_options(layer: Layer) -> Any:
    keeps = len(layer.shape) != 2
    return _options(schema.FullyConnectedOptionsT, keepNumDims=keeps, fusedActivationFunction=_activation(layer))


def _pool_options(layer: Layer) -> Any:
    return _options(
        schema.Pool2DOptionsT,
        padding=getattr(schema.Padding, layer.padding),
        strideW=layer.stride[1],
        strideH=layer.stride[0],
        filterWidth=layer.window[1],
        filterHeight=layer.window[0],
        fusedActivationFunction=_activation(layer),
    )


def _reducer_options(layer: Layer) -> Any:
    return _options(schema.ReducerOptionsT, keepDims=layer.keep_axes)


def _resize_options(kind: type) -> Callable[[Layer], Any]:
    return lambda layer: _options(
        kind, halfPixelCenters=layer.sampling == "centres", alignCorners=layer.sampling == "corners"
    )


def _matmul_options(layer: Layer) -> Any:
    return _options(schema.BatchMatMulOptionsT, adjX=layer.transposed[0], adjY=layer.transposed[1])


OPTIONS: Mapping[str, Callable[[Layer], Any]] = {
    "ADD": _activated(schema.AddOptionsT),
    "AVERAGE_POOL_2D": _pool_options,
    "BATCH_MATMUL": _matmul_options,
    "CONCATENATION": lambda layer: _options(schema.ConcatenationOptionsT, axis=layer.axis),
    "CONV_2D": _conv_options,
    "DEPTHWISE_CONV_2D": _depthwise_options,
    "DEPTH_TO_SPACE": lambda layer: _options(schema.DepthToSpaceOptionsT, blockSize=layer.block),
    "DIV": _activated(schema.DivOptionsT),
    "FULLY_CONNECTED": _connected_options,
    "GELU": lambda _: schema.GeluOptionsT(),
    "LEAKY_RELU": lambda layer: _options(schema.LeakyReluOptionsT, alpha=layer.alpha),
    "MAXIMUM": lambda _: schema.MaximumMinimumOptionsT(),
    "MAX_POOL_2D": _pool_options,
    "MEAN": _reducer_options,
    "MINIMUM": lambda _: schema.MaximumMinimumOptionsT(),
    "MUL": _activated(schema.MulOptionsT),
    "PAD": lambda _: schema.PadOptionsT(),
    "QUANTIZE": lambda _: schema.QuantizeOptionsT(),
    "REDUCE_MAX": _reducer_options,
    "RESHAPE": lambda layer: _options(schema.ReshapeOptionsT, newShape=list(layer.shape)),
    "RESIZE_BILINEAR": _resize_options(schema.ResizeBilinearOptionsT),
    "RESIZE_NEAREST_NEIGHBOR": _resize_options(schema.ResizeNearestNeighborOptionsT),
    "SLICE": lambda _: schema.SliceOptionsT(),
    "SOFTMAX": lambda _: _options(schema.SoftmaxOptionsT, beta=1.0),
    "SPACE_TO_DEPTH": lambda layer: _options(schema.SpaceToDepthOptionsT, blockSize=layer.block),
    "SUB": _activated(schema.SubOptionsT),
    "SUM": _reducer_options,
    "TRANSPOSE": lambda _: schema.TransposeOptionsT(),
}
"""Options of the operations that have some."""

Operands = list[tuple[str, NDArray[np.int32]]]


def _integers(*parts: tuple[str, Any]) -> Operands:
    return [(suffix, np.array(values, np.int32)) for suffix, values in parts]


_OPERANDS: Mapping[str, Callable[[Layer], Operands]] = {
    "MEAN": lambda layer: _integers(("axes", layer.axes)),
    "PAD": lambda layer: _integers(("pixels", layer.pads)),
    "REDUCE_MAX": lambda layer: _integers(("axes", layer.axes)),
    "RESHAPE": lambda layer: _integers(("shape", layer.shape)),
    "RESIZE_BILINEAR": lambda layer: _integers(("size", layer.shape[1:3])),
    "RESIZE_NEAREST_NEIGHBOR": lambda layer: _integers(("size", layer.shape[1:3])),
    "SLICE": lambda layer: _integers(("begin", layer.begin), ("size", layer.shape)),
    "SUM": lambda layer: _integers(("axes", layer.axes)),
    "TRANSPOSE": lambda layer: _integers(("order", layer.axes)),
}


def operands(layer: Layer) -> Operands:
    """Return the integer operands behind the inputs of a layer: the end of each one's name, and its values."""
    make = _OPERANDS.get(layer.op)
    return make(layer) if make else []


def options(layer: Layer) -> Any | None:
    """Return the options of a layer's operation, as an object of the schema; None: it has none."""
    make = OPTIONS.get(layer.op)
    return make(layer) if make else None


_TYPES = {
    np.dtype(np.float32): schema.TensorType.FLOAT32,
    np.dtype(np.int32): schema.TensorType.INT32,
    np.dtype(np.int8): schema.TensorType.INT8,
    np.dtype(np.uint8): schema.TensorType.UINT8,
}
_FLOAT = np.dtype(np.float32)

Placement = Callable[[NDArray[Any]], NDArray[Any]]

KERNELS: Mapping[str, tuple[Placement, int]] = {
    "CONV_2D": (lambda kernel: kernel.transpose(3, 0, 1, 2), 0),
    "DEPTHWISE_CONV_2D": (lambda kernel: kernel.transpose(2, 0, 1, 3), 3),
    "FULLY_CONNECTED": (lambda kernel: kernel[0, 0].T, 0),
}
"""How a kernel [height, width, in, out] lies in the file, and the axis of its output channels there."""


class ModelWriter:
    """A `.tflite` file in the making.

    Args:
        description: stored in the file.
    """

    def __init__(self, description: str = "") -> None:
        self._model = schema.ModelT()
        self._model.version = 3
        self._model.description = description
        self._model.buffers = [schema.BufferT()]
        self._model.operatorCodes, self._model.subgraphs, self._model.signatureDefs = [], [], []
        self._buffers: dict[bytes, int] = {}
        self._codes: dict[str, int] = {}

    def add(
        self, key: str, network: Network, outputs: Sequence[str], aliases: Mapping[str, str] | None = None
    ) -> None:
        """Add a float network as signature `key`.

        Args:
            key: of the signature.
            network: whose layers are written.
            outputs: names of the tensors that leave it.
            aliases: names of tensors in the signature, where those differ from their own.
        """
        self.add_subgraph(key, SubgraphWriter(self, network), outputs, aliases or {})

    def add_subgraph(
        self, key: str, subgraph: SubgraphWriter, outputs: Sequence[str], aliases: Mapping[str, str]
    ) -> None:
        """Add what `subgraph` writes as signature `key`; see `add`."""
        graph = subgraph.write(key, outputs)
        signature = schema.SignatureDefT()
        signature.signatureKey, signature.subgraphIndex = key, len(self._model.subgraphs)
        named = [(subgraph.network.entry, graph.inputs[0]), *zip(outputs, graph.outputs, strict=True)]
        maps = [_tensor_map(aliases.get(name, name), index) for name, index in named]
        signature.inputs, signature.outputs = maps[:1], maps[1:]
        self._model.subgraphs.append(graph)
        self._model.signatureDefs.append(signature)

    def pack(self) -> bytes:
        """Return the file's bytes."""
        return dump(self._model)

    def buffer(self, data: bytes) -> int:
        """Return the index of the buffer that holds `data`; equal data is stored once."""
        if data not in self._buffers:
            stored = schema.BufferT()
            stored.data = data
            self._buffers[data] = len(self._model.buffers)
            self._model.buffers.append(stored)
        return self._buffers[data]

    def code(self, op: str) -> int:
        """Return the index of the operator code of `op`."""
        if op not in self._codes:
            code = schema.OperatorCodeT()
            code.builtinCode = getattr(schema.BuiltinOperator, op)
            code.deprecatedBuiltinCode, code.version = min(code.builtinCode, 127), VERSIONS[op]
            self._codes[op] = len(self._model.operatorCodes)
            self._model.operatorCodes.append(code)
        return self._codes[op]


class SubgraphWriter:
    """A float subgraph in the making; a subclass may write other types.

    Args:
        model: that keeps constants and operator codes.
        network: whose layers are written.
    """

    def __init__(self, model: ModelWriter, network: Network) -> None:
        self.network = network
        self._model = model
        self._graph = schema.SubGraphT()
        self._graph.tensors, self._graph.operators = [], []
        self.index: dict[str, int] = {}

    def write(self, key: str, outputs: Sequence[str]) -> schema.SubGraphT:
        """Write all layers, as a subgraph named `key` whose results are `outputs`."""
        self._graph.name = key
        self._graph.inputs = [self.write_input()]
        for layer in self.network.layers:
            inputs = [self._operand(name) for name in layer.inputs]
            inputs += self.weights(layer) if layer.convolution else []
            inputs += [self.constant(f"{layer.output}/{end}", values) for end, values in operands(layer)]
            self.index[layer.output] = self.activation(layer.output)
            self.operator(layer.op, inputs, self.index[layer.output], options(layer))
        self._graph.outputs = [self.index[name] for name in outputs]
        return self._graph

    def write_input(self) -> int:
        """Write the network's input. Return its index."""
        name = self.network.entry
        self.index[name] = self.activation(name)
        return self.index[name]

    def activation(self, name: str) -> int:
        """Write the tensor of an input or of a layer's output. Return its index."""
        return self.tensor(name, self.network.shapes[name], _FLOAT)

    def weights(self, layer: Layer) -> list[int]:
        """Write kernel and bias of a layer. Return their indices."""
        assert layer.convolution is not None
        kernel = np.ascontiguousarray(KERNELS[layer.op][0](layer.convolution.kernel))
        return [
            self.constant(f"{layer.output}/kernel", kernel),
            self.constant(f"{layer.output}/bias", layer.convolution.bias),
        ]

    def constant(
        self, name: str, values: NDArray[Any], quantization: schema.QuantizationParametersT | None = None
    ) -> int:
        """Write a tensor with fixed values. Return its index."""
        index = self.tensor(name, values.shape, values.dtype, quantization)
        self._graph.tensors[index].buffer = self._model.buffer(values.tobytes())
        return index

    def tensor(
        self,
        name: str,
        shape: Shape,
        dtype: np.dtype[Any],
        quantization: schema.QuantizationParametersT | None = None,
    ) -> int:
        """Write a tensor without values. Return its index."""
        tensor = schema.TensorT()
        tensor.name, tensor.shape, tensor.type = name, np.array(shape, np.int32), _TYPES[dtype]
        tensor.quantization = quantization
        self._graph.tensors.append(tensor)
        return len(self._graph.tensors) - 1

    def operator(self, op: str, inputs: Sequence[int], output: int, options: object | None) -> None:
        """Write an operator on these tensors; `options` is an object of the schema."""
        operator = schema.OperatorT()
        operator.opcodeIndex = self._model.code(op)
        operator.inputs, operator.outputs = list(inputs), [output]
        if options is not None:
            operator.builtinOptions = options
            operator.builtinOptionsType = getattr(schema.BuiltinOptions, type(options).__name__.removesuffix("T"))
        self._graph.operators.append(operator)

    def _operand(self, name: str) -> int:
        if name not in self.index:
            self.index[name] = self.constant(name, self.network.constants[name])
        return self.index[name]


def _tensor_map(name: str, index: int) -> schema.TensorMapT:
    entry = schema.TensorMapT()
    entry.name, entry.tensorIndex = name, index
    return entry
