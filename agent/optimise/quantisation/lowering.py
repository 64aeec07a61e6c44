"""Turns custom operations of known meaning into those of the schema, which every runtime and the workshop take.

MediaPipe's `Convolution2DTransposeBias` is a transposed convolution with a bias. Where its kernel is as large as
its stride, no two of its windows overlap: each input pixel gives a block of output pixels. That is a 1×1
convolution with a channel for each place of the block, and a DEPTH_TO_SPACE.
Source: google-ai-edge/mediapipe, `mediapipe/util/tflite/operations/transpose_conv_bias.cc`

Rewrites of a float graph for INT8: operations without an INT8 kernel in XNNPACK become those that have one.

One operation that the delegate leaves to the runtime's own kernels breaks the graph into pieces, and is slow by
itself. The rewritten float graph computes the same, but for the order of a sum.

Equalises the channels of activations, so that one scale serves all of them.

INT8 activations have one scale for a tensor. A channel that is much narrower than the widest then has few steps
of it, and a layer that multiplies it by large weights multiplies its rounding too: in separable networks without
an activation between depthwise and 1×1 convolution it is the largest error. A narrow channel is multiplied by a
factor in the layer that computes it, and the weights of the one layer that reads it are divided by it. Factors
are powers of two, so that the float model answers as before, to the bit.
Source: Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction,
https://arxiv.org/abs/1906.04721; Xiao et al., SmoothQuant, https://arxiv.org/abs/2211.10438.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from agent.errors import ModelError
from agent.optimise.graph.fusion import activation
from agent.optimise.graph.objects import DAMAGE, Graph, compact, dump, graphs, load, text
from agent.optimise.graph.runtime_graph import RuntimeGraph
from agent.types import Array

TRANSPOSED = "Convolution2DTransposeBias"
_OPERATORS = schema.BuiltinOperator
_OPTIONS = struct.Struct("<iii")
"""`TfLiteTransposeConvParams`: padding, stride in width, stride in height."""
_CONV_2D, _DEPTH_TO_SPACE = 1, 1
"""Versions that take floats."""


def lower_custom(content: bytes) -> bytes:
    """Return a file in which each transposed convolution of MediaPipe is built from operations of the schema.

    Args:
        content: of a float `.tflite` file. Without such an operation it is returned as it is.

    Raises:
        ModelError: the file is damaged, or an operation has weights that are computed, or overlapping windows.
    """
    if TRANSPOSED.encode() not in content:
        return content
    model = load(content)
    try:
        count = sum(_lower(graph) for graph in graphs(model))
    except DAMAGE as error:
        raise ModelError(f"{TRANSPOSED} cannot be read: {error}") from error
    if not count:
        return content
    compact(model)
    return dump(model)


def _lower(graph: Graph) -> int:
    found = [one for one in graph.operators if _custom(graph, one) == TRANSPOSED]
    for operator in found:
        _replace(graph, operator)
    return len(found)


def _custom(graph: Graph, operator: Any) -> str:
    name = graph.model.operatorCodes[operator.opcodeIndex].customCode
    return text(name) if name else ""


def _replace(graph: Graph, operator: Any) -> None:
    """Put a 1×1 convolution and a DEPTH_TO_SPACE in the place of a transposed convolution."""
    block = _block(graph, operator)
    weights, bias = (_floats(graph, index) for index in operator.inputs[1:3])
    if weights.shape[1:3] != (block, block):
        raise ModelError(
            f"{TRANSPOSED} {graph.name(operator.outputs[0])!r} has a kernel of {weights.shape[1]}×"
            f"{weights.shape[2]} and a stride of {block}: windows that overlap cannot be converted"
        )
    rows = weights.transpose(1, 2, 0, 3).reshape(-1, 1, 1, weights.shape[3])
    source, result = operator.inputs[0], operator.outputs[0]
    shape = np.array([*graph.shape(source)[:3], len(rows)], np.int32)
    inner = graph.add_tensor(result, name=f"{graph.name(result)}_blocks", shape=shape, shapeSignature=None)
    operands = [
        _constant(graph, "weights", result, rows),
        _constant(graph, "bias", result, np.tile(bias, block**2)),
    ]
    convolution = _operator(graph, _OPERATORS.CONV_2D, [source, *operands], inner, _CONV_2D)
    convolution.builtinOptions.strideH = convolution.builtinOptions.strideW = 1
    convolution.builtinOptions.dilationHFactor = convolution.builtinOptions.dilationWFactor = 1
    convolution.builtinOptions.padding = schema.Padding.VALID
    spread = _operator(graph, _OPERATORS.DEPTH_TO_SPACE, [inner], result, _DEPTH_TO_SPACE)
    spread.builtinOptions.blockSize = block
    at = next(number for number, one in enumerate(graph.operators) if one is operator)
    graph.table.operators = [*graph.operators[:at], convolution, spread, *graph.operators[at + 1 :]]


def _block(graph: Graph, operator: Any) -> int:
    stored = b"" if operator.customOptions is None else bytes(bytearray(operator.customOptions))
    _, width, height = _OPTIONS.unpack(stored[: _OPTIONS.size])
    if width != height or width < 1:
        raise ModelError(
            f"{TRANSPOSED} {graph.name(operator.outputs[0])!r} has strides of {height} and {width}: "
            "expected equal ones"
        )
    return int(width)


def _floats(graph: Graph, index: int) -> NDArray[np.float32]:
    """Return a constant of weights, which may be float16 behind a DEQUANTIZE."""
    value, before = graph.constant(index), graph.producer(index)
    if value is None and before is not None and graph.kind(before) == _OPERATORS.DEQUANTIZE:
        value = graph.constant(before.inputs[0])
    if value is None or value.dtype not in (np.float16, np.float32):
        raise ModelError(f"{TRANSPOSED} with weights {graph.name(index)!r}, which are not float constants")
    return np.asarray(value, np.float32)


def _constant(graph: Graph, role: str, like: int, value: NDArray[np.float32]) -> int:
    index = graph.add_constant(like, np.ascontiguousarray(value, np.float32))
    graph.tensor(index).name = f"{graph.name(like)}_{role}"
    return index


_ACTIVATIONS = schema.ActivationFunctionType
_NAMES = {
    _OPERATORS.CONV_2D: "Conv2DOptions",
    _OPERATORS.DEPTH_TO_SPACE: "DepthToSpaceOptions",
    _OPERATORS.ADD: "AddOptions",
    _OPERATORS.MUL: "MulOptions",
    _OPERATORS.MEAN: "ReducerOptions",
}


def for_integers(content: bytes) -> bytes:
    """Return a float file with a MEAN for each global average pooling, and products for each HARD_SWISH."""
    model = load(content)
    if not sum(average_by_mean(graph) + multiply_hard_swish(graph) for graph in graphs(model)):
        return content
    return dump(model)


def average_by_mean(graph: Graph) -> int:
    """Turn each average pooling over the whole picture into a MEAN, and return how many."""
    found = [one for one in graph.operators if _is_global(graph, one)]
    for operator in found:
        axes = graph.add_tensor(
            operator.outputs[0],
            name=f"{graph.name(operator.outputs[0])}_axes",
            type=schema.TensorType.INT32,
            quantization=None,
        )
        operator.inputs = [operator.inputs[0], graph.add_constant(axes, np.array([1, 2], np.int32))]
        _become(graph, operator, _OPERATORS.MEAN)
        operator.builtinOptions.keepDims = True
    return len(found)


def _is_global(graph: Graph, operator: Any) -> bool:
    if graph.kind(operator) != _OPERATORS.AVERAGE_POOL_2D or activation(operator) != _ACTIVATIONS.NONE:
        return False
    options, shape = operator.builtinOptions, graph.shape(operator.inputs[0])
    is_whole = (options.filterHeight, options.filterWidth) == shape[1:3]
    return is_whole and graph.shape(operator.outputs[0])[1:3] == (1, 1)


def multiply_hard_swish(graph: Graph) -> int:
    """Turn each HARD_SWISH x into x * min(max(x + 3, 0), 6) / 6, and return how many."""
    found = [one for one in graph.operators if graph.kind(one) == _OPERATORS.HARD_SWISH]
    for operator in found:
        _multiply(graph, operator)
    return len(found)


def _multiply(graph: Graph, operator: Any) -> None:
    source, result = operator.inputs[0], operator.outputs[0]
    name = graph.name(result)
    raised, product = (graph.add_tensor(result, name=f"{name}_{role}") for role in ("raised", "product"))
    raise_ = _operator(graph, _OPERATORS.ADD, [source, _scalar(graph, result, "three", 3.0)], raised)
    raise_.builtinOptions.fusedActivationFunction = _ACTIVATIONS.RELU6
    multiply = _operator(graph, _OPERATORS.MUL, [source, raised], product)
    divide = _operator(graph, _OPERATORS.MUL, [product, _scalar(graph, result, "sixth", 1 / 6)], result)
    at = next(number for number, one in enumerate(graph.operators) if one is operator)
    graph.table.operators = [*graph.operators[:at], raise_, multiply, divide, *graph.operators[at + 1 :]]


def _scalar(graph: Graph, like: int, role: str, value: float) -> int:
    """Add a constant [1, ...] of as many axes as a tensor."""
    stored = np.full((1,) * len(graph.shape(like)), value, np.float32)
    index = graph.add_constant(like, stored)
    graph.tensor(index).name = f"{graph.name(like)}_{role}"
    return index


def _operator(graph: Graph, kind: int, inputs: list[int], output: int, version: int = 1) -> Any:
    made = schema.OperatorT()
    made.inputs, made.outputs = inputs, [output]
    _become(graph, made, kind, version)
    return made


def _become(graph: Graph, operator: Any, kind: int, version: int = 1) -> None:
    """Give an operator another kind, and empty options."""
    operator.opcodeIndex = graph.code(kind, version)
    operator.builtinOptions = getattr(schema, f"{_NAMES[kind]}T")()
    operator.builtinOptionsType = getattr(schema.BuiltinOptions, _NAMES[kind])


_OUT = {_OPERATORS.CONV_2D: 0, _OPERATORS.DEPTHWISE_CONV_2D: 3, _OPERATORS.FULLY_CONNECTED: 0}
"""Axis of the output channels in the weights."""
_IN = {_OPERATORS.CONV_2D: 3, _OPERATORS.DEPTHWISE_CONV_2D: 3, _OPERATORS.FULLY_CONNECTED: 1}
"""Axis of the input channels in the weights."""
_HOMOGENEOUS = (_ACTIVATIONS.NONE, _ACTIVATIONS.RELU)
"""Activations f with f(a x) = a f(x) for each a > 0."""
_LARGEST = 5
"""Largest factor, as a power of two: a channel that is nearly always 0 is not blown up."""

Ranges = dict[str, NDArray[np.float64]]
"""Largest absolute value of each channel, by name of the tensor."""


class _Pair(NamedTuple):
    """Two layers, of which one alone reads what the other computes.

    Attributes:
        tensor: between them.
        writer, reader: operators.
    """

    tensor: int
    writer: Any
    reader: Any


def equalise(content: bytes, examples: Iterable[Sequence[Array]]) -> tuple[bytes, int]:
    """Equalise the channels between layers of a float model.

    Args:
        content: of a `.tflite` file with float weights.
        examples: for the first subgraph: for each one array [1, …] per input.

    Returns:
        The file, whose answers are the same, and how many tensors were equalised.

    Raises:
        ModelError: the model cannot be computed here.
    """
    model = load(content)
    pairs = {graph.name(pair.tensor) for graph in graphs(model) for pair in _pairs(graph)}
    factors = {
        name: found
        for name, widths in _ranges(RuntimeGraph(model), examples, pairs).items()
        if (found := channel_factors(widths)).max() > 1.0
    }
    if not factors:
        return content, 0
    for graph in graphs(model):
        _apply(graph, factors)
    compact(model)
    return dump(model), len(factors)


def channel_factors(widths: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return by what each channel is multiplied: powers of two that bring it near the widest, at most 32.

    Args:
        widths: largest absolute value of each channel, [channels].
    """
    widest = widths.max(initial=0.0)
    if not widest > 0.0:
        return np.ones_like(widths)
    ratios = widest / np.maximum(widths, widest * 2.0**-_LARGEST)
    factors: NDArray[np.float64] = 2.0 ** np.floor(np.log2(ratios))
    return factors


def _ranges(graph: RuntimeGraph, examples: Iterable[Sequence[Array]], names: set[str]) -> Ranges:
    made = [index for one in graph.operations for index in one.outputs if graph.name(index) in names]
    whole, found = graph.piece(0, len(graph.operations), graph.inputs, made), Ranges()
    for values in examples:
        for index, value in zip(made, whole(*values), strict=True):
            widths = np.abs(value).reshape(-1, value.shape[-1]).max(0).astype(np.float64)
            found[graph.name(index)] = np.maximum(found.get(graph.name(index), 0.0), widths)
    return found


def _pairs(graph: Graph) -> Iterator[_Pair]:
    """Yield the pairs of layers of a graph whose channels can be exchanged for others."""
    shared = _shared(graph)
    for reader in graph.operators:
        if graph.kind(reader) not in _IN or graph.tensor(reader.inputs[1]).buffer in shared:
            continue
        tensor = int(reader.inputs[0])
        writer = graph.producer(tensor)
        if writer is None or graph.kind(writer) not in _OUT or not graph.is_inner(tensor):
            continue
        is_free = activation(writer) in _HOMOGENEOUS and graph.tensor(writer.inputs[1]).buffer not in shared
        if is_free and _fit(graph, tensor, writer, reader):
            yield _Pair(tensor, writer, reader)


def _shared(graph: Graph) -> set[int]:
    """Return the buffers of weights that several layers of a graph use, such as heads at several scales."""
    buffers = [int(graph.tensor(one.inputs[1]).buffer) for one in graph.operators if graph.kind(one) in _OUT]
    return {one for one in buffers if buffers.count(one) > 1}


def _fit(graph: Graph, tensor: int, writer: Any, reader: Any) -> bool:
    """Return True if the channels between two layers are an axis of the weights of both."""
    channels = graph.shape(tensor)[-1:]
    ends = ((writer, _OUT[graph.kind(writer)]), (reader, _IN[graph.kind(reader)]))
    weights = [graph.constant(one.inputs[1]) for one, _ in ends]
    return all(
        found is not None and found.dtype == np.float32 and found.shape[axis : axis + 1] == channels
        for found, (_, axis) in zip(weights, ends, strict=True)
    )


def _apply(graph: Graph, factors: Mapping[str, NDArray[np.float64]]) -> None:
    for pair in list(_pairs(graph)):
        factor = factors.get(graph.name(pair.tensor))
        if factor is None:
            continue
        _scale(graph, pair.writer, 1, _OUT[graph.kind(pair.writer)], factor)
        if len(pair.writer.inputs) > 2 and pair.writer.inputs[2] >= 0:
            _scale(graph, pair.writer, 2, 0, factor)
        _scale(graph, pair.reader, 1, _IN[graph.kind(pair.reader)], 1.0 / factor)


def _scale(graph: Graph, operator: Any, place: int, axis: int, factor: NDArray[np.float64]) -> None:
    """Multiply a constant operand of a layer by factors along an axis."""
    index = operator.inputs[place]
    value = graph.constant(index)
    assert value is not None
    sizes = [1] * value.ndim
    sizes[axis] = -1
    operator.inputs[place] = graph.add_constant(index, (value * factor.reshape(sizes)).astype(np.float32))
