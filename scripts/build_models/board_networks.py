"""Detectors whose times on boards are published, see `board_network`, and the table of all networks."""

from __future__ import annotations

from collections.abc import Callable

from board_classifiers import (
    V3_LARGE,
    V3_SMALL,
    alexnet,
    blazeface,
    efficientnet_b0,
    efficientnetv2_b0,
    fire,
    googlenet,
    mnasnet,
    mobilenet,
    mobilenet_v2,
    mobilenet_v3,
    proxylessnasnet,
    regnety_400m,
    resnet18,
    resnet50,
    shuffle_v2_body,
    shufflenet,
    shufflenet_v2,
    squeezenet,
    vgg16,
)
from board_network import Network, Place
from board_work import Work


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


def squeezenet_ssd(net: Network) -> None:
    """SqueezeNet with single-shot heads at six sizes."""
    net.conv(64, 3, 2, padded=False)
    net.pool(3, 2, up=True)
    levels = []
    for squeeze, expand, pooled in [
        (16, 64, 0), (16, 64, 1), (32, 128, 0), (32, 128, 2), (48, 192, 0), (48, 192, 0), (64, 256, 0),
        (64, 256, 2), (96, 384, 2), (96, 384, 0),
    ]:  # fmt: skip
        place = fire(net, squeeze, expand)
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


def yolo_fastest(net: Network) -> None:
    """YOLO-Fastest 1.1; the last layers of its heads from its description."""
    net.conv(8, 3, 2)
    net.conv(8)
    net.depth()
    net.conv(4)
    for wide, channels, stride, count in [
        (8, 4, 1, 1), (24, 8, 2, 1), (32, 8, 1, 2), (32, 8, 2, 1), (48, 8, 1, 2), (48, 16, 1, 1),
        (96, 16, 1, 4), (96, 24, 2, 1), (136, 24, 1, 4), (136, 48, 2, 1), (224, 48, 1, 5),
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
    "mobilenet_v3": (224, lambda net: mobilenet_v3(net, V3_LARGE, 960, 1280)),
    "mobilenet_v3_small": (224, lambda net: mobilenet_v3(net, V3_SMALL, 576, 1024)),
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
