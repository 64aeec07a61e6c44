"""Devices that two streams cannot share: a camera gives its pictures to one reader at a time."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path

from agent.capture.uri import Address, parse
from agent.config import StreamConfig
from agent.errors import ConfigError, SourceError

_EXCLUSIVE = ("v4l2", "libcamera")


def check_not_shared(name: str, streams: Mapping[str, StreamConfig]) -> None:
    """Refuse a stream whose camera a stream before it has, by whatever path.

    Args:
        name: of the stream.
        streams: all of the configuration, in their order; those that are disabled have no camera.

    Raises:
        ConfigError: names the other stream.
    """
    device = _camera_of(streams[name])
    for other, stream in streams.items():
        if other == name or not device:
            return
        if _camera_of(stream) == device:
            shown = parse(streams[name].source).shown
            raise ConfigError(
                f"{shown} is the camera of stream {other}, too, and gives its pictures to one of them only; set "
                "enabled = false in the other, or use another camera",
                keys=("streams", name, "source"),
            )


def shared_microphones(streams: Mapping[str, StreamConfig]) -> dict[str, str]:
    """Return streams whose microphone a stream before them has, with that one's name.

    That works where a sound server or ALSA's dsnoop hands its sound to several.
    """
    first, found = dict[str, str](), dict[str, str]()
    for name, stream in streams.items():
        address = _address(stream)
        if address is not None and address.scheme == "mic":
            other = first.setdefault(address.target.casefold(), name)
            if other != name:
                found[name] = other
    return found


def _camera_of(stream: StreamConfig) -> str:
    """Return what identifies a camera: its device number, or else its path without links; empty: it is none."""
    address = _address(stream)
    if address is None or address.scheme not in _EXCLUSIVE:
        return ""
    if address.scheme == "libcamera":
        return f"libcamera:{int(address.target)}"
    try:
        node = Path(address.target).stat()
    except (OSError, ValueError):  # it is not plugged in
        return os.path.realpath(address.target)
    return f"v4l2:{node.st_rdev}" if stat.S_ISCHR(node.st_mode) else os.path.realpath(address.target)


def _address(stream: StreamConfig) -> Address | None:
    try:
        return parse(stream.source) if stream.enabled else None
    except SourceError:
        return None
