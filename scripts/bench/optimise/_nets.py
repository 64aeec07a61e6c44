"""Networks of the benches, as factories: each function without arguments builds one for 32×32 RGB pictures.

The airbench-like nets follow Jordan, 94% on CIFAR-10 in 3.29 Seconds on a Single GPU (arXiv 2404.00498), with
ReLU in place of GELU and the max-pool behind the ReLU, so that every batch norm folds into the convolution before
it. The ResNet is that of He et al., Deep Residual Learning for Image Recognition (CVPR 2016), section 4.2;
MobileNetV2 that of Sandler et al. (CVPR 2018), with fewer and smaller stages.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from agent.optimise.augment import Normalisation

NORMALISATION = Normalisation(mean=121, std=64.0)
TEMPERATURE = 9.0
"""Outputs of the airbench-like nets are divided by this in training; `cool` makes it part of the last layer."""
CLASSES = 10


def _conv(inputs: int, outputs: int) -> list[Any]:
    """A 3×3 convolution that begins as the identity, a batch norm whose scale stays 1, and ReLU."""
    conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    nn.init.dirac_(conv.weight.data[:inputs])
    norm = nn.BatchNorm2d(outputs, eps=1e-12, momentum=0.4)
    norm.weight.requires_grad = False
    return [conv, norm, nn.ReLU()]


def _airbench(widths: Sequence[int]) -> Any:
    stem = nn.Conv2d(3, 24, 2)
    nn.init.zeros_(stem.bias)
    stem.weight.requires_grad = False
    layers: list[Any] = [stem, nn.ReLU()]
    inputs = stem.out_channels
    for width in widths:
        layers += [*_conv(inputs, width), nn.MaxPool2d(2), *_conv(width, width)]
        inputs = width
    return nn.Sequential(*layers, nn.MaxPool2d(3), nn.Flatten(), nn.Linear(inputs, CLASSES, bias=False))


def wide() -> Any:
    """1.97 million parameters, 118 million multiply-adds."""
    return _airbench((64, 256, 256))


def small() -> Any:
    """0.57 million parameters, 55 million multiply-adds."""
    return _airbench((64, 128, 128))


def tiny() -> Any:
    """36 thousand parameters, for runs of seconds."""
    return _airbench((16, 32, 32))


def whiten(net: Any, pictures: NDArray[Any]) -> None:
    """Set the stem of an airbench-like net to the principal components of 2×2 patches, and their negatives."""
    inputs = NORMALISATION.apply(torch.from_numpy(pictures))
    patches = inputs.unfold(2, 2, 1).unfold(3, 2, 1).permute(0, 2, 3, 1, 4, 5).reshape(-1, 12)
    values, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))
    filters = (vectors.T / (values[:, None] + 5e-4).sqrt()).flip(0).view(12, 3, 2, 2)
    net[0].weight.data[:] = torch.cat([filters, -filters])


def cool(net: Any) -> None:
    """Divide the outputs of an airbench-like net by `TEMPERATURE`, in its last layer."""
    net[-1].weight.data /= TEMPERATURE


def heat(net: Any) -> None:
    """Undo `cool`, before a net is trained further."""
    net[-1].weight.data *= TEMPERATURE


class _Residual(nn.Module):
    def __init__(self, body: Any, shortcut: Any, *, relu: bool) -> None:
        super().__init__()
        self.body, self.shortcut, self.relu = body, shortcut, nn.ReLU() if relu else nn.Identity()

    def forward(self, inputs: Any) -> Any:
        return self.relu(self.body(inputs) + self.shortcut(inputs))


def _unit(inputs: int, outputs: int, size: int = 3, stride: int = 1, groups: int = 1, act: Any = nn.ReLU) -> Any:
    conv = nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), act())


def _basic(inputs: int, outputs: int, stride: int) -> Any:
    same = stride == 1 and inputs == outputs
    shortcut = nn.Identity() if same else _unit(inputs, outputs, 1, stride, act=nn.Identity)
    body = nn.Sequential(_unit(inputs, outputs, 3, stride), _unit(outputs, outputs, act=nn.Identity))
    return _Residual(body, shortcut, relu=True)


def resnet20() -> Any:
    """0.27 million parameters, 41 million multiply-adds."""
    layers = [_unit(3, 16)]
    for inputs, width, stride in ((16, 16, 1), (16, 32, 2), (32, 64, 2)):
        layers += [_basic(inputs, width, stride), _basic(width, width, 1), _basic(width, width, 1)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, CLASSES))


def _inverted(inputs: int, outputs: int, stride: int, widen: int) -> Any:
    middle = inputs * widen
    body = nn.Sequential(
        _unit(inputs, middle, 1, act=nn.ReLU6),
        _unit(middle, middle, 3, stride, groups=middle, act=nn.ReLU6),
        _unit(middle, outputs, 1, act=nn.Identity),
    )
    return _Residual(body, nn.Identity(), relu=False) if stride == 1 and inputs == outputs else body


def mobilenet() -> Any:
    """A MobileNetV2 with 0.41 million parameters and 51 million multiply-adds."""
    layers = [_unit(3, 32, act=nn.ReLU6)]
    inputs = 32
    for widen, width, count, stride in (
        (1, 16, 1, 1),
        (6, 24, 2, 1),
        (6, 32, 3, 2),
        (6, 64, 3, 2),
        (6, 96, 2, 1),
    ):
        for number in range(count):
            layers.append(_inverted(inputs, width, 1 if number else stride, widen))
            inputs = width
    last = [_unit(inputs, 4 * inputs, 1, act=nn.ReLU6), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, *last, nn.Linear(4 * inputs, CLASSES))


FACTORIES = {"wide": wide, "small": small, "tiny": tiny, "resnet20": resnet20, "mobilenet": mobilenet}


def build(name: str, pictures: NDArray[Any], seed: int = 0) -> Any:
    """A net before training: random numbers from the seed, and a whitening stem from pictures."""
    torch.manual_seed(seed)
    net = FACTORIES[name]()
    if name in ("wide", "small", "tiny"):
        whiten(net, pictures[::10])  # they are in the order of their classes
    return net.to(memory_format=torch.channels_last)


def save(net: Any, name: str, path: Path) -> None:
    """Write `{"factory": …, "state_dict": …}`, which `vedette optimise import --weights` takes, too."""
    partial = path.with_name(f".{path.name}")
    torch.save({"factory": f"scripts/bench/optimise/_nets.py:{name}", "state_dict": net.state_dict()}, partial)
    partial.replace(path)


def load(path: Path) -> Any:
    """The net in a file of `save`, in evaluation mode."""
    if not path.is_file():
        raise SystemExit(f"{path}: no such file; scripts/bench/run optimise/baseline makes it")
    saved = torch.load(path, weights_only=True)
    net = FACTORIES[saved["factory"].rpartition(":")[2]]()
    net.load_state_dict(saved["state_dict"])
    return net.eval()


def multiply_adds(net: Any, size: int = 32) -> int:
    """Multiply-adds of one picture."""
    counts: list[int] = []

    def count(layer: Any, inputs: Any, outputs: Any) -> None:
        counts.append(int(outputs[0].numel() * np.prod(layer.weight.shape[1:])))

    hooks = [
        layer.register_forward_hook(count) for layer in net.modules() if isinstance(layer, nn.Conv2d | nn.Linear)
    ]
    with torch.no_grad():
        net.eval()(torch.zeros(1, 3, size, size))
    for hook in hooks:
        hook.remove()
    return sum(counts)
