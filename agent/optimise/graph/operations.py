"""What the TFLite schema stores of each operation: version, options, and integer operands."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from agent.optimise.graph.layers import Layer

VERSIONS: Mapping[str, int] = {
    "ABS": 1,
    "ADD": 2,
    "AVERAGE_POOL_2D": 2,
    "BATCH_MATMUL": 2,
    "CONCATENATION": 2,
    "CONV_2D": 3,
    "DEPTHWISE_CONV_2D": 3,
    "DEPTH_TO_SPACE": 2,
    "DIV": 2,
    "ELU": 1,
    "EXP": 2,
    "FULLY_CONNECTED": 4,
    "GELU": 2,
    "HARD_SWISH": 1,
    "LEAKY_RELU": 2,
    "LOGISTIC": 2,
    "MAXIMUM": 2,
    "MAX_POOL_2D": 2,
    "MEAN": 2,
    "MINIMUM": 2,
    "MUL": 2,
    "NEG": 1,
    "PAD": 2,
    "QUANTIZE": 2,
    "REDUCE_MAX": 2,
    "RELU": 2,
    "RELU6": 2,
    "RELU_N1_TO_1": 1,
    "RESHAPE": 1,
    "RESIZE_BILINEAR": 3,
    "RESIZE_NEAREST_NEIGHBOR": 3,
    "RSQRT": 1,
    "SLICE": 2,
    "SOFTMAX": 2,
    "SPACE_TO_DEPTH": 2,
    "SQRT": 1,
    "SQUARE": 1,
    "SUB": 2,
    "SUM": 2,
    "TANH": 2,
    "TRANSPOSE": 2,
}
"""First version of each operation that takes INT8, or else the first; of resizes, with half-pixel centres."""


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
