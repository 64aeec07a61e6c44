"""Add float operations to a graph in object form, one behind the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from agent.optimise.graph.objects import Graph, text

_OPERATORS, _OPTIONS, _TYPES = schema.BuiltinOperator, schema.BuiltinOptions, schema.TensorType
_OPTION_TABLES = {
    "ADD": "AddOptions",
    "DEQUANTIZE": "DequantizeOptions",
    "FULLY_CONNECTED": "FullyConnectedOptions",
    "MEAN": "ReducerOptions",
    "MUL": "MulOptions",
    "RESHAPE": "ReshapeOptions",
}
"""Options of operations that are added with their defaults."""


class Additions:
    """Adds operations behind a tensor of a graph, in the order in which they run.

    Args:
        graph: that is changed.
        behind: tensor that the first operation reads.
        prefix: of the names of all tensors that are added.
    """

    def __init__(self, graph: Graph, behind: int, prefix: str) -> None:
        self._graph, self._prefix = graph, prefix
        self._behind = graph.producer(behind)

    def add(self, kind: str, inputs: Sequence[int], shape: Sequence[int], name: str, options: Any = None) -> int:
        """Add an operation with one float output, and return that tensor.

        Args:
            kind: its name in the schema.
            inputs: tensors.
            shape: of the output.
            name: of the output.
            options: object of the schema; None: the defaults of `kind`.
        """
        operator = schema.OperatorT()
        operator.opcodeIndex = self._graph.code(getattr(_OPERATORS, kind), 1)
        operator.inputs = list(inputs)
        operator.outputs = [self._tensor(name, shape, _TYPES.FLOAT32)]
        options = options or getattr(schema, f"{_OPTION_TABLES[kind]}T")()
        operator.builtinOptions = options
        operator.builtinOptionsType = getattr(_OPTIONS, type(options).__name__.removesuffix("T"))
        if self._behind is None:
            self._graph.operators.insert(0, operator)
        else:
            self._graph.insert(operator, self._behind)
        self._behind = operator
        return int(operator.outputs[0])

    def constant(self, name: str, values: Any) -> int:
        """Add a constant, and return its tensor: an array as float32, other numbers as int32."""
        array = np.asarray(values, np.float32 if isinstance(values, np.ndarray) else np.int32)
        stored = schema.BufferT()
        stored.data = np.frombuffer(array.tobytes(), np.uint8)
        self._graph.model.buffers.append(stored)
        kind = _TYPES.FLOAT32 if array.dtype == np.float32 else _TYPES.INT32
        return self._tensor(name, array.shape, kind, len(self._graph.model.buffers) - 1)

    def _tensor(self, name: str, shape: Sequence[int], kind: int, buffer: int = 0) -> int:
        made = schema.TensorT()
        made.name, made.shape = self._unused(f"{self._prefix}/{name}"), np.array(shape, np.int32)
        made.type, made.buffer, made.hasRank = kind, buffer, True
        self._graph.table.tensors.append(made)
        return len(self._graph.table.tensors) - 1

    def _unused(self, name: str) -> str:
        names = {text(tensor.name) for tensor in self._graph.table.tensors}
        while name in names:
            name += "_"
        return name


def pool_options(filter_size: tuple[int, int], stride: tuple[int, int] = (1, 1), *, same: bool = False) -> Any:
    """Return the options of a pooling, by height and width; `same`: as many places as before at a stride of 1."""
    options = schema.Pool2DOptionsT()
    options.padding = schema.Padding.SAME if same else schema.Padding.VALID
    options.filterHeight, options.filterWidth = filter_size
    options.strideH, options.strideW = stride
    return options


def conv_options() -> Any:
    """Return the options of a convolution with strides of 1."""
    options = schema.Conv2DOptionsT()
    options.padding = schema.Padding.VALID
    options.strideH = options.strideW = options.dilationHFactor = options.dilationWFactor = 1
    return options


def reducer_options(*, keep_axes: bool) -> Any:
    """Return the options of a reduction."""
    options = schema.ReducerOptionsT()
    options.keepDims = keep_axes
    return options
