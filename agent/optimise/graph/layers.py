"""A network as a list of layers in NHWC, from which `writer` makes a TFLite subgraph.

A layer is one operation of TensorFlow Lite, under the name that it has in the TFLite schema. Pictures are
[batch, height, width, channels]. Weights stay float and laid out in one way, whichever operation uses them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Shape = tuple[int, ...]
Pair = tuple[int, int]
"""Height and width, in pixels or steps."""
Pads = tuple[Pair, ...]
"""Pixels before and behind, for each axis."""

NONE, RELU, RELU6 = "NONE", "RELU", "RELU6"
"""Activations that an operation may apply to its own result."""


@dataclass(frozen=True, slots=True)
class Convolution:
    """Weights of a convolution or of a fully connected layer, with a bias.

    Attributes:
        kernel: float32 [height, width, input channels, output channels]; depthwise [height, width, 1, channels];
            fully connected [1, 1, inputs, outputs].
        bias: float32 [output channels].
    """

    kernel: NDArray[np.float32]
    bias: NDArray[np.float32]

    def outputs(self, start: int, stop: int) -> Convolution:
        """Return the convolution that computes only the output channels `start` to `stop`."""
        return Convolution(self.kernel[..., start:stop], self.bias[start:stop])

    def scaled(
        self, factor: NDArray[np.floating] | float, offset: NDArray[np.floating] | float = 0.0
    ) -> Convolution:
        """Return the convolution whose result is `factor × result + offset`, each a number or one a channel."""
        kernel, bias = self.kernel.astype(np.float64) * factor, self.bias.astype(np.float64) * factor + offset
        return Convolution(kernel.astype(np.float32), bias.astype(np.float32))

    def of_scaled(self, factor: NDArray[np.float64], offset: NDArray[np.float64]) -> Convolution:
        """Return the convolution whose result for `x` is that of this one for `factor × x + offset`.

        Args:
            factor: [input channels].
            offset: [input channels]; then the convolution must add no pixels around the picture.
        """
        moved = self.bias + np.einsum("hwio,i->o", self.kernel.astype(np.float64), offset)
        return Convolution((self.kernel * factor[:, None]).astype(np.float32), moved.astype(np.float32))


@dataclass(frozen=True, slots=True)
class Layer:
    """One operation.

    Attributes:
        op: its name in the TFLite schema, such as `CONV_2D`.
        inputs: names of the tensors and constants that it reads.
        output: name of the tensor that it writes.
        shape: of the output.
        stride, dilation: of convolutions; pools have a stride.
        window: height and width of a pool.
        padding: `SAME` or `VALID`, of convolutions and pools.
        convolution: weights of convolutions and fully connected layers.
        axis: of a CONCATENATION.
        pads: of a PAD.
        begin: first position along each axis, of a SLICE.
        axes: of a MEAN, SUM or REDUCE_MAX; the order of a TRANSPOSE.
        keep_axes: the axes of a reduction stay, with length 1.
        alpha: slope below zero of a LEAKY_RELU.
        block: side of a DEPTH_TO_SPACE or SPACE_TO_DEPTH.
        multiplier: output channels of a DEPTHWISE_CONV_2D for each input channel.
        sampling: of a resize: output pixel `i` lies at `(i + 0.5) × ratio - 0.5` in the input for `centres`, at
            `i × ratio` for `edges`; `corners` does the same with a ratio that maps the last pixel to the last.
        transposed: for each matrix of a BATCH_MATMUL, whether its last two axes are swapped.
        activation: applied to the result.
    """

    op: str
    inputs: tuple[str, ...]
    output: str
    shape: Shape
    stride: Pair = (1, 1)
    dilation: Pair = (1, 1)
    window: Pair = (1, 1)
    padding: str = "SAME"
    convolution: Convolution | None = None
    axis: int = 3
    pads: Pads = ()
    begin: Shape = ()
    axes: Shape = ()
    keep_axes: bool = False
    alpha: float = 0.0
    block: int = 2
    multiplier: int = 1
    sampling: str = "centres"
    transposed: tuple[bool, bool] = (False, False)
    activation: str = NONE


@dataclass(slots=True)
class Network:
    """A network built layer by layer. Every method that adds a layer returns the name of its output.

    Attributes:
        entry: name of the only input, whose shape is in `shapes`.
        layers: in the order in which they run.
        shapes: of all tensors and constants, by name.
        constants: float32 operands with fixed values, by name.
        pixels: the input of an INT8 file is uint8, and shifted to int8 by its first operation.
    """

    entry: str
    layers: list[Layer] = field(default_factory=list)
    shapes: dict[str, Shape] = field(default_factory=dict)
    constants: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    pixels: bool = False

    def add(self, op: str, *inputs: str, shape: Shape, name: str = "", **needs: Any) -> str:
        """Append a layer with an output of this shape; `needs` are further attributes of `Layer`."""
        output = name or f"{op.lower()}_{len(self.layers)}"
        self.layers.append(Layer(op, inputs, output, shape, **needs))
        self.shapes[output] = shape
        return output

    def layer(self, output: str) -> Layer | None:
        """Return the layer that computes a tensor; None: it is the input, or a constant."""
        return next((layer for layer in reversed(self.layers) if layer.output == output), None)

    def change(self, output: str, **changes: Any) -> None:
        """Change attributes of the layer that computes a tensor."""
        self.layers = [replace(layer, **changes) if layer.output == output else layer for layer in self.layers]

    def constant(self, name: str, values: NDArray[np.floating]) -> str:
        """Add an operand with fixed values, stored as float32. Return its name."""
        self.constants[name] = np.ascontiguousarray(values, np.float32)
        self.shapes[name] = values.shape
        return name

    def convolve(
        self, x: str, convolution: Convolution, *, depthwise: bool = False, name: str = "", **needs: Any
    ) -> str:
        """Add a CONV_2D or DEPTHWISE_CONV_2D; `needs`: stride, dilation, padding, activation."""
        height, width = convolution.kernel.shape[:2]
        dilation = needs.get("dilation", (1, 1))
        reach = (dilation[0] * (height - 1) + 1, dilation[1] * (width - 1) + 1)
        size = self._covered(x, reach, needs.get("stride", (1, 1)), needs.get("padding", "SAME"))
        shape = (self.shapes[x][0], *size, len(convolution.bias))
        needs["convolution"] = convolution
        if depthwise:
            needs["multiplier"] = shape[3] // self.shapes[x][3]
        return self.add("DEPTHWISE_CONV_2D" if depthwise else "CONV_2D", x, shape=shape, name=name, **needs)

    def connect(self, x: str, convolution: Convolution, *, name: str = "", **needs: Any) -> str:
        """Add a FULLY_CONNECTED over the last axis; the others stay."""
        shape = (*self.shapes[x][:-1], len(convolution.bias))
        return self.add("FULLY_CONNECTED", x, shape=shape, name=name, convolution=convolution, **needs)

    def pool(self, op: str, x: str, window: Pair, *, stride: Pair, padding: str = "VALID", name: str = "") -> str:
        """Add a MAX_POOL_2D or an AVERAGE_POOL_2D."""
        size = self._covered(x, window, stride, padding)
        shape = (self.shapes[x][0], *size, self.shapes[x][3])
        return self.add(op, x, shape=shape, name=name, window=window, stride=stride, padding=padding)

    def pad(self, x: str, pads: Pads, name: str = "") -> str:
        """Add zeros before and behind along each axis."""
        shape = tuple(size + before + behind for size, (before, behind) in zip(self.shapes[x], pads, strict=True))
        return self.add("PAD", x, shape=shape, name=name, pads=pads)

    def join(self, *parts: str, axis: int = 3, name: str = "") -> str:
        """Add a CONCATENATION along `axis`."""
        shape = list(self.shapes[parts[0]])
        shape[axis] = sum(self.shapes[part][axis] for part in parts)
        return self.add("CONCATENATION", *parts, shape=tuple(shape), axis=axis, name=name)

    def cut(self, x: str, axis: int, start: int, stop: int, name: str = "") -> str:
        """Add a SLICE of the positions `start` to `stop` along `axis`."""
        shape, begin = list(self.shapes[x]), [0] * len(self.shapes[x])
        shape[axis], begin[axis] = stop - start, start
        return self.add("SLICE", x, shape=tuple(shape), begin=tuple(begin), name=name)

    def combine(self, op: str, a: str, b: str, *, name: str = "", activation: str = NONE) -> str:
        """Add an ADD, SUB, MUL, DIV, MAXIMUM or MINIMUM; axes of length 1 are repeated."""
        shape = np.broadcast_shapes(self.shapes[a], self.shapes[b])
        return self.add(op, a, b, shape=shape, name=name, activation=activation)

    def reshape(self, x: str, shape: Shape, name: str = "") -> str:
        """Add an operation that returns the same values in another shape."""
        return self.add("RESHAPE", x, shape=shape, name=name)

    def transpose(self, x: str, order: Shape, name: str = "") -> str:
        """Add a TRANSPOSE: axis `i` of the output is axis `order[i]` of `x`."""
        return self.add("TRANSPOSE", x, shape=tuple(self.shapes[x][at] for at in order), axes=order, name=name)

    def reduce(self, op: str, x: str, axes: Shape, *, keep: bool = False, name: str = "") -> str:
        """Add a MEAN, SUM or REDUCE_MAX over `axes`."""
        kept = enumerate(self.shapes[x])
        shape = tuple(1 if at in axes else size for at, size in kept if keep or at not in axes)
        return self.add(op, x, shape=shape, axes=axes, keep_axes=keep, name=name)

    def multiply(self, a: str, b: str, transposed: tuple[bool, bool] = (False, False), name: str = "") -> str:
        """Add a BATCH_MATMUL of [..., n, k] and [..., k, m], or of their transposes."""
        left, right = self.shapes[a], self.shapes[b]
        ends = (left[-1 if transposed[0] else -2], right[-2 if transposed[1] else -1])
        shape = (*np.broadcast_shapes(left[:-2], right[:-2]), *ends)
        return self.add("BATCH_MATMUL", a, b, shape=shape, transposed=transposed, name=name)

    def each(self, op: str, x: str, name: str = "", **needs: Any) -> str:
        """Add an operation that keeps the shape: LEAKY_RELU, LOGISTIC or, along the last axis, SOFTMAX."""
        return self.add(op, x, shape=self.shapes[x], name=name, **needs)

    def between(self, entry: str, outputs: Sequence[str]) -> Network:
        """Return the part that computes `outputs` from `entry`; the names stay."""
        wanted, layers = set(outputs) - {entry}, list[Layer]()
        for layer in reversed(self.layers):
            if layer.output in wanted:
                layers.insert(0, layer)
                wanted |= set(layer.inputs) - {entry}
        constants = {name: values for name, values in self.constants.items() if name in wanted}
        kept = {entry, *constants, *(layer.output for layer in layers)}
        shapes = {name: shape for name, shape in self.shapes.items() if name in kept}
        return Network(entry, layers, shapes, constants, self.pixels and entry == self.entry)

    def multiply_adds(self) -> int:
        """Return the multiplications of one run: those of kernels and matrices, and elementwise products."""
        return sum(self._multiply_adds(layer) for layer in self.layers)

    def _multiply_adds(self, layer: Layer) -> int:
        size = int(np.prod(layer.shape))
        if layer.convolution is not None:
            return size * int(np.prod(layer.convolution.kernel.shape[:3]))
        if layer.op == "BATCH_MATMUL":
            return size * self.shapes[layer.inputs[0]][-2 if layer.transposed[0] else -1]
        return size if layer.op == "MUL" else 0

    def _covered(self, x: str, reach: Pair, stride: Pair, padding: str) -> Pair:
        """Return height and width of the result of windows that reach so far."""
        size = self.shapes[x][1:3]
        if padding == "VALID":
            size = (size[0] - reach[0] + 1, size[1] - reach[1] + 1)
        return -(-size[0] // stride[0]), -(-size[1] // stride[1])
