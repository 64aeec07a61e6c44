"""Lists the cameras and microphones of this machine that would work now, and what prevents others."""

from __future__ import annotations

import fcntl
import getpass
import importlib.util
import os
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from msgspec import Struct

from agent.capture.portaudio import CHANNELS_MAX, PORTAUDIO, Input, not_found
from agent.errors import SourceError
from agent.text import plural

# ioctl layouts and numbers of the kernel's `linux/videodev2.h`; the same on 32 and 64 bits.

_QUERYCAP, _ENUM_FMT, _ENUM_FRAMESIZES = 0x80685600, 0xC0405602, 0xC02C564A
_CAPABILITY = struct.Struct("=16s32s32sIII12x")
_FORMAT = struct.Struct("=III32sI16x")
_SIZE = struct.Struct("=IIIIIIIII8x")
_CAPTURE = {0x1: 1, 0x1000: 9}
"""Buffer type by capability: V4L2_CAP_VIDEO_CAPTURE, and V4L2_CAP_VIDEO_CAPTURE_MPLANE."""
_HAS_DEVICE_CAPS = 0x8000_0000
_DISCRETE = 1
_NO_CAMERAS = {"bcm2835-isp", "bcm2835-codec", "bcm2835_isp", "pispbe", "rpivid", "rpi-hevc-dec"}
_RAW = {"unicam", "rp1-cfe", "qcom-camss"}
"""Drivers of image processors, which are no cameras; and of sensors whose raw pictures libcamera develops."""


class Node(Struct, frozen=True):
    """A V4L2 device that gives pictures.

    Attributes:
        path: such as /dev/video0.
        name: of the camera.
        driver: of the kernel.
        sizes: width and height by four-character format; for a range its largest.
    """

    path: str
    name: str
    driver: str
    sizes: dict[str, list[tuple[int, int]]]

    @property
    def needs_libcamera(self) -> bool:
        """True for a bare sensor, which only libcamera can use."""
        return self.driver in _RAW


def query(path: Path) -> Node | None:
    """Query a device. Return None if it gives no pictures: a metadata node, a codec, a scaler.

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
        sizes = {name: list(_v4l2_sizes(descriptor, code)) for name, code in _formats(descriptor, kinds[0])}
        return Node(str(path), _text(card), _text(driver), sizes)
    except OSError:
        return None  # no V4L2 device
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


def _v4l2_sizes(descriptor: int, code: int) -> Iterator[tuple[int, int]]:
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


_RATES_HZ = (16000, 44100, 48000)
_SIZES_SHOWN = 3
_PATIENCE_S = 5.0


class CaptureDevice(Struct, frozen=True):
    """A camera or a microphone.

    Attributes:
        name: the device's own.
        offers: formats and sizes, or channels and rates, for people.
        uri: for `source` in a configuration.
    """

    name: str
    offers: str
    uri: str


class Devices(Struct, frozen=True):
    """Devices of this machine.

    Attributes:
        cameras: that would work.
        microphones: that would work.
        missing: what prevents others and what to do, a sentence each.
    """

    cameras: list[CaptureDevice]
    microphones: list[CaptureDevice]
    missing: list[str]


def devices(root: Path = Path("/dev")) -> Devices:
    """Find cameras and microphones; none is started."""
    absent: list[str] = []
    cameras = [*_v4l2(root, absent), *_libcamera(absent)]
    microphones = _microphones(absent)
    return Devices(cameras, microphones, absent)


def _v4l2(root: Path, absent: list[str]) -> Iterator[CaptureDevice]:
    denied, raw = [], []
    for path in sorted(root.glob("video*"), key=lambda path: (len(path.name), path.name)):
        try:
            node = query(path)
        except PermissionError:
            denied.append(str(path))
        except OSError as error:
            absent.append(f"{path}: cannot be opened: {error.strerror}.")
        else:
            if node is not None and node.needs_libcamera:
                raw.append(node)
            elif node is not None:
                yield CaptureDevice(node.name, _sizes(node), f"v4l2:{node.path}")
    if denied:
        absent.append(f"{', '.join(denied)}: this user may not open it: {_join('video')}.")
    if raw and not _has_picamera():
        names = ", ".join(f"{node.name} at {node.path}" for node in raw)
        absent.append(
            f"{names}: a bare sensor, which needs libcamera: sudo apt install python3-picamera2, and make the"
            " environment with --system-site-packages."
        )


def _sizes(node: Node) -> str:
    """List the largest sizes of each format."""
    parts = []
    for name, sizes in node.sizes.items():
        largest = sorted(sizes, key=lambda size: size[0] * size[1], reverse=True)
        shown = [f"{width}x{height}" for width, height in largest[:_SIZES_SHOWN]]
        more = [f"{len(sizes) - _SIZES_SHOWN} more"] if len(sizes) > _SIZES_SHOWN else []
        parts.append(" ".join([name, ", ".join([*shown, *more])]).strip())
    return "; ".join(parts)


def _has_picamera() -> bool:
    return importlib.util.find_spec("picamera2") is not None


def _libcamera(absent: list[str]) -> list[CaptureDevice]:
    if not _has_picamera():
        return []
    try:
        found: Sequence[dict[str, Any]] = importlib.import_module("picamera2").Picamera2.global_camera_info()
    except Exception as error:  # a broken installation may raise anything, and must not hide the rest
        absent.append(f"Picamera2 is installed and does not work: {type(error).__name__}: {error}.")
        return []
    return [
        CaptureDevice(str(camera.get("Model", "?")), str(camera.get("Location", "")), f"libcamera:{number}")
        for number, camera in enumerate(found)
        # libcamera lists USB cameras too; those are opened through V4L2.
        if "usb" not in str(camera.get("Id", "")).lower()
    ]


def _microphones(absent: list[str]) -> list[CaptureDevice]:
    try:
        found = _in_time(lambda: PORTAUDIO.query("microphones", _described))
    except SourceError as error:
        absent.append(f"{error}.")
        return []
    if not found:
        absent.append(f"microphones: {not_found()}")
    return found


def _in_time(query_devices: Callable[[], list[CaptureDevice]]) -> list[CaptureDevice]:
    """Call a function with a time limit: PortAudio waits for a sound server that hangs for ever.

    Raises:
        SourceError: the sound server hangs; or what the function raises.
    """
    outcome: list[list[CaptureDevice] | SourceError] = []

    def run() -> None:
        try:
            outcome.append(query_devices())
        except SourceError as error:
            outcome.append(error)

    thread = threading.Thread(target=run, name="microphones", daemon=True)
    thread.start()
    thread.join(_PATIENCE_S)
    if not outcome:
        raise SourceError(f"microphones: the sound server does not answer within {_PATIENCE_S:g} s: restart it")
    if isinstance(outcome[0], SourceError):
        raise outcome[0]
    return outcome[0]


def _described(library: Any, found: list[Input]) -> list[CaptureDevice]:
    names = [device.name for device in found]
    return [
        CaptureDevice(
            device.name,
            _offers(library, device),
            # A name stays valid when ports change; two devices of one name need their numbers.
            f"mic:{quote(device.name, safe=' :(),._+/')}"
            if names.count(device.name) == 1
            else f"mic:{device.number}",
        )
        for device in found
    ]


def _offers(library: Any, device: Input) -> str:
    rates = []
    for rate_hz in dict.fromkeys((*_RATES_HZ, device.rate_hz)):
        try:
            library.check_input_settings(device.number, min(device.channels, 2), "int16", samplerate=rate_hz)
        except library.PortAudioError:
            continue
        rates.append(f"{rate_hz} Hz")
    server = device.channels > CHANNELS_MAX
    channels = "through a sound server" if server else plural(device.channels, "channel")
    return f"{channels}; {', '.join(rates) or 'no rate now: does another program use it?'}"


def _join(group: str) -> str:
    user = getpass.getuser() if os.getuid() else "root"
    return f"sudo usermod -aG {group} {user}, and log in again"
