"""NanoDet as a converter leaves it, and other forms of it that the bench of fusion compares.

The npm package that NanoDet comes from holds what onnx-tf made of it: channels first, each convolution, pooling
and resize between two transpositions, each padding an operation of its own, PADV2(-inf) before the max-pool, and
biases added apart. Its batch norms were folded before; here they are put back, as MUL and ADD.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from agent.optimise.graph.objects import Graph, compact, dump, graphs, load

OPERATORS, PADDING = schema.BuiltinOperator, schema.Padding
MEAN_BGR = np.array([103.53, 116.28, 123.675], np.float32)
STD_BGR = np.array([57.375, 57.12, 58.395], np.float32)
TO_NCHW, TO_NHWC = (0, 3, 1, 2), (0, 2, 3, 1)
_OPTIONS = {"PAD": "PadOptions", "PADV2": "PadV2Options", "TRANSPOSE": "TransposeOptions", "MUL": "MulOptions"}
_OPTIONS |= {"ADD": "AddOptions", "QUANTIZE": "QuantizeOptions", "DEQUANTIZE": "DequantizeOptions"}


def first_graph(content: bytes) -> Graph:
    """Return the first graph of a model, without all others, and without its map of features.

    The bundled model gives that map since it can be taught states; the float graph of a converter has none.
    """
    model = load(content)
    model.subgraphs = model.subgraphs[:1]
    model.signatureDefs = [one for one in model.signatureDefs if one.subgraphIndex == 0]
    table = model.subgraphs[0]
    table.outputs = [one for one in table.outputs if len(table.tensors[one].shape) < 4]
    for signature in model.signatureDefs:
        signature.outputs = [one for one in signature.outputs if one.tensorIndex in table.outputs]
    compact(model)
    return graphs(model)[0]


def packed(graph: Graph) -> bytes:
    compact(graph.model)
    return dump(graph.model)


class Writer:
    """Appends operations to a graph whose own were taken out.

    Attributes:
        taken: the operations that were taken out.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.taken, graph.table.operators = graph.operators, []
        self._like = next(index for index in range(len(graph.table.tensors)) if graph.constant(index) is None)

    def constant(self, values: Any, dtype: type = np.float32) -> int:
        array: np.ndarray = np.ascontiguousarray(values, dtype)
        kind = schema.TensorType.INT32 if dtype is np.int32 else schema.TensorType.FLOAT32
        index = self.graph.add_constant(self._like, array)
        self.graph.tensor(index).type, self.graph.tensor(index).quantization = kind, None
        return index

    def tensor(self, shape: Sequence[int]) -> int:
        """A computed float tensor."""
        index = self.graph.add_tensor(self._like, shape=np.array(shape, np.int32), shapeSignature=None, buffer=0)
        tensor = self.graph.tensor(index)
        tensor.type, tensor.quantization = schema.TensorType.FLOAT32, None
        tensor.name = f"unfused{index}"
        return index

    def apply(self, kind: str, inputs: Sequence[int], output: int) -> int:
        operator = schema.OperatorT()
        operator.opcodeIndex = self.graph.code(getattr(OPERATORS, kind), 1)
        operator.inputs, operator.outputs = list(inputs), [output]
        operator.builtinOptions = getattr(schema, f"{_OPTIONS[kind]}T")()
        operator.builtinOptionsType = getattr(schema.BuiltinOptions, _OPTIONS[kind])
        self.graph.operators.append(operator)
        return output

    def append(self, operator: Any, inputs: Sequence[int], output: int) -> int:
        """An operation that was taken out, with other ends."""
        operator.inputs, operator.outputs = list(inputs), [output]
        self.graph.operators.append(operator)
        return output

    def transpose(self, source: int, order: Sequence[int]) -> int:
        shape = [self.graph.shape(source)[axis] for axis in order]
        return self.apply("TRANSPOSE", (source, self.constant(order, np.int32)), self.tensor(shape))

    def pad(self, source: int, value: float | None = None) -> int:
        """One pixel on each side of [batch, channels, height, width]: zeros, or a value."""
        batch, channels, height, width = self.graph.shape(source)
        amounts = self.constant([(0, 0), (0, 0), (1, 1), (1, 1)], np.int32)
        output = self.tensor((batch, channels, height + 2, width + 2))
        if value is None:
            return self.apply("PAD", (source, amounts), output)
        return self.apply("PADV2", (source, amounts, self.constant(value)), output)


def unfuse(content: bytes, *, batch_norm: bool) -> bytes:
    """Return the first graph of the float NanoDet as a converter leaves it.

    Args:
        content: the file that `scripts/build_models/nanodet --float` writes.
        batch_norm: put batch norms back, with random factors; False: only the additions that the package has.

    Returns:
        A file that takes normalised pixels (pixel - mean) / std, BGR, channels first. Its answers differ from
        those of `content` only where the border shows: the package pads the picture with its mean colour and the
        max-pool with -inf, and `content` both with 0.
    """
    return _Unfusing(first_graph(content), batch_norm=batch_norm).run()


class _Unfusing:
    """Writes the operations of a graph in [batch, height, width, channels] anew, channels first."""

    def __init__(self, graph: Graph, *, batch_norm: bool) -> None:
        self._write, self._graph, self._batch_norm = Writer(graph), graph, batch_norm
        self._random = np.random.default_rng(0)
        (image,) = graph.inputs
        graph.tensor(image).shape = np.array(self._channels_first(image), np.int32)
        self._places, self._is_first = {image: image}, True
        """The tensor channels first by that of the graph."""
        self._special: Mapping[int, Callable[[Any], int]] = {
            OPERATORS.CONV_2D: self._convolve,
            OPERATORS.RESIZE_BILINEAR: self._between_transposes,
            OPERATORS.MAX_POOL_2D: self._pool,
            OPERATORS.PAD: lambda operator: self._write.pad(self._places[operator.inputs[0]]),
            OPERATORS.RESHAPE: self._flatten,
        }

    def run(self) -> bytes:
        for operator in self._activation_first():
            output = operator.outputs[0]
            self._places[output] = self._special.get(self._graph.kind(operator), self._each)(operator)
        return packed(self._graph)

    def _activation_first(self) -> list[Any]:
        """Return the operations with the activation behind the max-pool before its padding, as in the package."""
        operators = self._write.taken
        at = next(n for n, one in enumerate(operators) if self._graph.kind(one) == OPERATORS.MAX_POOL_2D)
        pad, pool, leaky = operators[at - 1 : at + 2]
        wide = self._graph.add_tensor(pad.inputs[0], name="active")
        pool.outputs = list(leaky.outputs)
        leaky.inputs, leaky.outputs = [pad.inputs[0]], [wide]
        pad.inputs = [wide, *pad.inputs[1:]]
        return [*operators[: at - 1], leaky, pad, pool, *operators[at + 2 :]]

    def _channels_first(self, index: int) -> list[int]:
        shape = self._graph.shape(index)
        return [shape[axis] for axis in TO_NCHW]

    def _convolve(self, operator: Any) -> int:
        write, shape = self._write, self._graph.shape(operator.outputs[0])
        kernel, offset = self._weights(operator)
        found = self._places[operator.inputs[0]]
        if operator.builtinOptions.padding == PADDING.SAME and kernel.shape[1] > 1:
            found = write.pad(found)
        operator.builtinOptions.padding = PADDING.VALID
        factor = np.ones_like(offset)
        if self._batch_norm:
            factor = self._random.uniform(0.5, 2.0, len(offset)).astype(np.float32)
        constants = [write.constant(kernel / factor.reshape(-1, 1, 1, 1)), write.constant(np.zeros_like(offset))]
        found = write.append(operator, [write.transpose(found, TO_NHWC), *constants], write.tensor(shape))
        if self._batch_norm:
            found = write.apply("MUL", (found, write.constant(factor)), write.tensor(shape))
        found = write.apply("ADD", (found, write.constant(offset)), write.tensor(shape))
        return write.transpose(found, TO_NCHW)

    def _weights(self, operator: Any) -> tuple[np.ndarray, np.ndarray]:
        """Return kernel and bias; those of the first convolution without the normalisation of the picture."""
        kernel, offset = (self._graph.constant(index) for index in operator.inputs[1:3])
        assert kernel is not None
        assert offset is not None
        if not self._is_first:
            return kernel, offset
        self._is_first = False
        return kernel * STD_BGR, offset + np.einsum("ohwi,i->o", kernel, MEAN_BGR)

    def _between_transposes(self, operator: Any) -> int:
        """An operation that exists for [batch, height, width, channels] only."""
        found = self._write.transpose(self._places[operator.inputs[0]], TO_NHWC)
        output = self._write.tensor(self._graph.shape(operator.outputs[0]))
        return self._write.transpose(self._write.append(operator, (found, *operator.inputs[1:]), output), TO_NCHW)

    def _pool(self, operator: Any) -> int:
        """The max-pool, with -inf in place of the zeros of the padding before it."""
        pad = self._graph.operators[-1]
        pad.opcodeIndex, pad.inputs = (
            self._graph.code(OPERATORS.PADV2, 1),
            [*pad.inputs, self._write.constant(-np.inf)],
        )
        pad.builtinOptions, pad.builtinOptionsType = schema.PadV2OptionsT(), schema.BuiltinOptions.PadV2Options
        return self._between_transposes(operator)

    def _flatten(self, operator: Any) -> int:
        found = self._places[operator.inputs[0]]
        if len(self._graph.shape(found)) == 4:
            found = self._write.transpose(found, TO_NHWC)
        return self._write.append(operator, (found, *operator.inputs[1:]), operator.outputs[0])

    def _each(self, operator: Any) -> int:
        """An operation that is the same in both layouts, but for an axis."""
        output, inputs = operator.outputs[0], [self._places.get(index, index) for index in operator.inputs]
        if len(self._graph.shape(output)) < 4:
            return self._write.append(operator, inputs, output)
        if self._graph.kind(operator) == OPERATORS.CONCATENATION:
            operator.builtinOptions.axis = TO_NCHW.index(operator.builtinOptions.axis % 4)
        return self._write.append(operator, inputs, self._write.tensor(self._channels_first(output)))


def with_float_ends(content: bytes) -> bytes:
    """Return the first graph of an INT8 model with float inputs and outputs, as quantisers leave them."""
    write = Writer(first_graph(content))
    graph, operators = write.graph, write.taken
    (image,) = graph.inputs
    entry = write.tensor(graph.shape(image))
    graph.replace_end(image, entry)
    write.apply("QUANTIZE", (entry,), image)
    graph.operators.extend(operators)
    for output in list(graph.outputs):
        real = write.tensor(graph.shape(output))
        graph.replace_end(output, real)
        write.apply("DEQUANTIZE", (output,), real)
    return packed(graph)


def as_float(content: bytes) -> bytes:
    """Return the first graph of an INT8 model in floats: its weights as they are, its ends too."""
    graph = first_graph(content)
    for index in range(len(graph.table.tensors)):
        tensor = graph.tensor(index)
        value, found = graph.constant(index), tensor.quantization
        if found is None or found.scale is None:
            continue
        if value is not None:
            scale = np.asarray(found.scale, np.float32)
            real = value.astype(np.float32) * scale.reshape(-1, *[1] * (value.ndim - 1))
            tensor.buffer = graph.tensor(graph.add_constant(index, real.astype(np.float32))).buffer
        tensor.type, tensor.quantization = schema.TensorType.FLOAT32, None
    for operator in [one for one in graph.operators if graph.kind(one) == OPERATORS.QUANTIZE]:
        graph.remove(operator, operator.inputs[0])
    return packed(graph)
