"""One operation as the rules of `agent.compute.infer.advice` see it: its types, shapes, and what runs it."""

from __future__ import annotations

from typing import NamedTuple

from agent.compute.infer.structure import Operation, Subgraph, TensorInfo

_VECTOR = 16
"""Values that fill a vector of 128 bits, in INT8."""


class Case(NamedTuple):
    """What the rules look at.

    Attributes:
        graph: that the operation is in.
        operation: `None`: a kernel of XNNPACK whose operation cannot be told.
        kernel: of XNNPACK; empty: the operation is not delegated.
        pace: multiply-adds per second, as a share of the best in the same model; 0: not known.
    """

    graph: Subgraph
    operation: Operation | None
    kernel: str = ""
    pace: float = 0.0

    @property
    def name(self) -> str:
        """Of the operation; empty: not known."""
        return self.operation.name if self.operation else ""

    @property
    def native(self) -> bool:
        """Whether LiteRT's own kernel runs it, and not XNNPACK."""
        return not self.kernel

    @property
    def given(self) -> TensorInfo | None:
        """The first input."""
        return self._input(0)

    @property
    def weights(self) -> TensorInfo | None:
        """The second input, where it is a constant."""
        found = self._input(1)
        return found if found and found.size else None

    @property
    def dtype(self) -> str:
        """Of the first input; empty: not known."""
        return self.given.dtype if self.given else ""

    @property
    def bits4(self) -> bool:
        """Whether the weights are INT4."""
        return self.weights is not None and self.weights.dtype == "int4"

    @property
    def pointwise(self) -> bool:
        """Whether it is a convolution of 1×1."""
        return self.name == "CONV_2D" and self.weights is not None and self.weights.shape[1:3] == (1, 1)

    @property
    def channels(self) -> int:
        """Of the first input; 0: not known."""
        return self.given.shape[-1] if self.given and self.given.shape else 0

    @property
    def odd(self) -> bool:
        """Whether the number of channels, in or out, leaves vectors partly empty."""
        ends = [one.shape[-1] for one in (self.given, self.made) if one and one.shape]
        return any(channels % _VECTOR for channels in ends)

    @property
    def made(self) -> TensorInfo | None:
        """The first output."""
        return (
            self.graph.tensors[self.operation.outputs[0]] if self.operation and self.operation.outputs else None
        )

    @property
    def open_shape(self) -> bool:
        """Whether a size is only known at run time."""
        return any(one.open or min(one.shape, default=0) < 0 for one in (self.given, self.made) if one)

    @property
    def at_an_end(self) -> bool:
        """Whether it takes an input of the model, or makes an output."""
        if self.operation is None:
            return False
        return bool(
            {*self.operation.inputs} & {*self.graph.inputs} or {*self.operation.outputs} & {*self.graph.outputs}
        )

    def _input(self, place: int) -> TensorInfo | None:
        inputs = self.operation.inputs if self.operation else ()
        return self.graph.tensors[inputs[place]] if place < len(inputs) and inputs[place] >= 0 else None
