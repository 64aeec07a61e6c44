"""Options and versions of the operations of a TFLite file."""

from collections.abc import Callable, Mapping
from typing import Any

from ai_edge_litert import schema_py_generated as schema
from layers import LEAK, Layer

VERSIONS: Mapping[str, int] = {
    "ADD": 2,
    "CONCATENATION": 2,
    "CONV_2D": 3,
    "DEPTHWISE_CONV_2D": 3,
    "FULLY_CONNECTED": 4,
    "LEAKY_RELU": 2,
    "LOGISTIC": 2,
    "MAX_POOL_2D": 2,
    "MEAN": 2,
    "MUL": 2,
    "PAD": 2,
    "QUANTIZE": 2,
    "RESHAPE": 1,
    "RESIZE_BILINEAR": 3,
    "SLICE": 2,
    "SOFTMAX": 2,
}
"""The first version of each operation that takes INT8 (for RESIZE_BILINEAR: half-pixel centres)."""


def _options(kind: type, **values: Any) -> Any:
    options = kind()
    for name, value in values.items():
        setattr(options, name, value)
    return options


def _conv_options(layer: Layer, kind: type = schema.Conv2DOptionsT, **values: Any) -> Any:
    return _options(
        kind,
        padding=getattr(schema.Padding, layer.padding or ("SAME" if layer.stride == (1, 1) else "VALID")),
        strideW=layer.stride[1],
        strideH=layer.stride[0],
        dilationWFactor=1,
        dilationHFactor=1,
        fusedActivationFunction=_activation(layer),
        **values,
    )


def _depthwise_options(layer: Layer) -> Any:
    return _conv_options(layer, schema.DepthwiseConv2DOptionsT, depthMultiplier=1)


def _activation(layer: Layer) -> int:
    kinds = schema.ActivationFunctionType
    return int(kinds.RELU if layer.relu else kinds.NONE)


def _pool_options(layer: Layer) -> Any:
    return _options(
        schema.Pool2DOptionsT,
        padding=schema.Padding.VALID,
        strideW=layer.stride[1],
        strideH=layer.stride[0],
        filterWidth=3,
        filterHeight=3,
    )


OPTIONS: Mapping[str, Callable[[Layer], Any]] = {
    "ADD": lambda layer: _options(schema.AddOptionsT, fusedActivationFunction=_activation(layer)),
    "CONCATENATION": lambda layer: _options(schema.ConcatenationOptionsT, axis=layer.axis),
    "CONV_2D": _conv_options,
    "DEPTHWISE_CONV_2D": _depthwise_options,
    "FULLY_CONNECTED": lambda _: schema.FullyConnectedOptionsT(),
    "LEAKY_RELU": lambda _: _options(schema.LeakyReluOptionsT, alpha=LEAK),
    "LOGISTIC": lambda _: None,
    "MAX_POOL_2D": _pool_options,
    "MEAN": lambda _: _options(schema.ReducerOptionsT, keepDims=False),
    "MUL": lambda _: schema.MulOptionsT(),
    "PAD": lambda _: schema.PadOptionsT(),
    "RESHAPE": lambda layer: _options(schema.ReshapeOptionsT, newShape=list(layer.shape)),
    "RESIZE_BILINEAR": lambda _: _options(
        schema.ResizeBilinearOptionsT, halfPixelCenters=True, alignCorners=False
    ),
    "SLICE": lambda _: schema.SliceOptionsT(),
    "SOFTMAX": lambda _: _options(schema.SoftmaxOptionsT, beta=1.0),
}
"""Options of each operation."""
