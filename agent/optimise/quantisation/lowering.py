"""Turns custom operations of known meaning into those of the schema, which every runtime and the workshop take.

MediaPipe's `Convolution2DTransposeBias` is a transposed convolution with a bias. Where its kernel is as large as
its stride, no two of its windows overlap: each input pixel gives a block of output pixels. That is a 1×1
convolution with a channel for each place of the block, and a DEPTH_TO_SPACE.
Source: google-ai-edge/mediapipe, `mediapipe/util/tflite/operations/transpose_conv_bias.cc`
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from agent.errors import ModelError
from agent.optimise.graph.objects import DAMAGE, Graph, compact, dump, graphs, load, text

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
    convolution = _operator(graph, _OPERATORS.CONV_2D, _CONV_2D, [source, *operands], inner)
    convolution.builtinOptions.strideH = convolution.builtinOptions.strideW = 1
    convolution.builtinOptions.dilationHFactor = convolution.builtinOptions.dilationWFactor = 1
    convolution.builtinOptions.padding = schema.Padding.VALID
    spread = _operator(graph, _OPERATORS.DEPTH_TO_SPACE, _DEPTH_TO_SPACE, [inner], result)
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


def _operator(graph: Graph, kind: int, version: int, inputs: list[int], output: int) -> Any:
    """Return an operator with empty options."""
    made = schema.OperatorT()
    made.opcodeIndex, made.inputs, made.outputs = graph.code(kind, version), inputs, [output]
    name = {_OPERATORS.CONV_2D: "Conv2DOptions", _OPERATORS.DEPTH_TO_SPACE: "DepthToSpaceOptions"}[kind]
    made.builtinOptions = getattr(schema, f"{name}T")()
    made.builtinOptionsType = getattr(schema.BuiltinOptions, name)
    return made
