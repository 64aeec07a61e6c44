"""The networks whose times on boards are published, layer by layer, and their work by class of operation.

Each is described as ncnn's benchmark runs it: https://github.com/Tencent/ncnn/tree/master/benchmark/models. A
description is a function that takes a `Network` and adds layers to it. What ncnn merges into a convolution (batch
normalisation, ReLU) is no layer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from agent.compute.tflite.work import Work, convolution

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
        self.work += Work(moved=values, operations=1)

    def pool(self, kernel: int, stride: int, *, up: bool = False) -> None:
        """Add a pooling; `up`: partial windows at the edge count."""
        before = self.side * self.side * self.channels
        more = self.side - kernel
        self.side = (-(-more // stride) if up else more // stride) + 1
        self.work += Work(moved=before + self.side**2 * self.channels, operations=1)

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
        """Add activations that are operations of their own."""
        for _ in range(count):
            self.moves()


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
        (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
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


_V3_LARGE = [
    (3, 16, 16, 0, 0, 1), (3, 64, 24, 0, 0, 2), (3, 72, 24, 0, 0, 1), (5, 72, 40, 24, 0, 2), (5, 120, 40, 32, 0,
    1), (5, 120, 40, 32, 0, 1), (3, 240, 80, 0, 1, 2), (3, 200, 80, 0, 1, 1), (3, 184, 80, 0, 1, 1),
    (3, 184, 80, 0, 1, 1), (3, 480, 112, 120, 1, 1), (3, 672, 112, 168, 1, 1), (5, 672, 160, 168, 1, 2),
    (5, 960, 160, 240, 1, 1), (5, 960, 160, 240, 1, 1),
]  # fmt: skip
_V3_SMALL = [
    (3, 16, 16, 8, 0, 2), (3, 72, 24, 0, 0, 2), (3, 88, 24, 0, 0, 1), (5, 96, 40, 24, 1, 2), (5, 240, 40, 64, 1,
    1), (5, 240, 40, 64, 1, 1), (5, 120, 48, 32, 1, 1), (5, 144, 48, 40, 1, 1), (5, 288, 96, 72, 1, 2),
    (5, 576, 96, 144, 1, 1), (5, 576, 96, 144, 1, 1),
]  # fmt: skip


def _mobilenet_v3(net: Network, rows: Sequence[tuple[int, ...]], wide: int, last: int) -> None:
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


def nanodet_m(net: Network) -> None:
    """NanoDet-m: ShuffleNet v2, a pyramid of 96 channels, and two depthwise separable layers a level."""
    levels = []
    for place in shuffle_v2_body(net):
        net.back(place)
        levels.append(net.conv(96))
    for place in (*levels[:2], *levels[1:]):
        net.back(place)
        net.moves()
        net.moves(2.0)
    for place in levels:
        net.back(place)
        for _ in range(2):
            net.depth()
            net.conv(96)
        net.conv(112)
        net.moves()


def mnasnet(net: Network) -> None:
    """MnasNet-B1."""
    net.conv(32, 3, 2)
    net.depth()
    net.conv(16)
    for ratio, kernel, channels, count, stride in [
        (3, 3, 24, 3, 2), (3, 5, 40, 3, 2), (6, 5, 80, 3, 2), (6, 3, 96, 2, 1), (6, 5, 192, 4, 2), (6, 3, 320,
        1, 1),
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
        (1, 3, 16, 1, 1), (6, 3, 24, 2, 2), (6, 5, 40, 2, 2), (6, 3, 80, 3, 2), (6, 5, 112, 3, 1), (6, 5, 192,
        4, 2), (6, 3, 320, 1, 1),
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
    net.work += Work(dense=64 * 64 * 24 * 75, weights=1800, values=128 * 128 * 3 + 64 * 64 * 24, operations=1)
    net.channels = 24
    for channels, stride in [
        (24, 1), (28, 1), (32, 2), (36, 1), (42, 1), (48, 2), (56, 1), (64, 1), (72, 1), (80, 1), (88, 1), (96,
        2), (96, 1), (96, 1), (96, 1), (96, 1),
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
        (16, 64, 0), (16, 64, 1), (32, 128, 0), (32, 128, 1), (48, 192, 0), (48, 192, 0), (64, 256, 0), (64,
        256, 0),
    ]:  # fmt: skip
        _fire(net, squeeze, expand)
        if pooled:
            net.pool(3, 2, up=True)
    net.conv(1000)
    net.mean()


def _fire(net: Network, squeeze: int, expand: int) -> Place:
    inner = net.conv(squeeze)
    net.conv(expand)
    net.back(inner)
    net.conv(expand, 3)
    net.concat(2 * expand)
    return net.place


def squeezenet_ssd(net: Network) -> None:
    """SqueezeNet with single-shot heads at six sizes."""
    net.conv(64, 3, 2, padded=False)
    net.pool(3, 2, up=True)
    levels = []
    for squeeze, expand, pooled in [
        (16, 64, 0), (16, 64, 1), (32, 128, 0), (32, 128, 2), (48, 192, 0), (48, 192, 0), (64, 256, 0), (64,
        256, 2), (96, 384, 2), (96, 384, 0),
    ]:  # fmt: skip
        place = _fire(net, squeeze, expand)
        if pooled == 2:
            levels.append(place)
        if pooled:
            net.pool(3, 2)
    levels.append(net.place)
    for inner, outer in ((128, 256), (64, 128)):
        net.conv(inner)
        levels.append(net.conv(outer, 3, 2))
    for number, place in enumerate(levels):
        _heads(net, place, 4 if number in (0, 5) else 6, 3)


def _heads(net: Network, place: Place, boxes: int, kernel: int) -> None:
    for values in (4, 21):
        net.back(place)
        net.conv(boxes * values, kernel)
        for _ in range(3 if values == 4 else 6):
            net.moves()


def mobilenet_ssd(net: Network) -> None:
    """MobileNet with single-shot heads at six sizes."""
    levels = mobilenet(net, side_only=True)
    for inner, outer in ((256, 512), (128, 256), (128, 256), (64, 128)):
        net.conv(inner)
        levels.append(net.conv(outer, 3, 2))
    for number, place in enumerate(levels):
        _heads(net, place, 3 if number == 0 else 6, 1)


def mobilenet_yolo(net: Network) -> None:
    """MobileNet with two YOLO heads."""
    middle, end = mobilenet(net, side_only=True)
    net.back(end)
    net.depth()
    last = net.conv(1024)
    net.back((middle[0], 512))
    upsampled = middle[0] ** 2 * 512
    net.work += Work(
        depth=last[0] ** 2 * 512 * 32, weights=16384, values=last[0] ** 2 * 1024 + upsampled, operations=1
    )
    net.moves(2.0)
    net.depth()
    net.conv(1024)
    net.conv(125)
    net.back(last)
    net.conv(125)


def mobilenetv2_yolov3(net: Network) -> None:
    """MobileNet v2 with two YOLO heads."""
    middle = mobilenet_v2(net, head=False)
    first = net.conv(576)
    net.moves(1.0, 4.0)
    net.back(middle)
    net.moves()
    for sums in (2.0, 0.0):
        net.depth()
        net.conv(576)
        if sums:
            net.moves(sums)
    net.conv(75)
    net.back(first)
    net.conv(75)


def yolov4_tiny(net: Network) -> None:
    """YOLOv4-tiny, 80 classes."""
    net.conv(32, 3, 2)
    net.conv(64, 3, 2)
    route = net.place
    for channels in (64, 128, 256):
        net.conv(channels, 3)
        net.channels = channels // 2
        net.moves()
        net.conv(channels // 2, 3)
        net.conv(channels // 2, 3)
        net.concat(channels)
        route = net.conv(channels)
        net.concat(2 * channels)
        net.pool(2, 2)
    net.conv(512, 3)
    _tiny_heads(net, route)


def _tiny_heads(net: Network, route: Place) -> None:
    """The heads of YOLOv3-tiny and v4-tiny from 512 or 1024 channels, and a route of twice the side."""
    shared = net.conv(256)
    net.conv(512, 3)
    net.conv(255)
    net.back(shared)
    net.conv(128)
    net.side *= 2
    net.moves(0.25)
    net.back(route)
    net.concat(route[1] + 128)
    net.conv(256, 3)
    net.conv(255)


def yolov3_tiny(net: Network) -> None:
    """YOLOv3-tiny, 80 classes."""
    route = net.place
    for channels in (16, 32, 64, 128, 256):
        route = net.conv(channels, 3)
        net.pool(2, 2)
    net.conv(512, 3)
    net.moves()
    net.conv(1024, 3)
    _tiny_heads(net, route)


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


def yolo_fastest(net: Network) -> None:
    """YOLO-Fastest 1.1; the last layers of its heads from its description."""
    net.conv(8, 3, 2)
    net.conv(8)
    net.depth()
    net.conv(4)
    for wide, channels, stride, count in [
        (8, 4, 1, 1), (24, 8, 2, 1), (32, 8, 1, 2), (32, 8, 2, 1), (48, 8, 1, 2), (48, 16, 1, 1), (96, 16, 1, 4),
        (96, 24, 2, 1), (136, 24, 1, 4), (136, 48, 2, 1), (224, 48, 1, 5),
    ]:  # fmt: skip
        for number in range(count):
            net.inverted(channels, 0, 3, stride if number == 0 else 1, expand=wide)
        if (wide, channels) == (136, 24):
            route = net.place
    for _ in range(3):
        net.moves(9.0)
    net.concat(192)
    shared = net.conv(96)
    _separable_head(net)
    net.back(shared)
    net.side *= 2
    net.moves(0.25)
    net.back(route)
    net.concat(120)
    _separable_head(net)


def _separable_head(net: Network) -> None:
    for _ in range(2):
        net.depth(5)
        net.conv(net.channels)
    net.conv(255)


NETWORKS: dict[str, tuple[int, Callable[[Network], object]]] = {
    "squeezenet": (227, squeezenet),
    "mobilenet": (224, mobilenet),
    "mobilenet_v2": (224, mobilenet_v2),
    "mobilenet_v3": (224, lambda net: _mobilenet_v3(net, _V3_LARGE, 960, 1280)),
    "mobilenet_v3_small": (224, lambda net: _mobilenet_v3(net, _V3_SMALL, 576, 1024)),
    "shufflenet": (224, shufflenet),
    "shufflenet_v2": (224, shufflenet_v2),
    "mnasnet": (224, mnasnet),
    "proxylessnasnet": (224, proxylessnasnet),
    "efficientnet_b0": (224, efficientnet_b0),
    "efficientnetv2_b0": (224, efficientnetv2_b0),
    "regnety_400m": (224, regnety_400m),
    "blazeface": (128, blazeface),
    "googlenet": (224, googlenet),
    "resnet18": (224, resnet18),
    "alexnet": (227, alexnet),
    "vgg16": (224, vgg16),
    "resnet50": (224, resnet50),
    "squeezenet_ssd": (300, squeezenet_ssd),
    "mobilenet_ssd": (300, mobilenet_ssd),
    "mobilenet_yolo": (416, mobilenet_yolo),
    "mobilenetv2_yolov3": (352, mobilenetv2_yolov3),
    "yolov3-tiny": (416, yolov3_tiny),
    "yolov4-tiny": (416, yolov4_tiny),
    "nanodet_m": (320, nanodet_m),
    "nanodet_m_416": (416, nanodet_m),
    "yolo-fastest-1.1": (320, yolo_fastest),
}
"""Networks by name: side of the picture, and description."""


def work_of(name: str) -> Work:
    """Return the work of one inference of a network."""
    side, describe = NETWORKS[name]
    net = Network(side)
    describe(net)
    return net.work
