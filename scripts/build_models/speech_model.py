"""The small speech model in PyTorch, for training; `folded` turns it into the weights of `speech_graph`."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from speech_graph import (
    CHANNELS,
    CLASSES,
    DEPTHS,
    FOLD,
    HALVING,
    HEAD,
    KERNEL,
    MELS,
    STEM_CHANNELS,
    STEM_SIZE,
    STEM_STRIDE,
    STEPS,
    SUMMARIES,
)
from torch import Tensor, nn
from torch.nn import functional

from agent.optimise.attention import LowRankAttention
from agent.optimise.graph.layers import Convolution

_BANDS = MELS // FOLD
_DROPOUT = 0.1


class SamePadded(nn.Conv2d):
    """A convolution padded as TensorFlow pads: what is left over goes behind."""

    def forward(self, x: Tensor) -> Tensor:
        """[batch, channels, time, bands] in and out."""
        pads: list[int] = []
        for size, kernel, stride in zip(x.shape[:1:-1], self.kernel_size[::-1], self.stride[::-1], strict=True):
            total = max(0, (-(-size // stride) - 1) * stride + kernel - size)
            pads += [total // 2, total - total // 2]
        padded = functional.pad(x, pads)
        if self.groups > 1 and self.stride == (2, 1):
            return self._halved(padded)
        return super().forward(padded)

    def _halved(self, x: Tensor) -> Tensor:
        """The same as a convolution of the even rows and one of the odd: gradients of strides are slow."""
        count = (x.shape[2] - self.kernel_size[0]) // 2 + 1
        total: Tensor | None = None
        for row in range(2):
            kernel = self.weight[:, :, row::2]
            rows = x[:, :, row::2][:, :, : count + kernel.shape[2] - 1]
            part = functional.conv2d(rows, kernel, self.bias if total is None else None, groups=self.groups)
            total = part if total is None else total + part
        return total


def _normalised(name: str, convolution: nn.Conv2d) -> list[tuple[str, nn.Module]]:
    return [(name, convolution), (f"{name}_norm", nn.BatchNorm2d(convolution.out_channels))]


class Separable(nn.Module):
    """Depthwise, then pointwise convolution; residual if it keeps the shape."""

    def __init__(self, incoming: int, outgoing: int, stride: tuple[int, int]) -> None:
        super().__init__()
        self.residual = incoming == outgoing
        self.depthwise = SamePadded(incoming, incoming, KERNEL, stride, groups=incoming, bias=False)
        self.depthwise_norm = nn.BatchNorm2d(incoming)
        self.pointwise = nn.Conv2d(incoming, outgoing, 1, bias=False)
        self.pointwise_norm = nn.BatchNorm2d(outgoing)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, channels, time, bands] in and out."""
        y = functional.relu(self.depthwise_norm(self.depthwise(x)), inplace=True)
        y = self.pointwise_norm(self.pointwise(y))
        return functional.relu(x + y if self.residual else y, inplace=True)


class OverTime(nn.Module):
    """A block over time for [batch, channels, time, bands]: what it adds to a step, it adds to all bands of it.

    Args:
        block: from [batch, channels, time, 1] to its sum with what it adds; `nn.Identity`: nothing is added.
        channels: of the sequence.
    """

    def __init__(self, block: nn.Module, channels: int) -> None:
        super().__init__()
        self.step = nn.Conv2d(channels, channels, (1, _BANDS), groups=channels)
        nn.init.constant_(self.step.weight, 1 / _BANDS)
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        """[batch, channels, time, bands] in and out."""
        if isinstance(self.block, nn.Identity):
            return x
        weights = self.step.weight[:, 0, 0].t().contiguous()  # with the gradient of a grouped convolution, slower
        merged = (x.permute(0, 2, 3, 1) * weights).sum(2, keepdim=True).permute(0, 3, 1, 2)
        steps = merged + self.step.bias[:, None, None]
        return (x + (self.block(steps) - steps).to(x.dtype)).relu_()


class Speech(nn.Module):
    """All twelve layers and the four exits."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = SamePadded(FOLD, STEM_CHANNELS, STEM_SIZE, STEM_STRIDE, bias=False)
        self.stem_norm = nn.BatchNorm2d(STEM_CHANNELS)
        self.blocks = nn.ModuleDict()
        for depth in range(2, DEPTHS[-1] + 1):
            incoming = STEM_CHANNELS if depth == HALVING else CHANNELS
            stride = STEM_STRIDE if depth == HALVING else (1, 1)
            self.blocks[str(depth)] = Separable(incoming, CHANNELS, stride)
        self.attention = OverTime(LowRankAttention(CHANNELS, HEAD, STEPS, SUMMARIES), CHANNELS)
        self.exits = nn.ModuleDict({str(depth): nn.Linear(CHANNELS * _BANDS, CLASSES) for depth in DEPTHS})
        self.dropout = nn.Dropout(_DROPOUT)

    def forward(self, features: Tensor) -> list[Tensor]:
        """Logits [batch, classes] of all exits, for normalised features [batch, time, mels]."""
        hidden = self.hidden(features)
        hidden[DEPTHS[-1]] = self.attention(hidden[DEPTHS[-1]])
        return [self.exits[str(depth)](self.pooled(hidden[depth])) for depth in DEPTHS]

    def hidden(self, features: Tensor) -> dict[int, Tensor]:
        """What the layers with an exit give, by depth, before attention."""
        batch, steps, _ = features.shape
        x = features.reshape(batch, steps, _BANDS, FOLD).permute(0, 3, 1, 2)
        x = functional.relu(self.stem_norm(self.stem(x)), inplace=True)
        found = {}
        for depth in range(2, DEPTHS[-1] + 1):
            x = found[depth] = self.blocks[str(depth)](x)
        return {depth: found[depth] for depth in DEPTHS}

    def pooled(self, x: Tensor) -> Tensor:
        """Mean over time of what enters an exit, with dropout: [batch, bands × channels]."""
        pooled: Tensor = self.dropout(x.mean(2).transpose(1, 2).flatten(1))
        return pooled


def folded(model: Speech) -> dict[str, Convolution]:
    """Kernels and biases by the names of `speech_graph`, with the batch normalisation inside."""
    weights = {"stem": _fold(model.stem, model.stem_norm)}
    for depth, block in model.blocks.items():
        weights[f"block{depth}/depthwise"] = _fold(block.depthwise, block.depthwise_norm)
        weights[f"block{depth}/pointwise"] = _fold(block.pointwise, block.pointwise_norm)
    weights["attention/step"] = _fold(model.attention.step)
    for name, convolution in model.attention.block.named_children():
        weights[f"attention/{name}"] = _fold(convolution)
    for depth, linear in model.exits.items():
        weights[f"logits{depth}"] = Convolution(_array(linear.weight).T[None, None], _array(linear.bias))
    return weights


def _fold(convolution: nn.Conv2d, norm: nn.BatchNorm2d | None = None) -> Convolution:
    kernel = _array(convolution.weight)
    kernel = kernel.transpose(2, 3, 1, 0)
    if norm is None:
        return Convolution(np.ascontiguousarray(kernel), _array(convolution.bias))
    deviation = np.sqrt(_array(norm.running_var) + np.float32(norm.eps))
    gain = (_array(norm.weight) / deviation).astype(np.float32)
    bias = _array(norm.bias) - _array(norm.running_mean) * gain
    return Convolution(np.ascontiguousarray(kernel * gain), bias)


def _array(tensor: Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = tensor.detach().numpy().astype(np.float32)
    return array
