"""Advice on what could make an operation faster: rules on its types and its place. The first match counts.

What XNNPACK supports was measured with ai-edge-litert 2.3, and is documented in
google-ai-edge/LiteRT, `tflite/delegates/xnnpack/README.md`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from agent.compute.tflite.model import CUSTOM, Operation, Subgraph

_SLOW = 0.35
"""Share of the model's best pace below which an operation is not bound by arithmetic."""
_FLOATS = ("float32", "float16")
_INTEGERS = ("int8", "uint8", "int16", "int4")
_WEIGHTED = ("CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV", "FULLY_CONNECTED", "BATCH_MATMUL")


class OperatorContext(NamedTuple):
    """One operation as the rules see it.

    Attributes:
        name: of the operation; empty: a kernel of XNNPACK whose operation is unknown.
        native: LiteRT's own kernel runs the operation, not XNNPACK.
        dtype: of the first input.
        weights: dtype of the second input if it is a constant; empty: it is none.
        open_shape: a dimension is known at run time only.
        at_an_end: the operation reads an input of the model, or makes an output.
        pace: multiply-adds per second, as a share of the best in the same model; 0: unknown.
    """

    name: str
    native: bool
    dtype: str = ""
    weights: str = ""
    open_shape: bool = False
    at_an_end: bool = False
    pace: float = 0.0


def context_of(graph: Subgraph, operation: Operation | None, kernel: str, pace: float = 0.0) -> OperatorContext:
    """Return what the rules see of an operation.

    Args:
        graph: that the operation belongs to.
        operation: None: it is unknown.
        kernel: of XNNPACK; empty: the operation is not delegated.
        pace: see `OperatorContext`.
    """
    if operation is None:
        return OperatorContext("", not kernel)
    given = [graph.tensors[one] if one >= 0 else None for one in operation.inputs[:2]]
    first, second = (*given, None, None)[:2]
    ends = [one for one in (first, *(graph.tensors[one] for one in operation.outputs[:1])) if one]
    return OperatorContext(
        operation.name,
        not kernel,
        first.dtype if first else "",
        second.dtype if second and second.size else "",
        any(one.open or min(one.shape, default=0) < 0 for one in ends),
        bool({*operation.inputs} & {*graph.inputs} or {*operation.outputs} & {*graph.outputs}),
        pace,
    )


def advice(case: OperatorContext) -> str:
    """Return a line on what could make an operation faster, or why nothing can."""
    return next(text for fits, text in _RULES if fits(case))


def _converts(case: OperatorContext) -> bool:
    return case.name in ("QUANTIZE", "DEQUANTIZE")


_RULES: tuple[tuple[Callable[[OperatorContext], bool], str], ...] = (
    (
        lambda case: case.native and case.name == CUSTOM,
        "a custom operation, not delegated: rebuild it from builtin ones, or do its work outside the model",
    ),
    (
        lambda case: case.native and case.weights == "int4" and case.name in _WEIGHTED,
        "XNNPACK takes no INT4 convolution: emit a 1×1 as FULLY_CONNECTED (a Dense layer), or keep it INT8",
    ),
    (
        lambda case: case.native and case.open_shape,
        "not delegated, with a shape only known at run time: fix every size, the batch too, when converting",
    ),
    (
        lambda case: case.name in _WEIGHTED and case.dtype in _FLOATS and case.weights in _INTEGERS,
        "dynamic range: its input is quantised anew in every inference: quantise activations too (static INT8)",
    ),
    (
        lambda case: _converts(case) and not case.at_an_end,
        "changes between integers and floats inside the model: quantise the operations on its other side as well",
    ),
    (
        lambda case: case.name == "QUANTIZE" and case.dtype == "uint8",
        "takes pixels as they are, so that nothing has to convert them before: a smaller input is what helps",
    ),
    (_converts, "an end of the model is float: convert with INT8 inputs and outputs, and this falls away"),
    (
        lambda case: case.native and case.name == "SOFTMAX" and case.dtype in _INTEGERS,
        "XNNPACK takes no integer SOFTMAX: end the model in logits, and decode only what passes the threshold",
    ),
    (
        lambda case: case.native and case.dtype in _INTEGERS and case.name in _WEIGHTED,
        "not delegated: XNNPACK wants INT8 inputs, constant INT8 weights with zero point 0, and an INT32 bias",
    ),
    (
        lambda case: case.native,
        "not delegated, and breaks the graph into pieces: use an operation and a type that XNNPACK takes",
    ),
    (
        lambda case: case.name in _WEIGHTED and case.dtype in _FLOATS,
        "computes in float: static INT8 needs a quarter of the memory, and is mostly faster on ARM",
    ),
    (
        lambda case: case.name in _WEIGHTED and 0.0 < case.pace < _SLOW,
        "few multiply-adds per value read: an earlier stride, or a multiple of 16 channels, helps more than bits",
    ),
    (
        lambda case: case.name in _WEIGHTED,
        "bound by arithmetic: fewer multiply-adds help, by fewer channels or a smaller input",
    ),
    (
        lambda case: case.name in ("PAD", "PADV2"),
        "only copies: let the layer behind it pad (padding SAME), and this falls away",
    ),
    (
        lambda case: not case.name,
        "its operation is unknown: XNNPACK adds such kernels of its own, as where it quantises a float input",
    ),
    (lambda _: True, "bound by memory: fewer or smaller tensors, and one layout through the model, help"),
)
