"""Advice on what could make an operation faster: rules on its types and its place. The first match counts.

What XNNPACK supports was measured with ai-edge-litert 2.3, and is documented in
google-ai-edge/LiteRT, `tflite/delegates/xnnpack/README.md`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from agent.compute.tflite.model import CUSTOM, Operation, Subgraph, TensorInfo

_VECTOR = 16
"""Values that fill a vector of 128 bits, in INT8."""


class OperatorContext(NamedTuple):
    """One operation as the rules see it; `given` is its first input, and `made` its first output.

    Attributes:
        graph: that the operation belongs to.
        operation: None: a kernel of XNNPACK whose operation is unknown.
        kernel: of XNNPACK; empty: the operation is not delegated.
        pace: multiply-adds per second, as a share of the best in the same model; 0: unknown.
    """

    graph: Subgraph
    operation: Operation | None
    kernel: str = ""
    pace: float = 0.0

    @property
    def name(self) -> str:
        return self.operation.name if self.operation else ""

    @property
    def native(self) -> bool:
        """True if LiteRT's own kernel runs the operation, not XNNPACK."""
        return not self.kernel

    @property
    def input(self) -> TensorInfo | None:
        return self._input(0)

    @property
    def weights(self) -> TensorInfo | None:
        """The second input if it is a constant."""
        found = self._input(1)
        return found if found and found.size else None

    @property
    def dtype(self) -> str:
        return self.input.dtype if self.input else ""

    @property
    def bits4(self) -> bool:
        return self.weights is not None and self.weights.dtype == "int4"

    @property
    def pointwise(self) -> bool:
        return self.name == "CONV_2D" and self.weights is not None and self.weights.shape[1:3] == (1, 1)

    @property
    def channels(self) -> int:
        return self.input.shape[-1] if self.input and self.input.shape else 0

    @property
    def odd(self) -> bool:
        """True if the number of input or output channels leaves vectors partly empty."""
        ends = [one.shape[-1] for one in (self.input, self.output) if one and one.shape]
        return any(channels % _VECTOR for channels in ends)

    @property
    def output(self) -> TensorInfo | None:
        return (
            self.graph.tensors[self.operation.outputs[0]] if self.operation and self.operation.outputs else None
        )

    @property
    def open_shape(self) -> bool:
        """True if a dimension is known at run time only."""
        return any(one.open or min(one.shape, default=0) < 0 for one in (self.input, self.output) if one)

    @property
    def at_an_end(self) -> bool:
        """True if the operation reads an input of the model, or makes an output."""
        if self.operation is None:
            return False
        return bool(
            {*self.operation.inputs} & {*self.graph.inputs} or {*self.operation.outputs} & {*self.graph.outputs}
        )

    def _input(self, place: int) -> TensorInfo | None:
        inputs = self.operation.inputs if self.operation else ()
        return self.graph.tensors[inputs[place]] if place < len(inputs) and inputs[place] >= 0 else None


_SLOW = 0.35
"""Share of the model's best pace below which an operation is not bound by arithmetic."""
_FEW_CHANNELS = 4
_FLOATS = ("float32", "float16")
_INTEGERS = ("int8", "uint8", "int16", "int4")
_CONVOLUTIONS = ("CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV")
_WEIGHTED = (*_CONVOLUTIONS, "FULLY_CONNECTED", "BATCH_MATMUL")
_RESIZES = ("RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR")
_MOVES = (
    "TRANSPOSE",
    "GATHER",
    "GATHER_ND",
    "SPLIT",
    "SPLIT_V",
    "STRIDED_SLICE",
    "SLICE",
    "PACK",
    "UNPACK",
    "TILE",
    "CAST",
)
_JOINS = ("CONCATENATION", "RESHAPE", "EXPAND_DIMS", "SQUEEZE")
_POINTWISE = ("ADD", "SUB", "MUL", "DIV", "LEAKY_RELU", "PRELU", "LOGISTIC", "TANH", "HARD_SWISH", "ELU", "GELU")


def advice(case: OperatorContext) -> str:
    """Return a line on what could make an operation faster, or why nothing can."""
    return next(text for fits, text in _RULES if fits(case))


def _hybrid(case: OperatorContext) -> bool:
    weights = case.weights
    return case.name in _WEIGHTED and case.dtype in _FLOATS and weights is not None and weights.dtype in _INTEGERS


def _float_island(case: OperatorContext) -> bool:
    return case.name in ("QUANTIZE", "DEQUANTIZE") and not case.at_an_end


def _requantised_end(case: OperatorContext) -> bool:
    return case.name == "QUANTIZE" and case.dtype in _INTEGERS and case.at_an_end


def _pixels(case: OperatorContext) -> bool:
    """Return True for what `vedette optimise quantise` writes: uint8 pixels become INT8 of the same scale."""
    given, made = case.input, case.output
    if case.name != "QUANTIZE" or not case.at_an_end or given is None or made is None:
        return False
    scales = given.quantisation, made.quantisation
    kinds = (given.dtype, made.dtype) == ("uint8", "int8") and scales[0].kind == scales[1].kind == "tensor"
    return kinds and math.isclose(scales[0].scale, scales[1].scale, rel_tol=1e-5)


def _slow(*names: str) -> Callable[[OperatorContext], bool]:
    return lambda case: case.name in names and 0.0 < case.pace < _SLOW


def _is(*names: str) -> Callable[[OperatorContext], bool]:
    return lambda case: case.name in names


def _native(*names: str) -> Callable[[OperatorContext], bool]:
    return lambda case: case.native and case.name in names


_RULES: tuple[tuple[Callable[[OperatorContext], bool], str], ...] = (
    (
        lambda case: case.native and case.name == CUSTOM,
        "a custom operation, not delegated: rebuild it from builtin ones, or do its work outside the model",
    ),
    (
        lambda case: case.native and case.bits4 and case.pointwise,
        "XNNPACK takes no INT4 CONV_2D: emit this 1×1 as FULLY_CONNECTED (a Dense layer), or keep it INT8",
    ),
    (
        lambda case: case.native and case.bits4 and case.name in _CONVOLUTIONS,
        "XNNPACK takes no INT4 convolution, so INT4 only saves storage here: keep this layer INT8",
    ),
    (
        lambda case: case.native and case.open_shape,
        "not delegated, with a shape only known at run time: fix every size, the batch too, when converting",
    ),
    (
        _hybrid,
        "dynamic range: its input is quantised anew in every inference: quantise activations too (static INT8)",
    ),
    (
        _float_island,
        "changes between integers and floats inside the model: quantise the operations on its other side as well",
    ),
    (
        _pixels,
        "takes pixels as they are, so that nothing has to convert them before: a smaller input is what helps",
    ),
    (
        _requantised_end,
        "only changes the integers' type or scale at an end of the model: convert with INT8 inputs and outputs",
    ),
    (
        _is("QUANTIZE", "DEQUANTIZE"),
        "an end of the model is float: convert with INT8 inputs and outputs, and this falls away",
    ),
    (
        lambda case: case.native and case.name == "SOFTMAX" and case.dtype in _INTEGERS,
        "XNNPACK takes no integer SOFTMAX: end the model in logits, and decode only what passes the threshold",
    ),
    (
        _native(*_RESIZES, *_MOVES, *_JOINS),
        "not delegated, and breaks the graph into pieces: leave it out, or move it to an end of the model",
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
        _slow("DEPTHWISE_CONV_2D"),
        "depthwise: few multiply-adds per value read: fewer channels or an earlier stride help, fewer bits less",
    ),
    (
        lambda case: case.name == "CONV_2D" and 0 < case.channels <= _FEW_CHANNELS,
        "few input channels leave most of each vector empty: a smaller input, a larger stride or fewer filters",
    ),
    (
        lambda case: _slow(*_WEIGHTED)(case) and case.odd,
        "slower per multiply-add than the model's best, with odd channels: multiples of 16 fill the vectors",
    ),
    (
        _slow("CONV_2D"),
        "few channels on a large picture: pixels cost more than multiply-adds here: an earlier stride helps",
    ),
    (
        _is(*_WEIGHTED),
        "bound by arithmetic: fewer multiply-adds help, by fewer channels or a smaller input",
    ),
    (
        _is("PAD", "PADV2"),
        "only copies: let the layer behind it pad (padding SAME), and this falls away",
    ),
    (
        _is(*_RESIZES),
        "bound by memory: resize fewer channels, after the 1×1 convolution, or by nearest neighbour",
    ),
    (
        _is(*_MOVES, *_JOINS),
        "only moves data: keep one layout through the model, and join fewer or smaller tensors",
    ),
    (
        _is("MAX_POOL_2D", "AVERAGE_POOL_2D"),
        "bound by memory: a stride in the convolution before it would save the pooling and part of that",
    ),
    (
        _is(*_POINTWISE),
        "element by element, bound by memory: RELU or RELU6 would be fused into the convolution before it",
    ),
    (
        lambda case: case.operation is None,
        "its operation is unknown: XNNPACK adds such kernels of its own, as where it quantises a float input",
    ),
    (lambda _: True, "nothing is known that would make it faster: fewer or smaller tensors"),
)
