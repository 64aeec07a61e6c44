"""Adds up the work of a network, layer by layer, for the networks whose times on boards are published.

Networks are described as ncnn's benchmark runs them: https://github.com/Tencent/ncnn/tree/master/benchmark/models.
What ncnn merges into a convolution (batch normalisation, ReLU) is no layer.
"""

from __future__ import annotations

from board_work import Work, convolution, moving

Place = tuple[int, int]
"""Side of the square picture, and channels."""


class Network:
    """Adds up the work of layers on a picture.

    Attributes:
        side, channels: of the picture after the last layer.
        work: so far.
    """

    def __init__(self, side: int, channels: int = 3) -> None:
        self.side, self.channels, self.work = side, channels, Work()

    @property
    def place(self) -> Place:
        return self.side, self.channels

    def back(self, place: Place) -> None:
        """Go on from an earlier place: a branch."""
        self.side, self.channels = place

    def conv(
        self, channels: int, kernel: int = 1, stride: int = 1, groups: int = 1, *, padded: bool = True
    ) -> Place:
        """Add a convolution; return where it ends."""
        before, inputs = self.side * self.side * self.channels, self.channels // groups
        self.side = -(-self.side // stride) if padded else (self.side - kernel) // stride + 1
        outputs, window = self.side * self.side * channels, kernel * kernel * inputs
        products, weights = outputs * window, window * channels
        self.work += convolution(
            (kernel, kernel),
            stride,
            groups,
            self.channels,
            products=products,
            weights=weights,
            values=before + outputs,
        )
        self.channels = channels
        return self.place

    def depth(self, kernel: int = 3, stride: int = 1) -> Place:
        """Add a depthwise convolution."""
        return self.conv(self.channels, kernel, stride, self.channels)

    def moves(self, inputs: float = 1.0, outputs: float = 1.0) -> None:
        """Add an operation that reads and writes so many times the picture."""
        values = int(self.side * self.side * self.channels * (inputs + outputs))
        self.work += moving(values)

    def pool(self, kernel: int, stride: int, *, up: bool = False) -> None:
        """Add a pooling; `up`: partial windows at the edge count."""
        before = self.side * self.side * self.channels
        more = self.side - kernel
        self.side = (-(-more // stride) if up else more // stride) + 1
        self.work += moving(before + self.side**2 * self.channels)

    def full(self, inputs: int, outputs: int) -> None:
        """Add a fully connected layer."""
        self.work += Work(weights=inputs * outputs, values=inputs + outputs, operations=1)
        self.side, self.channels = 1, outputs

    def mean(self) -> None:
        """Add the mean over the picture."""
        self.moves(1.0, 0.0)
        self.side = 1

    def concat(self, channels: int) -> None:
        """Join branches to so many channels."""
        self.channels = channels
        self.moves()

    def squeeze(self, inner: int) -> None:
        """Add squeeze and excitation through `inner` channels."""
        side, channels = self.place
        self.mean()
        self.full(channels, inner)
        self.full(inner, channels)
        self.back((side, channels))
        self.moves()

    def inverted(
        self,
        channels: int,
        ratio: float,
        kernel: int,
        stride: int,
        *,
        inner: int = 0,
        swish: int = 0,
        expand: int = 0,
    ) -> None:
        """Add an inverted residual: 1×1, depthwise, squeeze through `inner`, 1×1, and the sum where shapes allow.

        `swish`: activations that are operations of their own.
        """
        begin = self.place
        wide = expand or round(self.channels * ratio)
        if wide != self.channels:
            self.conv(wide)
            self.own(swish)
        self.depth(kernel, stride)
        self.own(swish)
        if inner:
            self.squeeze(inner)
        self.conv(channels)
        if self.place == begin:
            self.moves(2.0)

    def own(self, count: int) -> None:
        """Add activations that are operations of their own, in place."""
        for _ in range(count):
            self.moves(0.5, 0.5)
