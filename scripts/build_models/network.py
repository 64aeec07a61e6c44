"""NanoDet-g as a list of layers."""

from collections.abc import Sequence

import numpy as np

from agent.optimise.graph.layers import Convolution, Network

CLASSES = 80
SIDES = 4
BINS = 11
MEAN_BGR = np.array([103.53, 116.28, 123.675], np.float32)
STD_BGR = np.array([57.375, 57.12, 58.395], np.float32)
STEM_STRIDE = 2
STAGES = ((1, 1), (2, 2), (2, 2), (3, 2))
"""(blocks, stride) of the four stages; the last three feed the pyramid."""

LOUDEST = (18, 26)
"""Channels of the first convolution whose values reach much further than all others'. They leave it halved and
the next convolution doubles them: the same in float, and in INT8 the other channels get finer steps."""

_BORDER = ((0, 0), (1, 1), (1, 1), (0, 0))
"""One pixel on each side."""
_LEAK = 0.1
"""Slope of every LEAKY_RELU below zero."""


class NanoDet(Network):
    """NanoDet for one input size: `image`, `size` × `size` pixels."""

    def __init__(self, size: int) -> None:
        super().__init__("image", shapes={"image": (1, size, size, 3)}, pixels=True)
        self.size = size

    def conv(self, x: str, convolution: Convolution, stride: int = 1) -> str:
        """Convolution that keeps the size, or halves it (padded by one on every side, as PyTorch pads)."""
        if stride == 1:
            return self.convolve(x, convolution)
        return self.convolve(self.pad(x, _BORDER), convolution, stride=(stride, stride), padding="VALID")

    def half_max(self, x: str) -> str:
        """3×3 max-pool with stride 2."""
        return self.pool("MAX_POOL_2D", self.pad(x, _BORDER), (3, 3), stride=(2, 2))

    def leaky(self, x: str) -> str:
        """LeakyReLU."""
        return self.each("LEAKY_RELU", x, alpha=_LEAK)

    def resize_like(self, x: str, other: str) -> str:
        """Bilinear resize to the height and width of `other`."""
        shape = (*self.shapes[other][:3], self.shapes[x][3])
        return self.add("RESIZE_BILINEAR", x, shape=shape)


def nanodet(convolutions: Sequence[Convolution], size: int) -> NanoDet:
    """NanoDet-g for `size` × `size` BGR pixels 0..255.

    Outputs, over the N cells of strides 8, 16 and 32: `scores` [1, N, 80], probabilities of the classes; `reg`
    [1, N, 44], for each of left, top, right and bottom the probabilities of the distances 0..10 strides from the
    cell's centre.

    The layers are those of the source model, but arranged for INT8 and for XNNPACK: the normalisation sits in the
    first convolution (so the picture's border is black, not the mean colour), max-pool comes before its
    LeakyReLU (which is monotone; its border is 0, not -inf), and each head's convolution is split in two, so that
    scores and distances have scales of their own.
    """
    stem, entry, *others = convolutions
    net, (stem, entry) = NanoDet(size), _evened(_normalised(stem), entry)
    rest = iter((entry, *others))
    x = net.conv("image", stem, STEM_STRIDE)
    x = net.leaky(net.half_max(x))
    levels = [
        x := _stage(net, x, [next(rest) for _ in range(2 * blocks + 2)], stride) for blocks, stride in STAGES
    ]
    levels = [net.conv(level, next(rest)) for level in levels[1:]]
    _heads(net, _pyramid(net, levels), list(rest))
    return net


def _normalised(stem: Convolution) -> Convolution:
    """The first convolution for pixels 0..255 in place of (pixel - mean) / std."""
    kernel = stem.kernel / STD_BGR[:, None]
    return Convolution(kernel, stem.bias - np.einsum("hwio,i->o", kernel, MEAN_BGR))


def _evened(first: Convolution, second: Convolution) -> tuple[Convolution, Convolution]:
    """Two convolutions in a row with the loudest channels between them halved."""
    gain = np.ones(len(first.bias), np.float32)
    gain[list(LOUDEST)] = 0.5
    return Convolution(first.kernel * gain, first.bias * gain), Convolution(
        second.kernel / gain[:, None], second.bias
    )


def _stage(net: NanoDet, x: str, convolutions: Sequence[Convolution], stride: int) -> str:
    """A cross-stage-partial stage: blocks of two convolutions, whose input joins their output at the end."""
    first, *blocks, last = convolutions
    entry = x = net.leaky(net.conv(x, first, stride))
    for narrow, deep in zip(blocks[::2], blocks[1::2], strict=True):
        x = net.leaky(net.conv(x, narrow))
        x = net.join(net.leaky(net.conv(x, deep)), x)
    return net.join(net.leaky(net.conv(x, last)), entry)


def _pyramid(net: NanoDet, levels: Sequence[str]) -> list[str]:
    """Path aggregation over strides 8, 16 and 32: sums from coarse to fine, then from fine to coarse."""
    fine, middle, coarse = levels
    middle = net.combine("ADD", middle, net.resize_like(coarse, middle))
    fine = net.combine("ADD", fine, net.resize_like(middle, fine))
    middle = net.combine("ADD", middle, net.resize_like(fine, middle))
    return [fine, middle, net.combine("ADD", coarse, net.resize_like(middle, coarse))]


def _heads(net: NanoDet, levels: Sequence[str], convolutions: Sequence[Convolution]) -> None:
    """One head per level; their outputs joined over the levels."""
    scores, reg = [], []
    for level, shared, both in zip(levels, convolutions[::2], convolutions[1::2], strict=True):
        x = net.leaky(net.conv(level, shared))
        cells = net.shapes[x][1] * net.shapes[x][2]
        scores.append(net.reshape(net.conv(x, both.outputs(0, CLASSES)), (1, cells, CLASSES)))
        sides = net.conv(x, both.outputs(CLASSES, CLASSES + SIDES * BINS))
        reg.append(net.reshape(sides, (1, cells * SIDES, BINS)))
    net.each("LOGISTIC", net.join(*scores, axis=1, name="logits"), "scores")
    distances = net.each("SOFTMAX", net.join(*reg, axis=1), "distances")
    net.reshape(distances, (1, net.shapes["scores"][1], SIDES * BINS), "reg")
