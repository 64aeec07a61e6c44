"""Advice on what could make an operation faster: rules on its types and its place. The first match counts.

What XNNPACK supports was measured with ai-edge-litert 2.3, and is documented in
google-ai-edge/LiteRT, `tflite/delegates/xnnpack/README.md`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from agent.compute.tflite.model import CUSTOM, Operation, Subgraph, TensorInfo

_SLOW = 0.35
"""Share of the model's best pace below which an operation is not bound by arithmetic."""
_FLOATS = ("float32", "float16")
_INTEGERS = ("int8", "uint8", "int16", "int4")
_WEIGHTED = ("CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV", "FULLY_CONNECTED", "BATCH_MATMUL")


class OperatorContext(NamedTuple):
    """One operation as the rules see it.

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
    def dtype(self) -> str:
        """Of the first input."""
        found = self._input(0)
        return found.dtype if found else ""

    @property
    def weights(self) -> str:
        """Dtype of the second input if it is a constant; empty: it is none."""
        found = self._input(1)
        return found.dtype if found and found.size else ""

    @property
    def open_shape(self) -> bool:
        """True if a dimension is known at run time only."""
        outputs = self.operation.outputs if self.operation else ()
        ends = (self._input(0), *(self.graph.tensors[one] for one in outputs[:1]))
        return any(one.open or min(one.shape, default=0) < 0 for one in ends if one)

    @property
    def at_an_end(self) -> bool:
        """True if the operation reads an input of the model, or makes an output."""
        if self.operation is None:
            return False
        inputs = {*self.operation.inputs} & {*self.graph.inputs}
        return bool(inputs or {*self.operation.outputs} & {*self.graph.outputs})

    def _input(self, place: int) -> TensorInfo | None:
        inputs = self.operation.inputs if self.operation else ()
        return self.graph.tensors[inputs[place]] if place < len(inputs) and inputs[place] >= 0 else None


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
        lambda case: case.operation is None,
        "its operation is unknown: XNNPACK adds such kernels of its own, as where it quantises a float input",
    ),
    (lambda _: True, "bound by memory: fewer or smaller tensors, and one layout through the model, help"),
)
