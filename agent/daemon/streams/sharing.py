"""Which streams share a camera or a microphone, and which of them cannot."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path

from agent.config import StreamConfig
from agent.config.source_uri import SourceUri, parse
from agent.errors import ConfigError, SourceError

_EXCLUSIVE = ("v4l2", "libcamera")


def check_not_shared(name: str, streams: Mapping[str, StreamConfig]) -> None:
    """Refuse a stream whose camera an earlier stream opens in another way: it is opened once, and shared.

    Args:
        name: of the stream.
        streams: all streams in order; disabled ones hold no camera.

    Raises:
        ConfigError: names the other stream, and what differs.
    """
    own, device = streams[name], _camera_of(streams[name])
    for other, stream in streams.items():
        if other == name or not device:
            return
        if _camera_of(stream) == device and (differs := _difference(own, stream)):
            raise ConfigError(
                f"{parse(own.source).masked} is the camera of stream {other}, too, with another {differs}: it is "
                "opened once, so streams that share it need the same source and [capture], except max_fps",
                keys=("streams", name, "source"),
            )


def _difference(one: StreamConfig, other: StreamConfig) -> str:
    """Return what keeps two streams from sharing a camera; empty: nothing does."""
    if one.source != other.source:
        return f"source, {parse(other.source).masked}"
    keys = [key for key in one.capture.__struct_fields__ if key != "max_fps"]
    return ", ".join(f"capture.{key}" for key in keys if getattr(one.capture, key) != getattr(other.capture, key))


def _camera_of(stream: StreamConfig) -> str:
    """Return what identifies a camera: device number, or else path without links; empty for other sources."""
    address = _address(stream)
    if address is None or address.scheme not in _EXCLUSIVE:
        return ""
    if address.scheme == "libcamera":
        return f"libcamera:{int(address.target)}"
    try:
        node = Path(address.target).stat()
    except (OSError, ValueError):  # not plugged in
        return os.path.realpath(address.target)
    return f"v4l2:{node.st_rdev}" if stat.S_ISCHR(node.st_mode) else os.path.realpath(address.target)


def _address(stream: StreamConfig) -> SourceUri | None:
    try:
        return parse(stream.source) if stream.enabled else None
    except SourceError:
        return None
