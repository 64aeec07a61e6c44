"""Turns a float `.tflite` model into one with INT8 activations and INT8 or INT4 weights.

`real = scale * (integer - zero_point)`; weights are symmetric, with one scale per output channel. Operations
without an INT8 kernel stay float, between a DEQUANTIZE and a QUANTIZE.
Source: https://ai.google.dev/edge/litert/models/quantization_spec
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from agent.optimise.graph.objects import Graph, compact, entry_numbers, pack_int4
from agent.optimise.graph.operations import INTEGERS, KINDS, VERSIONS, Key

INT8_MIN, INT8_MAX = -128, 127
Ends = Literal["uint8", "int8"]
_TYPES = schema.TensorType
_CHANNEL_AXIS = {"CONV_2D": 0, "DEPTHWISE_CONV_2D": 3, "FULLY_CONNECTED": 0}
_INT4_VERSIONS = {"CONV_2D": 7, "DEPTHWISE_CONV_2D": 7, "FULLY_CONNECTED": 12}
_DYNAMIC_VERSIONS = {"CONV_2D": 5, "DEPTHWISE_CONV_2D": 6, "FULLY_CONNECTED": 9}


class Scale(NamedTuple):
    """Quantisation of a tensor of activations."""

    scale: float
    zero_point: int


class IntegerWeights(NamedTuple):
    """Weights of one layer as integers.

    Attributes:
        integers: int8 of the file's shape; -8..7 where `bits` is 4.
        scales: float32 [out].
        bits: 4 or 8.
        bias: real values, float64 [out]; None: the layer has none.
    """

    integers: NDArray[np.int8]
    scales: NDArray[np.float32]
    bits: int
    bias: NDArray[np.float64] | None


FIXED: Mapping[str, Scale] = {
    "LOGISTIC": Scale(1 / 256, INT8_MIN),
    "SOFTMAX": Scale(1 / 256, INT8_MIN),
    "TANH": Scale(1 / 128, 0),
}
"""Scale of the output of operations whose kernels know no other."""


class IntegerPlan(NamedTuple):
    """What `write` needs to know.

    Attributes:
        activations: by name of the tensor; none: weights alone become integers.
        weights: by layer. Bodies of loops and branches get integer weights alone.
    """

    activations: Mapping[str, Scale]
    weights: Mapping[Key, IntegerWeights]


def from_range(low: float, high: float) -> Scale:
    """Return the asymmetric INT8 scale of the real range low..high, which is widened to hold 0."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = float(np.float32(max(high - low, 1e-12) / (INT8_MAX - INT8_MIN)))
    return Scale(scale, min(max(round(INT8_MIN - low / scale), INT8_MIN), INT8_MAX))


def write(model: Any, plan: IntegerPlan, ends: Ends = "uint8") -> None:
    """Turn all subgraphs of a float model in object form into integers.

    Args:
        model: `ModelT`; it is changed.
        plan: scales and weights.
        ends: dtype of the inputs: `uint8` is converted by a QUANTIZE, with the scale of the input. Outputs are
            int8.
    """
    writer, entries = _Writer(model), entry_numbers(model)
    for number, graph in enumerate(model.subgraphs):
        writer.write(graph, plan if number in entries else plan._replace(activations={}), ends)
    compact(model)


class _Writer:
    """Converts subgraphs; layers that share weights and scales share the new constants."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._constants: dict[tuple[Any, ...], int] = {}

    def write(self, subgraph: Any, plan: IntegerPlan, ends: Ends) -> None:
        graph, self._plan = Graph(self._model, subgraph), plan
        self._floats: dict[int, int] = {}
        operators = list(graph.operators)
        inputs = list(graph.inputs)
        if plan.activations:
            for index in {*inputs, *(index for one in operators for index in self._integers(graph, one))}:
                self._quantise(graph, index)
        converted: list[Any] = []
        for operator in operators:
            self._convert(graph, operator, converted)
        subgraph.operators = converted
        if self._plan.activations:
            for index in inputs:
                if ends == "uint8" and graph.tensor(index).type == _TYPES.INT8:
                    self._take_bytes(graph, index)

    def _kind(self, graph: Graph, operator: Any) -> str:
        return str(KINDS.get(graph.kind(operator), "?"))

    def _integers(self, graph: Graph, operator: Any) -> list[int]:
        """Return the tensors of an operation that become INT8: not those of weights, nor constants of floats."""
        kind = self._kind(graph, operator)
        if kind in _CHANNEL_AXIS and self._layer(graph, operator) is not None:
            return [operator.inputs[0], *operator.outputs]
        if kind in INTEGERS and kind not in _CHANNEL_AXIS:
            return [*(index for index in operator.inputs if index >= 0), *operator.outputs]
        return [*(one for one in operator.inputs if one >= 0 and graph.constant(one) is None), *operator.outputs]

    def _quantise(self, graph: Graph, index: int) -> None:
        """Make a float tensor of activations INT8, or a float constant that they are computed with."""
        tensor = graph.tensor(index)
        if tensor.type != _TYPES.FLOAT32:
            return
        constant = graph.constant(index)
        scale = self._plan.activations.get(graph.name(index))
        if constant is not None:
            scale = scale or from_range(float(constant.min(initial=0.0)), float(constant.max(initial=0.0)))
            values = np.clip(np.round(constant / scale.scale) + scale.zero_point, INT8_MIN, INT8_MAX).astype(
                np.int8
            )
            tensor.buffer = self._buffer(("constant", tensor.buffer, scale), values)
        elif scale is None:
            return
        tensor.type = _TYPES.INT8
        tensor.quantization = quantisation([scale.scale], [scale.zero_point])

    def _convert(self, graph: Graph, operator: Any, converted: list[Any]) -> None:
        kind = self._kind(graph, operator)
        if kind in _CHANNEL_AXIS and (layer := self._layer(graph, operator)) is not None:
            self._convert_layer(graph, operator, kind, *layer)
        elif self._plan.activations and kind in INTEGERS and kind not in _CHANNEL_AXIS:
            operator.opcodeIndex = graph.code(graph.kind(operator), VERSIONS[kind])
        elif self._plan.activations:
            self._keep_float(graph, operator, converted)
            return
        converted.append(operator)
        if self._plan.activations and kind in FIXED:
            self._rescale(graph, operator, FIXED[kind], converted)

    def _rescale(self, graph: Graph, operator: Any, scale: Scale, converted: list[Any]) -> None:
        """Convert the result of an operation that knows one scale to that of its tensor, where it is another."""
        (index,) = operator.outputs
        found = graph.tensor(index).quantization
        if graph.tensor(index).type != _TYPES.INT8 or np.float32(scale.scale) == np.float32(found.scale[0]):
            return
        own = quantisation([scale.scale], [scale.zero_point])
        operator.outputs = [graph.add_tensor(index, name=f"{graph.name(index)}_own", quantization=own)]
        converted.append(conversion(graph, "QUANTIZE", operator.outputs[0], index))

    def _keep_float(self, graph: Graph, operator: Any, converted: list[Any]) -> None:
        """Put an operation without an INT8 kernel between conversions."""
        for position, index in enumerate(operator.inputs):
            if index >= 0 and graph.tensor(index).type == _TYPES.INT8:
                if index not in self._floats:
                    self._floats[index] = self._float_copy(graph, index)
                    converted.append(conversion(graph, "DEQUANTIZE", index, self._floats[index]))
                operator.inputs[position] = self._floats[index]
        converted.append(operator)
        for position, index in enumerate(list(operator.outputs)):
            if graph.tensor(index).type == _TYPES.INT8:
                operator.outputs[position] = self._float_copy(graph, index)
                converted.append(conversion(graph, "QUANTIZE", operator.outputs[position], index))

    def _float_copy(self, graph: Graph, index: int) -> int:
        name = f"{graph.name(index)}_float"
        return graph.add_tensor(index, name=name, type=_TYPES.FLOAT32, quantization=None, buffer=0)

    def _layer(self, graph: Graph, operator: Any) -> tuple[Key, IntegerWeights] | None:
        """Return the integers of a layer; None: it stays float."""
        weights, *rest = map(int, operator.inputs[1:3])
        bias = int(graph.tensor(rest[0]).buffer) if rest and rest[0] >= 0 else 0
        key = (int(graph.tensor(weights).buffer), bias)
        return (key, self._plan.weights[key]) if key in self._plan.weights else None

    def _convert_layer(self, graph: Graph, operator: Any, kind: str, key: Key, found: IntegerWeights) -> None:
        """Give a layer tensors of its own for weights and bias: others may read those that it has now."""
        zero_points = np.zeros(len(found.scales), np.int64)
        operator.inputs[1] = graph.add_tensor(
            operator.inputs[1],
            buffer=self._buffer(
                ("weights", *key), pack_int4(found.integers) if found.bits == 4 else found.integers
            ),
            type=_TYPES.INT4 if found.bits == 4 else _TYPES.INT8,
            quantization=quantisation(found.scales, zero_points, _CHANNEL_AXIS[kind]),
        )
        operator.opcodeIndex = graph.code(graph.kind(operator), self._version(kind, found.bits))
        if kind == "FULLY_CONNECTED" and not self._plan.activations:
            operator.builtinOptions.asymmetricQuantizeInputs = True
        if found.bias is not None:
            operator.inputs[2] = self._bias(graph, operator, found.bias, found.scales, key)

    def _version(self, kind: str, bits: int) -> int:
        if bits == 4:
            return _INT4_VERSIONS[kind]
        return VERSIONS[kind] if self._plan.activations else _DYNAMIC_VERSIONS[kind]

    def _bias(self, graph: Graph, operator: Any, bias: NDArray[np.float64], scales: Any, key: Key) -> int:
        """Round a bias to the scale of the products that it is added to; float activations keep it."""
        like = operator.inputs[2]
        if not self._plan.activations:
            return graph.add_tensor(like, buffer=self._buffer(("bias", *key), bias.astype(np.float32)))
        incoming = np.float32(graph.tensor(operator.inputs[0]).quantization.scale[0])
        products = incoming * scales
        limits = np.iinfo(np.int32)
        integers = np.clip(np.round(bias / products.astype(np.float64)), limits.min, limits.max).astype(np.int32)
        return graph.add_tensor(
            like,
            buffer=self._buffer(("bias", *key, float(incoming)), integers),
            type=_TYPES.INT32,
            quantization=quantisation(products, np.zeros(len(products), np.int64)),
        )

    def _buffer(self, key: tuple[Any, ...], values: NDArray[Any]) -> int:
        if key not in self._constants:
            buffer = schema.BufferT()
            buffer.data = np.frombuffer(values.tobytes(), np.uint8)
            self._model.buffers.append(buffer)
            self._constants[key] = len(self._model.buffers) - 1
        return self._constants[key]

    def _take_bytes(self, graph: Graph, index: int) -> None:
        """Let an input take uint8, with the scale of its INT8."""
        inner, name = graph.tensor(index), graph.name(index)
        scale, zero_point = float(inner.quantization.scale[0]), int(inner.quantization.zeroPoint[0])
        bytes_ = quantisation([scale], [zero_point - INT8_MIN])
        outer = graph.add_tensor(index, type=_TYPES.UINT8, quantization=bytes_)
        graph.replace_end(index, outer)
        graph.tensor(outer).name, inner.name = name, f"{name}_int8"
        graph.operators.insert(0, conversion(graph, "QUANTIZE", outer, index))


def quantisation(scales: Any, zero_points: Any, axis: int = 0) -> Any:
    """Return the quantisation of a tensor in object form (`QuantizationParametersT`)."""
    found = schema.QuantizationParametersT()
    found.scale, found.zeroPoint = np.asarray(scales, np.float32), np.asarray(zero_points, np.int64)
    found.quantizedDimension = axis
    return found


def conversion(graph: Graph, kind: str, source: int, result: int) -> Any:
    """Return a QUANTIZE or DEQUANTIZE in object form (`OperatorT`)."""
    operator = schema.OperatorT()
    operator.opcodeIndex = graph.code(getattr(schema.BuiltinOperator, kind), 2)
    operator.inputs, operator.outputs = [source], [result]
    options = "QuantizeOptions" if kind == "QUANTIZE" else "DequantizeOptions"
    operator.builtinOptions = getattr(schema, f"{options}T")()
    operator.builtinOptionsType = getattr(schema.BuiltinOptions, options)
    return operator
