"""The second source of a camera, which is recorded while its first one is looked at."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from agent.config import StreamConfig
from agent.config.source_uri import parse_picture
from agent.errors import CommandError, SourceError
from agent.types import MediaPacket

if TYPE_CHECKING:
    from agent.capture.packets import PacketStream
    from agent.daemon.clips.stream_clips import StreamClips

log = logging.getLogger("agent.daemon.streams.stream")
_SCHEMES = ("rtsp", "rtsps", "http", "https")


def check_record_source(name: str, config: StreamConfig) -> None:
    """Check what can be checked without opening the second source of a stream.

    Raises:
        SourceError: it cannot be used, by the name of its key.
    """
    if config.clips is None or not config.clips.record_source:
        return
    key = f"streams.{name}.clips.record_source"
    try:
        address = parse_picture(config.clips.record_source)
    except SourceError as error:
        raise SourceError(f"{key}: {error}") from None
    if address.scheme not in _SCHEMES:
        found = f"found {address.masked}, whose packets cannot be copied"
        raise SourceError(f"{key}: expected a camera on the network ({', '.join(_SCHEMES)}); {found}")
    if config.hides:
        raise SourceError(f"{key}: what `privacy` and `blur` hide would be seen in it: leave it out")


def clips_trouble(clips: StreamClips | None) -> str:
    """Return why nothing is recorded of the second source of a stream; empty: it is, or there is none."""
    return "" if clips is None else clips.trouble


def nothing_to_record(stream: str, state: str, detail: str = "") -> CommandError:
    """Return the refusal to record a stream in whose state there is nothing to record."""
    return CommandError(f"stream {stream} is {state}, so there is nothing to record{detail and f': {detail}'}")


def open_record_source(
    name: str, config: StreamConfig, on_packet: Callable[[MediaPacket], None]
) -> PacketStream | None:
    """Return the second source of a stream, which runs from now on; None: it has none."""
    if config.clips is None or not config.clips.record_source:
        return None
    from agent.capture.packets import PacketStream

    uri, on_change = config.clips.record_source, partial(_log_change, name)
    opened = PacketStream(name, uri, config.capture, on_packet=on_packet, on_change=on_change)
    opened.start()
    return opened


def _log_change(name: str, state: str, reason: str) -> None:
    """Log an outage."""
    (log.warning if state == "lost" else log.info)("stream %s: record_source: %s: %s", name, state, reason)
