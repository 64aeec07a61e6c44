"""Add to a graph in object form: float operations, one behind the other; or an output `features`.

The output is a map of the backbone, from which states can be taught. It is a tensor that the model computes
anyway, so it costs a copy and no operation. Weights, other outputs and their order stay as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from msgspec import Struct

from agent.compute.manifest import FEATURES
from agent.errors import ModelError
from agent.optimise.graph.objects import Graph, dump, graphs, load, make_signature, text

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


STRIDE = 16
"""Pixels of the input per place of the map: coarser ones lose small regions, finer ones know less of things."""


class FeatureMap(Struct, frozen=True):
    """A tensor that became an output.

    Attributes:
        signature: whose output it is; empty: the file had none.
        tensor: its name.
        shape: [1, height, width, channels].
    """

    signature: str
    tensor: str
    shape: tuple[int, ...]


class FeaturedModel(Struct, frozen=True):
    """A model with features.

    Attributes:
        content: the `.tflite` file.
        maps: by graph.
    """

    content: bytes
    maps: list[FeatureMap]


def add_features(content: bytes, tensor: str = "") -> FeaturedModel:
    """Return the file with an output `features` in each graph that takes a picture.

    Args:
        content: the `.tflite` file.
        tensor: name of the map; empty: the last one at a sixteenth of the input's size before a smaller one is
            computed, which is the end of that stage of a backbone.

    Raises:
        ModelError: the file is damaged, has such an output already, or no graph has such a tensor.
    """
    model = load(content)
    chosen = [_add(model, graph, tensor) for graph in graphs(model) if _takes_picture(graph)]
    if not chosen:
        raise ModelError(
            "takes no picture [1, height, width, 1 or 3] of at least 32×32: features are maps of one"
        )
    return FeaturedModel(dump(model), chosen)


def _takes_picture(graph: Graph) -> bool:
    shape = graph.shape(graph.inputs[0]) if len(graph.inputs) == 1 else ()
    return len(shape) == 4 and shape[3] in (1, 3) and min(shape[1:3]) >= 2 * STRIDE


def _add(model: Any, graph: Graph, tensor: str) -> FeatureMap:
    signatures = [one for one in model.signatureDefs or () if one.subgraphIndex == graph.number]
    names = [text(end.name) for one in signatures for end in one.outputs] or [
        graph.name(index) for index in graph.outputs
    ]
    if FEATURES in names:
        raise ModelError(f"the model has an output called {FEATURES!r} already")
    index = _named(graph, tensor) if tensor else _last_of_stage(graph)
    if not signatures:
        ends = {graph.name(one): one for one in graph.inputs}, {graph.name(one): one for one in graph.outputs}
        signatures = [make_signature("serving_default", graph.number, *ends)]
        model.signatureDefs = [*(model.signatureDefs or ()), *signatures]
    found = FeatureMap(text(signatures[0].signatureKey), graph.name(index), graph.shape(index))
    graph.tensor(index).name = FEATURES  # by which it is found where no signature is named
    graph.outputs.append(index)
    for one in signatures:
        one.outputs = [*one.outputs, *make_signature("", 0, {}, {FEATURES: index}).outputs]
    return found


def _named(graph: Graph, tensor: str) -> int:
    for index in range(len(graph.table.tensors)):
        if graph.name(index) == tensor:
            if graph.producer(index) is None or len(graph.shape(index)) != 4 or index in graph.outputs:
                raise ModelError(f"tensor {tensor!r} is no inner map [1, height, width, channels]")
            return index
    raise ModelError(f"no tensor is called {tensor!r}")


def _last_of_stage(graph: Graph) -> int:
    height = graph.shape(graph.inputs[0])[1]
    found = -1
    for operator in graph.operators:
        index = operator.outputs[0]
        shape = graph.shape(index)
        if len(shape) != 4 or index in graph.outputs or min(shape) < 1:
            continue
        if shape[1] * STRIDE < height - STRIDE and found >= 0:
            break
        if abs(shape[1] * STRIDE - height) < STRIDE and shape[3] > 1 and not _is_padding(graph, index):
            found = index
    if found < 0:
        raise ModelError(f"no map has a {STRIDE}th of the input's height, {height}: name one with --tensor")
    return found


def _is_padding(graph: Graph, index: int) -> bool:
    """Return True for a map that only the border tells from the one before."""
    producer = graph.producer(index)
    source = graph.shape(producer.inputs[0]) if producer is not None else ()
    return len(source) == 4 and source[3] == graph.shape(index)[3] and source[1] < graph.shape(index)[1]
