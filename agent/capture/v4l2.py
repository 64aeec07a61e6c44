"""What V4L2 tells about a camera that is not in use: name, formats and sizes, by its ioctls.

Layouts and numbers are those of the kernel's `linux/videodev2.h`; they are the same on 32 and 64 bits.
"""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Iterator
from pathlib import Path

from msgspec import Struct

_QUERYCAP, _ENUM_FMT, _ENUM_FRAMESIZES = 0x80685600, 0xC0405602, 0xC02C564A
_CAPABILITY = struct.Struct("=16s32s32sIII12x")
_FORMAT = struct.Struct("=III32sI16x")
_SIZE = struct.Struct("=IIIIIIIII8x")

_CAPTURE = {0x1: 1, 0x1000: 9}
"""The capability to give pictures → type of its buffers: V4L2_CAP_VIDEO_CAPTURE and its multi-planar twin."""
_HAS_DEVICE_CAPS = 0x8000_0000
_DISCRETE = 1
_NO_CAMERAS = {"bcm2835-isp", "bcm2835-codec", "bcm2835_isp", "pispbe", "rpivid", "rpi-hevc-dec"}
_RAW = {"unicam", "rp1-cfe", "qcom-camss"}
"""Drivers of image processors, which are no cameras; and of sensors whose raw pictures libcamera develops."""


class Node(Struct, frozen=True):
    """A device that gives pictures.

    Attributes:
        path: such as /dev/video0.
        name: of the camera.
        driver: of the kernel.
        sizes: width and height by format of four characters; of a range the largest.
    """

    path: str
    name: str
    driver: str
    sizes: dict[str, list[tuple[int, int]]]

    @property
    def needs_libcamera(self) -> bool:
        """Whether it is a bare sensor, of no use without libcamera."""
        return self.driver in _RAW


def query(path: Path) -> Node | None:
    """What a device tells; None when it gives no pictures: a metadata node, a codec, a scaler.

    Raises:
        OSError: it cannot be opened.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        driver, card, _, _, capabilities, device = _CAPABILITY.unpack(
            _asked(descriptor, _QUERYCAP, bytes(_CAPABILITY.size))
        )
        can = device if capabilities & _HAS_DEVICE_CAPS else capabilities
        kinds = [kind for capability, kind in _CAPTURE.items() if can & capability]
        if not kinds or _text(driver) in _NO_CAMERAS:
            return None
        sizes = {name: list(_sizes(descriptor, code)) for name, code in _formats(descriptor, kinds[0])}
        return Node(str(path), _text(card), _text(driver), sizes)
    except OSError:
        return None  # it is no V4L2 device
    finally:
        os.close(descriptor)


def _formats(descriptor: int, kind: int) -> Iterator[tuple[str, int]]:
    for index in range(64):
        try:
            answer = _asked(descriptor, _ENUM_FMT, _FORMAT.pack(index, kind, 0, b"", 0))
        except OSError:
            return
        code = _FORMAT.unpack(answer)[4]
        yield code.to_bytes(4, "little").decode("latin-1").strip(), code


def _sizes(descriptor: int, code: int) -> Iterator[tuple[int, int]]:
    for index in range(256):
        try:
            answer = _asked(descriptor, _ENUM_FRAMESIZES, _SIZE.pack(index, code, *[0] * 7))
        except OSError:
            return
        _, _, kind, *sides = _SIZE.unpack(answer)
        if kind != _DISCRETE:
            yield sides[1], sides[4]
            return
        yield sides[0], sides[1]


def _asked(descriptor: int, request: int, argument: bytes) -> bytes:
    return fcntl.ioctl(descriptor, request, argument)


def _text(field: bytes) -> str:
    return field.split(b"\0")[0].decode(errors="replace")
