"""Classifiers whose times on boards are published, see `board_network`."""

from __future__ import annotations

from collections.abc import Sequence

from board_network import Network, Place
from board_work import Work


def mobilenet(net: Network, side_only: bool = False) -> list[Place]:
    """MobileNet v1; returns the places before the last halving and at the end."""
    net.conv(32, 3, 2)
    kept = []
    plan = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1)]
    for channels, stride in plan:
        if channels == 1024 and stride == 2:
            kept.append(net.place)
        net.depth(3, stride)
        net.conv(channels)
    kept.append(net.place)
    if not side_only:
        net.mean()
        net.full(1024, 1000)
    return kept


def mobilenet_v2(net: Network, *, head: bool = True) -> Place:
    """MobileNet v2; returns the expanded place before the last halving."""
    net.conv(32, 3, 2)
    expanded = net.place
    for ratio, channels, count, stride in [
        (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2),
        (6, 320, 1, 1),
    ]:  # fmt: skip
        if channels == 160:
            expanded = (net.side, net.channels * ratio)
        for number in range(count):
            net.inverted(channels, ratio, 3, stride if number == 0 else 1)
    net.conv(1280)
    if head:
        net.mean()
        net.full(1280, 1000)
    return expanded


V3_LARGE = [
    (3, 16, 16, 0, 0, 1), (3, 64, 24, 0, 0, 2), (3, 72, 24, 0, 0, 1), (5, 72, 40, 24, 0, 2),
    (5, 120, 40, 32, 0, 1), (5, 120, 40, 32, 0, 1), (3, 240, 80, 0, 1, 2), (3, 200, 80, 0, 1, 1),
    (3, 184, 80, 0, 1, 1), (3, 184, 80, 0, 1, 1), (3, 480, 112, 120, 1, 1), (3, 672, 112, 168, 1, 1),
    (5, 672, 160, 168, 1, 2), (5, 960, 160, 240, 1, 1), (5, 960, 160, 240, 1, 1),
]  # fmt: skip
V3_SMALL = [
    (3, 16, 16, 8, 0, 2), (3, 72, 24, 0, 0, 2), (3, 88, 24, 0, 0, 1), (5, 96, 40, 24, 1, 2),
    (5, 240, 40, 64, 1, 1), (5, 240, 40, 64, 1, 1), (5, 120, 48, 32, 1, 1), (5, 144, 48, 40, 1, 1),
    (5, 288, 96, 72, 1, 2), (5, 576, 96, 144, 1, 1), (5, 576, 96, 144, 1, 1),
]  # fmt: skip


def mobilenet_v3(net: Network, rows: Sequence[tuple[int, ...]], wide: int, last: int) -> None:
    """MobileNet v3, large or small: rows of kernel, expansion, channels, squeeze, hard swish and stride."""
    net.conv(16, 3, 2)
    net.own(1)
    for kernel, expand, channels, inner, swish, stride in rows:
        net.inverted(channels, 0, kernel, stride, inner=inner, swish=swish, expand=expand)
    net.conv(wide)
    net.own(1)
    net.mean()
    net.full(wide, last)
    net.full(last, 1000)


def shufflenet(net: Network) -> None:
    """ShuffleNet v1, three groups."""
    net.conv(24, 3, 2)
    net.pool(3, 2, up=True)
    for channels, count in ((240, 4), (480, 8), (960, 4)):
        for number in range(count):
            begin, stride = net.place, 2 if number == 0 else 1
            net.conv(channels // 4 - (6 if begin[1] == 24 else 0), groups=1 if begin[1] == 24 else 3)
            net.moves()
            net.depth(3, stride)
            net.conv(channels - (begin[1] if stride == 2 else 0), groups=3)
            if stride == 2:
                net.concat(channels)
            else:
                net.moves(2.0)
            net.moves()
    net.mean()
    net.full(960, 1000)


def shuffle_v2_body(net: Network) -> list[Place]:
    """Body of ShuffleNet v2 1.0; returns the place after each of its three stages."""
    net.conv(24, 3, 2)
    net.pool(3, 2, up=True)
    kept = []
    for channels, count in ((116, 4), (232, 8), (464, 4)):
        half = channels // 2
        for number in range(count):
            begin = net.place
            if number == 0:
                net.depth(3, 2)
                net.conv(half)
                net.back(begin)
            else:
                net.moves()
                net.channels = half
            net.conv(half)
            net.depth(3, 2 if number == 0 else 1)
            net.conv(half)
            net.concat(channels)
            net.moves()
        kept.append(net.place)
    return kept


def shufflenet_v2(net: Network) -> None:
    """ShuffleNet v2 1.0."""
    shuffle_v2_body(net)
    net.conv(1024)
    net.mean()
    net.full(1024, 1000)


def mnasnet(net: Network) -> None:
    """MnasNet-B1."""
    net.conv(32, 3, 2)
    net.depth()
    net.conv(16)
    for ratio, kernel, channels, count, stride in [
        (3, 3, 24, 3, 2), (3, 5, 40, 3, 2), (6, 5, 80, 3, 2), (6, 3, 96, 2, 1), (6, 5, 192, 4, 2),
        (6, 3, 320, 1, 1),
    ]:  # fmt: skip
        for number in range(count):
            net.inverted(channels, ratio, kernel, stride if number == 0 else 1)
    net.conv(1280)
    net.mean()
    net.full(1280, 1000)


def proxylessnasnet(net: Network) -> None:
    """ProxylessNAS for phones."""
    net.conv(32, 3, 2)
    net.depth()
    net.conv(16)
    for channels, stride, blocks in [
        (32, 2, [(3, 5), (3, 3)]), (40, 2, [(3, 7), (3, 3), (3, 5), (3, 5)]),
        (80, 2, [(6, 7), (3, 5), (3, 5), (3, 5)]), (96, 1, [(6, 5), (3, 5), (3, 5), (3, 5)]),
        (192, 2, [(6, 7), (6, 7), (3, 7), (3, 7)]), (320, 1, [(6, 7)]),
    ]:  # fmt: skip
        for number, (ratio, kernel) in enumerate(blocks):
            net.inverted(channels, ratio, kernel, stride if number == 0 else 1)
    net.conv(1280)
    net.mean()
    net.full(1280, 1000)


def efficientnet_b0(net: Network) -> None:
    """EfficientNet-B0."""
    net.conv(32, 3, 2)
    net.own(1)
    for ratio, kernel, channels, count, stride in [
        (1, 3, 16, 1, 1), (6, 3, 24, 2, 2), (6, 5, 40, 2, 2), (6, 3, 80, 3, 2), (6, 5, 112, 3, 1),
        (6, 5, 192, 4, 2), (6, 3, 320, 1, 1),
    ]:  # fmt: skip
        for number in range(count):
            net.inverted(
                channels, ratio, kernel, stride if number == 0 else 1, inner=max(1, net.channels // 4), swish=1
            )
    net.conv(1280)
    net.own(1)
    net.mean()
    net.full(1280, 1000)


def efficientnetv2_b0(net: Network) -> None:
    """EfficientNetV2-B0."""
    net.conv(32, 3, 2)
    net.own(1)
    net.conv(16, 3)
    net.own(1)
    for channels in (32, 48):
        for number in range(2):
            begin = net.place
            net.conv(net.channels * 4, 3, 2 if number == 0 else 1)
            net.own(1)
            net.conv(channels)
            if net.place == begin:
                net.moves(2.0)
    for ratio, channels, count, stride in [(4, 96, 3, 2), (6, 112, 5, 1), (6, 192, 8, 2)]:
        for number in range(count):
            net.inverted(channels, ratio, 3, stride if number == 0 else 1, inner=net.channels // 4, swish=1)
    net.conv(1280)
    net.own(1)
    net.mean()
    net.full(1280, 1000)


def regnety_400m(net: Network) -> None:
    """RegNetY of 400 million multiply-adds."""
    net.conv(32, 3, 2)
    for channels, count in ((48, 1), (104, 3), (208, 6), (440, 6)):
        for number in range(count):
            begin, stride = net.place, 2 if number == 0 else 1
            net.conv(channels)
            net.conv(channels, 3, stride, channels // 8)
            net.squeeze(begin[1] // 4)
            net.conv(channels)
            if number == 0:
                end = net.place
                net.back(begin)
                net.conv(channels, 1, 2)
                net.back(end)
            net.moves(2.0)
    net.mean()
    net.full(440, 1000)


def blazeface(net: Network) -> None:
    """BlazeFace without its heads, as ncnn has it."""
    net.side = 64
    net.channels = 3
    net.work += Work(large=64 * 64 * 24 * 75, weights=1800, values=128 * 128 * 3 + 64 * 64 * 24, operations=1)
    net.channels = 24
    for channels, stride in [
        (24, 1), (28, 1), (32, 2), (36, 1), (42, 1), (48, 2), (56, 1), (64, 1), (72, 1), (80, 1), (88, 1),
        (96, 2), (96, 1), (96, 1), (96, 1), (96, 1),
    ]:  # fmt: skip
        if stride == 2:
            net.moves()
            net.moves(1.0, 0.25)
        if channels != net.channels:
            net.moves()
        net.depth(3, stride)
        net.conv(channels)
        net.moves(2.0)
        net.moves()


def squeezenet(net: Network) -> None:
    """SqueezeNet 1.1."""
    net.conv(64, 3, 2, padded=False)
    net.pool(3, 2, up=True)
    for squeeze, expand, pooled in [
        (16, 64, 0), (16, 64, 1), (32, 128, 0), (32, 128, 1), (48, 192, 0), (48, 192, 0), (64, 256, 0),
        (64, 256, 0),
    ]:  # fmt: skip
        fire(net, squeeze, expand)
        if pooled:
            net.pool(3, 2, up=True)
    net.conv(1000)
    net.mean()


def fire(net: Network, squeeze: int, expand: int) -> Place:
    """Fire module of SqueezeNet; returns where it ends."""
    inner = net.conv(squeeze)
    net.conv(expand)
    net.back(inner)
    net.conv(expand, 3)
    net.concat(2 * expand)
    return net.place


def googlenet(net: Network) -> None:
    """GoogLeNet."""
    net.conv(64, 7, 2)
    net.pool(3, 2, up=True)
    net.moves()
    net.conv(64)
    net.conv(192, 3)
    net.moves()
    net.pool(3, 2, up=True)
    for number, row in enumerate([
        (64, 96, 128, 16, 32, 32), (128, 128, 192, 32, 96, 64), (192, 96, 208, 16, 48, 64),
        (160, 112, 224, 24, 64, 64), (128, 128, 256, 24, 64, 64), (112, 144, 288, 32, 64, 64),
        (256, 160, 320, 32, 128, 128), (256, 160, 320, 32, 128, 128), (384, 192, 384, 48, 128, 128),
    ]):  # fmt: skip
        _inception(net, row)
        if number in (1, 6):
            net.pool(3, 2, up=True)
    net.mean()
    net.full(1024, 1000)


def _inception(net: Network, row: tuple[int, ...]) -> None:
    begin = net.place
    one, reduce3, three, reduce5, five, pooled = row
    net.conv(one)
    net.back(begin)
    net.conv(reduce3)
    net.conv(three, 3)
    net.back(begin)
    net.conv(reduce5)
    net.conv(five, 5)
    net.back(begin)
    net.moves()
    net.conv(pooled)
    net.concat(one + three + five + pooled)


def resnet18(net: Network) -> None:
    """ResNet-18."""
    net.conv(64, 7, 2)
    net.pool(3, 2, up=True)
    for channels, first in ((64, 1), (128, 2), (256, 2), (512, 2)):
        for stride in (first, 1):
            begin = net.place
            net.conv(channels, 3, stride)
            end = net.conv(channels, 3)
            if begin != end:
                net.back(begin)
                net.conv(channels, 1, stride)
            net.moves(2.0)
    net.mean()
    net.full(512, 1000)


def resnet50(net: Network) -> None:
    """ResNet-50, halving by its 1×1 convolutions."""
    net.conv(64, 7, 2)
    net.pool(3, 2, up=True)
    for channels, count, first in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for number in range(count):
            begin, stride = net.place, first if number == 0 else 1
            net.conv(channels, 1, stride)
            net.conv(channels, 3)
            net.conv(4 * channels)
            if number == 0:
                net.back(begin)
                net.conv(4 * channels, 1, stride)
            net.moves(2.0)
    net.mean()
    net.full(2048, 1000)


def alexnet(net: Network) -> None:
    """AlexNet."""
    net.conv(96, 11, 4, padded=False)
    net.moves()
    net.pool(3, 2)
    net.conv(256, 5, groups=2)
    net.moves()
    net.pool(3, 2)
    net.conv(384, 3)
    net.conv(384, 3, groups=2)
    net.conv(256, 3, groups=2)
    net.pool(3, 2)
    net.full(9216, 4096)
    net.full(4096, 4096)
    net.full(4096, 1000)


def vgg16(net: Network) -> None:
    """VGG-16."""
    for channels, count in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(count):
            net.conv(channels, 3)
        net.pool(2, 2)
    net.full(25088, 4096)
    net.full(4096, 4096)
    net.full(4096, 1000)
