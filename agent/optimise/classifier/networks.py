"""Networks that `vedette optimise train` knows by name.

`tiny` has the residual blocks of He et al., Deep Residual Learning for Image Recognition (CVPR 2016), with one
convolution each.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

_STEM, _WIDTHS = 24, (48, 96, 192)


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


NETWORKS: dict[str, Callable[[int], nn.Module]] = {"tiny": tiny}
"""Factories by name; each takes `classes`."""
SMALLEST = {"tiny": 32}
"""Least side of their pictures, pixels."""
