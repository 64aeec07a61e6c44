"""The cameras and microphones of this machine that would work now, and what is in the way of others."""

from __future__ import annotations

import getpass
import importlib.util
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from msgspec import Struct

from agent.capture.choice import CHANNELS_MAX, missing
from agent.capture.portaudio import PORTAUDIO, Input
from agent.capture.v4l2 import Node, query
from agent.errors import SourceError

_RATES_HZ = (16000, 44100, 48000)
_SIZES_SHOWN = 3
_PATIENCE_S = 5.0


class Device(Struct, frozen=True):
    """A camera or a microphone.

    Attributes:
        name: as it calls itself.
        offers: formats and sizes, or channels and rates, for people.
        uri: for `source` in a configuration.
    """

    name: str
    offers: str
    uri: str


class Devices(Struct, frozen=True):
    """What was found.

    Attributes:
        cameras: that would work.
        microphones: that would work.
        missing: what is in the way of others, and what to do; a sentence each.
    """

    cameras: list[Device]
    microphones: list[Device]
    missing: list[str]


def devices(root: Path = Path("/dev")) -> Devices:
    """Look for cameras and microphones; none is started.

    Args:
        root: where the devices are.
    """
    absent: list[str] = []
    cameras = [*_v4l2(root, absent), *_libcamera(absent)]
    microphones = _microphones(absent)
    return Devices(cameras, microphones, absent)


def _v4l2(root: Path, absent: list[str]) -> Iterator[Device]:
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
                yield Device(node.name, _sizes(node), f"v4l2:{node.path}")
    if denied:
        absent.append(f"{', '.join(denied)}: this user may not open it: {_join('video')}.")
    if raw and not _has_picamera():
        names = ", ".join(f"{node.name} at {node.path}" for node in raw)
        absent.append(
            f"{names}: a bare sensor, which needs libcamera: sudo apt install python3-picamera2, and make the"
            " environment with --system-site-packages."
        )


def _sizes(node: Node) -> str:
    """Each format with its largest sizes."""
    parts = []
    for name, sizes in node.sizes.items():
        largest = sorted(sizes, key=lambda size: size[0] * size[1], reverse=True)
        shown = [f"{width}x{height}" for width, height in largest[:_SIZES_SHOWN]]
        more = [f"{len(sizes) - _SIZES_SHOWN} more"] if len(sizes) > _SIZES_SHOWN else []
        parts.append(" ".join([name, ", ".join([*shown, *more])]).strip())
    return "; ".join(parts)


def _has_picamera() -> bool:
    return importlib.util.find_spec("picamera2") is not None


def _libcamera(absent: list[str]) -> list[Device]:
    if not _has_picamera():
        return []
    try:
        found: Sequence[dict[str, Any]] = importlib.import_module("picamera2").Picamera2.global_camera_info()
    except Exception as error:  # a broken installation may raise anything, and must not hide the rest
        absent.append(f"Picamera2 is installed and does not work: {type(error).__name__}: {error}.")
        return []
    return [
        Device(str(camera.get("Model", "?")), str(camera.get("Location", "")), f"libcamera:{number}")
        for number, camera in enumerate(found)
        # USB cameras are listed twice, and go through V4L2.
        if "usb" not in str(camera.get("Id", "")).lower()
    ]


def _microphones(absent: list[str]) -> list[Device]:
    try:
        found = _in_time(lambda: PORTAUDIO.look("microphones", _described))
    except SourceError as error:
        absent.append(f"{error}.")
        return []
    if not found:
        absent.append(f"microphones: {missing()}")
    return found


def _in_time(look: Callable[[], list[Device]]) -> list[Device]:
    """What is found, unless the sound server hangs: PortAudio would wait for it for ever.

    Raises:
        SourceError: it does; or what `look` raises.
    """
    found: list[list[Device]] = []
    failed: list[SourceError] = []

    def run() -> None:
        try:
            found.append(look())
        except SourceError as error:
            failed.append(error)

    thread = threading.Thread(target=run, name="microphones", daemon=True)
    thread.start()
    thread.join(_PATIENCE_S)
    if failed:
        raise failed[0]
    if not found:
        raise SourceError(f"microphones: the sound server does not answer within {_PATIENCE_S:g} s: restart it")
    return found[0]


def _described(library: Any, found: list[Input]) -> list[Device]:
    names = [device.name for device in found]
    return [
        Device(
            device.name,
            _offers(library, device),
            # A name outlives a change of ports; where two have the same, only the number tells them apart.
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
    channels = f"{device.channels} channel{'s' * (device.channels != 1)}"
    channels = "through a sound server" if device.channels > CHANNELS_MAX else channels
    return f"{channels}; {', '.join(rates) or 'no rate now: does another program use it?'}"


def _join(group: str) -> str:
    user = getpass.getuser() if os.getuid() else "root"
    return f"sudo usermod -aG {group} {user}, and log in again"
