"""Graphs in object form, built tensor by tensor, for tests of what changes graphs. Needs LiteRT's schema."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from agent.optimise.graph.objects import dump

OPERATORS = schema.BuiltinOperator
TYPES = schema.TensorType
SAME, VALID = schema.Padding.SAME, schema.Padding.VALID
TO_NCHW, TO_NHWC = (0, 3, 1, 2), (0, 2, 3, 1)


class Sketch:
    """A graph in object form, built tensor by tensor."""

    def __init__(self) -> None:
        self.model = schema.ModelT()
        self.model.version, self.model.buffers, self.model.operatorCodes = 3, [schema.BufferT()], []
        self.graph = schema.SubGraphT()
        self.graph.tensors, self.graph.operators = [], []
        self.model.subgraphs = [self.graph]

    def tensor(
        self,
        shape: Sequence[int],
        kind: int = TYPES.FLOAT32,
        data: NDArray[Any] | bytes | None = None,
        scale: float | NDArray[np.float32] | None = None,
        zero_point: int = 0,
    ) -> int:
        tensor = schema.TensorT()
        tensor.name, tensor.shape, tensor.type = f"t{len(self.graph.tensors)}", np.array(shape, np.int32), kind
        if scale is not None:
            tensor.quantization = schema.QuantizationParametersT()
            tensor.quantization.scale = np.atleast_1d(np.asarray(scale, np.float32))
            tensor.quantization.zeroPoint = np.full(tensor.quantization.scale.shape, zero_point, np.int64)
        if data is not None:
            buffer = schema.BufferT()
            content = data if isinstance(data, bytes) else data.tobytes()
            buffer.data = np.frombuffer(content, np.uint8)
            self.model.buffers.append(buffer)
            tensor.buffer = len(self.model.buffers) - 1
        self.graph.tensors.append(tensor)
        return len(self.graph.tensors) - 1

    def apply(self, kind: str, inputs: Sequence[int], output: int, options: str = "", **settings: Any) -> int:
        code = schema.OperatorCodeT()
        code.builtinCode = getattr(OPERATORS, kind)
        code.deprecatedBuiltinCode, code.version = min(code.builtinCode, 127), settings.pop("version", 1)
        self.model.operatorCodes.append(code)
        operator = schema.OperatorT()
        operator.opcodeIndex, operator.inputs, operator.outputs = (
            len(self.model.operatorCodes) - 1,
            list(inputs),
            [output],
        )
        if options:
            operator.builtinOptions = getattr(schema, f"{options}T")()
            operator.builtinOptionsType = getattr(schema.BuiltinOptions, options)
            for name, value in settings.items():
                setattr(operator.builtinOptions, name, value)
        self.graph.operators.append(operator)
        return output

    def shape(self, index: int) -> tuple[int, ...]:
        return tuple(map(int, self.graph.tensors[index].shape))

    def constant(self, values: Any, dtype: Any = np.float32) -> int:
        array = np.array(values, dtype)
        return self.tensor(array.shape, TYPES.INT32 if array.dtype == np.int32 else TYPES.FLOAT32, array)

    def same(self, kind: str, inputs: Sequence[int], options: str = "", **settings: Any) -> int:
        """An operation whose result has the shape and type of its first input."""
        first = self.graph.tensors[inputs[0]]
        output = self.tensor(self.shape(inputs[0]), first.type)
        self.graph.tensors[output].quantization = first.quantization
        return self.apply(kind, inputs, output, options, **settings)

    def transpose(self, source: int, order: Sequence[int]) -> int:
        shape = [self.shape(source)[axis] for axis in order]
        inputs = (source, self.constant(order, np.int32))
        return self.apply("TRANSPOSE", inputs, self.tensor(shape), "TransposeOptions")

    def pad(self, source: int, amounts: Sequence[tuple[int, int]], value: float | None = None) -> int:
        """PADV2 with a value, PAD without."""
        shape = [size + sum(pads) for size, pads in zip(self.shape(source), amounts, strict=True)]
        inputs = [source, self.constant(amounts, np.int32), *([] if value is None else [self.constant(value)])]
        kind = "PAD" if value is None else "PADV2"
        return self.apply(kind, inputs, self.tensor(shape), "PadOptions" if value is None else "PadV2Options")

    def pool(self, source: int, size: int = 3, stride: int = 2) -> int:
        batch, height, width, channels = self.shape(source)
        shape = (batch, (height - size) // stride + 1, (width - size) // stride + 1, channels)
        settings = {
            "padding": VALID,
            "strideW": stride,
            "strideH": stride,
            "filterWidth": size,
            "filterHeight": size,
        }
        return self.apply("MAX_POOL_2D", (source,), self.tensor(shape), "Pool2DOptions", **settings)

    def convolve(
        self,
        source: int,
        weights: NDArray[np.floating[Any]],
        *,
        padding: int = SAME,
        stride: int = 1,
    ) -> int:
        """CONV_2D with `weights` [output channels, height, width, input channels]."""
        batch, *sizes, _ = self.shape(source)
        lost = [0, 0] if padding == SAME else [size - 1 for size in weights.shape[1:3]]
        shape = [
            batch,
            *(-(-(size - less) // stride) for size, less in zip(sizes, lost, strict=True)),
            len(weights),
        ]
        bias = self.constant(np.linspace(-1, 1, len(weights)))
        strides = {"strideW": stride, "strideH": stride, "dilationWFactor": 1, "dilationHFactor": 1}
        inputs = (source, self.constant(weights), bias)
        return self.apply("CONV_2D", inputs, self.tensor(shape), "Conv2DOptions", padding=padding, **strides)

    def file(self, inputs: Sequence[int], outputs: Sequence[int]) -> bytes:
        self.graph.inputs, self.graph.outputs = list(inputs), list(outputs)
        return dump(self.model)
