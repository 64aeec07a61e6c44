"""A float graph of a `.tflite` file that the runtime computes: whole, or cut into pieces.

Quantising needs values from inside a network, and what later operations make of changed ones. A piece is some of
the operations as a file of their own, with weights in place of those of the network, and with activations that
are rounded as INT8 ones are. So every operation that the runtime knows can be measured, and no other copy of the
network is needed.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter

from agent.errors import ModelError
from agent.optimise.graph.integers import Scale, conversion, quantisation
from agent.optimise.graph.objects import DTYPES, Graph, compact, dump, entry_numbers
from agent.optimise.graph.operations import (
    INTEGERS,
    WEIGHTED,
    GraphOperation,
    Key,
    WeightedLayer,
    read_layer,
    read_operation,
)
from agent.types import Array

_TYPES = schema.TensorType


class LayerValues(NamedTuple):
    """Weights in place of those of a layer.

    Attributes:
        weights: float32, in the file's shape.
        bias: float32 [out]; None: the layer has none.
    """

    weights: Array
    bias: Array | None


class GraphPiece:
    """Operations of a graph as a file of their own, open in the runtime. For one thread."""

    def __init__(self, content: bytes) -> None:
        try:
            self._runner = Interpreter(model_content=content, num_threads=1)
            self._runner.allocate_tensors()
        except (ValueError, RuntimeError) as error:
            raise ModelError(f"the runtime cannot run it: {error}") from error
        self._inputs = [(one["index"], one["dtype"]) for one in self._runner.get_input_details()]
        self._outputs = [one["index"] for one in self._runner.get_output_details()]

    def __call__(self, *values: Array) -> list[Array]:
        """Compute the outputs, copies, from one value for each input."""
        self._run(*values)
        return [self._runner.get_tensor(index) for index in self._outputs]

    def views(self, *values: Array) -> list[Array]:
        """Compute the outputs, views of the runtime's memory: they may be read until the next call."""
        self._run(*values)
        return [self._runner.tensor(index)() for index in self._outputs]

    def _run(self, *values: Array) -> None:
        self._runner.reset_all_variables()
        for (index, dtype), value in zip(self._inputs, values, strict=True):
            self._runner.set_tensor(index, value.astype(dtype, copy=False))
        try:
            self._runner.invoke()
        except (ValueError, RuntimeError) as error:
            raise ModelError(f"the runtime cannot run it: {error}") from error


class RuntimeGraph:
    """A graph whose values and layers can be looked at.

    Attributes:
        graph: the subgraph in object form.
        operations: in the order of execution.
        layers: operations with constant float weights.
    """

    def __init__(self, model: Any, number: int = 0) -> None:
        """Read a subgraph of a model in object form, which must not change as long as this lives."""
        self._model = model
        self.graph = Graph(model, model.subgraphs[number])
        self.inputs, self.outputs = list(self.graph.inputs), list(self.graph.outputs)
        self.operations = [read_operation(self.graph, one) for one in self.graph.operators]
        self.layers = [layer for one in self.operations if (layer := read_layer(self.graph, one))]
        self.layer_at = {layer.operation.outputs[0]: layer for layer in self.layers}
        self.last_use = {index: at for at, one in enumerate(self.operations) for index in one.inputs}
        self.last_use |= dict.fromkeys(self.outputs, len(self.operations))

    def name(self, index: int) -> str:
        """Return the name of a tensor."""
        return self.graph.name(index)

    def shape(self, index: int) -> tuple[int, ...]:
        """Return the shape of a tensor in the file, batch first."""
        return self.graph.shape(index)

    def values(self, layer: WeightedLayer) -> LayerValues:
        """Return the weights of a layer."""
        weights, *rest = (self.graph.constant(index) for index in layer.operation.inputs[1:3])
        assert weights is not None
        return LayerValues(weights, rest[0] if layer.bias else None)

    def is_activation(self, index: int) -> bool:
        """Return True for a float32 tensor that is computed, or given by the caller."""
        return self.graph.tensor(index).type == _TYPES.FLOAT32 and self.graph.constant(index) is None

    def takes_integers(self, operation: GraphOperation) -> bool:
        """Return True if an operation has an INT8 kernel, and if it has weights, constant ones."""
        if operation.kind in WEIGHTED:
            return operation.outputs[0] in self.layer_at
        return operation.kind in INTEGERS

    def can_be_cut(self, index: int) -> bool:
        """Return True if the value of a tensor can be handed from one piece to another: numbers, no resource."""
        tensor = self.graph.tensor(index)
        return tensor.type in DTYPES and not tensor.isVariable

    def cuts(self) -> list[int]:
        """Return the first operation and each layer before which the graph can be cut."""
        made = dict.fromkeys(self.inputs, -1)
        made |= {index: at for at, one in enumerate(self.operations) for index in one.outputs}
        fixed = [
            (made[index], last)
            for index, last in self.last_use.items()
            if index in made and not self.can_be_cut(index)
        ]
        layers = [at for at, one in enumerate(self.operations) if one.outputs and one.outputs[0] in self.layer_at]
        return [0, *(at for at in layers if at and not any(first < at <= last for first, last in fixed))]

    def piece(
        self,
        start: int,
        stop: int,
        inputs: Sequence[int],
        outputs: Sequence[int],
        layers: Mapping[Key, LayerValues] | None = None,
        scales: Mapping[str, Scale] | None = None,
    ) -> GraphPiece:
        """Open some operations of the graph.

        Args:
            start: number of the first.
            stop: number of the one behind the last.
            inputs: tensors that are given.
            outputs: tensors that are read.
            layers: weights in place of those of the network.
            scales: of activations by name, that are rounded to INT8 behind the operation that computes them.
        """
        model = copy.copy(self._model)
        model.signatureDefs = model.metadata = model.metadataBuffer = None
        model.attached, model.buffers = b"", list(model.buffers)
        table = copy.copy(self.graph.table)
        table.tensors = [copy.copy(one) for one in table.tensors]
        table.operators = [copy.copy(one) for one in table.operators[start:stop]]
        table.inputs, table.outputs = list(inputs), list(outputs)
        called = model.subgraphs[1:] if any(map(self.graph.calls, table.operators)) else ()
        model.subgraphs, model.operatorCodes = [table, *copy.deepcopy(called)], list(model.operatorCodes)
        graph = Graph(model, table)
        for operator in list(table.operators):
            layer = self.layer_at.get(operator.outputs[0]) if operator.outputs else None
            if layer and layers and layer.key in layers:
                _put(graph, operator, layers[layer.key])
            if scales:
                _round(graph, operator, scales)
        compact(model, merge=False)
        return GraphPiece(dump(model))


def entries_of(model: Any) -> list[RuntimeGraph]:
    """Return the graphs of a model that a caller runs."""
    return [RuntimeGraph(model, number) for number in entry_numbers(model)]


def bodies_of(model: Any) -> list[RuntimeGraph]:
    """Return the graphs of a model that its own operations run: bodies of loops and branches."""
    entries = entry_numbers(model)
    return [RuntimeGraph(model, number) for number in range(len(model.subgraphs)) if number not in entries]


def _put(graph: Graph, operator: Any, values: LayerValues) -> None:
    """Give a layer other weights."""
    constants = [(1, values.weights), *([] if values.bias is None else [(2, values.bias)])]
    operator.inputs = list(operator.inputs)
    for place, value in constants:
        operator.inputs[place] = graph.add_constant(operator.inputs[place], value.astype(np.float32))


def _round(graph: Graph, operator: Any, scales: Mapping[str, Scale]) -> None:
    """Round the results of an operation to INT8 and back; all that read them read these."""
    for index in operator.outputs:
        if (scale := scales.get(graph.name(index))) is None:
            continue
        steps = quantisation([scale.scale], [scale.zero_point])
        integers = graph.add_tensor(index, type=_TYPES.INT8, quantization=steps)
        real = graph.add_tensor(index)
        for one in graph.operators:
            one.inputs = [real if taken == index else taken for taken in one.inputs]
        graph.table.outputs = [real if given == index else given for given in graph.outputs]
        graph.insert(conversion(graph, "DEQUANTIZE", integers, real), operator)
        graph.insert(conversion(graph, "QUANTIZE", index, integers), operator)
