"""A network as a list of layers, in NHWC: what the calibration, the rounding and the writer all walk over."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

LEAK = 0.1
"""Slope of every LEAKY_RELU below zero."""

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Convolution:
    """One 2-D convolution with its bias."""

    kernel: NDArray[np.float32]
    """[height, width, input channels, output channels]; depthwise: [height, width, 1, channels]"""
    bias: NDArray[np.float32]
    """[output channels]"""

    def outputs(self, start: int, stop: int) -> "Convolution":
        """The convolution that computes only the output channels start..stop."""
        return Convolution(self.kernel[..., start:stop], self.bias[start:stop])


@dataclass(frozen=True, slots=True)
class Layer:
    """One operation: the tensors that it reads by name, the one that it writes, and what it needs besides.

    `padding` is TensorFlow's, SAME or VALID; empty: SAME without a stride, else VALID. `begin` is where a SLICE
    begins; `axes` are those that a MEAN goes over; `relu`: negative results become 0.
    """

    op: str
    inputs: tuple[str, ...]
    output: str
    shape: Shape
    stride: tuple[int, int] = (1, 1)
    convolution: Convolution | None = None
    axis: int = 3
    padding: str = ""
    pads: tuple[tuple[int, int], ...] = ((0, 0), (1, 1), (1, 1), (0, 0))
    begin: tuple[int, ...] = ()
    axes: tuple[int, ...] = ()
    relu: bool = False


@dataclass(slots=True)
class Graph:
    """A network built layer by layer; every method returns the name of its output.

    `entry` is the name of the only input, whose shape is in `shapes`. `pixels`: it comes as uint8 and is shifted.
    """

    entry: str
    layers: list[Layer] = field(default_factory=list)
    shapes: dict[str, Shape] = field(default_factory=dict)
    pixels: bool = False

    def add(self, op: str, *inputs: str, shape: Shape, name: str = "", **needs: Any) -> str:
        """Append one layer."""
        output = name or f"{op.lower()}_{len(self.layers)}"
        self.layers.append(Layer(op, inputs, output, shape, **needs))
        self.shapes[output] = shape
        return output

    def join(self, *parts: str, axis: int = 3, name: str = "") -> str:
        """Concatenation along `axis`."""
        shape = list(self.shapes[parts[0]])
        shape[axis] = sum(self.shapes[part][axis] for part in parts)
        return self.add("CONCATENATION", *parts, shape=tuple(shape), axis=axis, name=name)

    def sum(self, a: str, b: str, name: str = "", relu: bool = False) -> str:
        """Elementwise sum; what is 1 wide in `b` is repeated."""
        return self.add("ADD", a, b, shape=self.shapes[a], name=name, relu=relu)

    def reshape(self, x: str, shape: Shape, name: str = "") -> str:
        """Add an operation that returns the same values in another shape."""
        return self.add("RESHAPE", x, shape=shape, name=name)

    def each(self, op: str, x: str, name: str = "") -> str:
        """An operation that keeps the shape: LEAKY_RELU, LOGISTIC or, along the last axis, SOFTMAX."""
        return self.add(op, x, shape=self.shapes[x], name=name)

    def between(self, entry: str, outputs: Sequence[str]) -> "Graph":
        """The part that computes `outputs` from `entry`; the names stay."""
        wanted, layers = set(outputs) - {entry}, list[Layer]()
        for layer in reversed(self.layers):
            if layer.output in wanted:
                layers.insert(0, layer)
                wanted |= set(layer.inputs) - {entry}
        shapes = {entry: self.shapes[entry]} | {layer.output: layer.shape for layer in layers}
        return Graph(entry, layers, shapes, self.pixels and entry == self.entry)

    def multiply_adds(self) -> int:
        """Multiplications of one run: those of the kernels, and those of elementwise products."""
        return sum(_multiply_adds(layer) for layer in self.layers)


def _multiply_adds(layer: Layer) -> int:
    size = int(np.prod(layer.shape))
    if layer.convolution is None:
        return size if layer.op == "MUL" else 0
    return size * int(np.prod(layer.convolution.kernel.shape[:3]))
