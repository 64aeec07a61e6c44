"""The space of networks of `search`: three stages for 32×32 RGB pictures, with blocks of several kinds."""

from __future__ import annotations

from typing import Any

from torch import nn

CLASSES = 10


def build(first: int, second: int, third: int, block: str, depth: int, stem: int) -> Any:
    """A network.

    Args:
        first: channels of the first stage.
        second: of the second, which is half as large.
        third: of the third.
        block: `plain`: 3×3 convolutions; `residual`: with a shortcut; `separable`: depthwise, then 1×1.
        depth: blocks of each stage.
        stem: stride of the first convolution.
    """
    layers = [_unit(3, first, stride=stem)]
    inputs = first
    for number, width in enumerate((first, second, third)):
        for place in range(depth):
            pooled = number > 0 and place == 0
            layers.append(_block(block, inputs, width, stride=2 if pooled else 1))
            inputs = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, CLASSES))


def _unit(inputs: int, outputs: int, size: int = 3, stride: int = 1, groups: int = 1) -> Any:
    conv = nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())


def _block(kind: str, inputs: int, outputs: int, stride: int) -> Any:
    if kind == "separable":
        return nn.Sequential(_unit(inputs, inputs, stride=stride, groups=inputs), _unit(inputs, outputs, 1))
    unit = _unit(inputs, outputs, stride=stride)
    return _Residual(unit) if kind == "residual" and stride == 1 and inputs == outputs else unit


class _Residual(nn.Module):
    def __init__(self, body: Any) -> None:
        super().__init__()
        self.body = body

    def forward(self, inputs: Any) -> Any:
        return inputs + self.body(inputs)
