"""Records some seconds of a source's packets into memory, for trials of decoders."""

from __future__ import annotations

import io
import time
from typing import NamedTuple

import av

from agent.capture.media import Media
from agent.capture.network.opening import open_medium
from agent.capture.source import with_login
from agent.capture.video import open_file
from agent.config import CaptureConfig
from agent.config.source_uri import parse_picture
from agent.errors import SourceError

_STALL_S = 10.0
_LARGEST = 256 * 1024 * 1024


class RecordedVideo(NamedTuple):
    """A clip in memory.

    Attributes:
        codec: FFmpeg's name.
        width, height: of its pictures, px.
        content: Matroska; begins with a key frame.
        pictures: encoded in it.
    """

    codec: str
    width: int
    height: int
    content: bytes
    pictures: int


def record_video(uri: str, seconds: float, login: CaptureConfig | None = None) -> RecordedVideo:
    """Record a camera on the network, or the beginning of a file.

    Args:
        uri: `file:`, `rtsp:` or `http:`.
        seconds: length, s.
        login: user name and password file; None: those of the URI.

    Raises:
        SourceError: it cannot be opened, has no key frame, or is no encoded video.
    """
    address = parse_picture(uri)
    if not (address.on_network or address.scheme == "file"):
        raise SourceError(f"{address.masked}: expected a camera on the network or a video file")
    if login is not None:
        address = with_login(address, login)
    on_network = address.on_network
    media = open_medium(Media, address, _STALL_S, "encoded video") if on_network else open_file(address)
    try:
        return _recorded(media, seconds, address.masked)
    except (av.FFmpegError, ValueError):  # without its text, which may hold the address
        raise SourceError(f"{address.masked}: its packets cannot be read or recorded") from None
    finally:
        media.close()


def _recorded(media: Media, seconds: float, shown: str) -> RecordedVideo:
    memory, count, size, began_s = io.BytesIO(), 0, 0, time.monotonic()
    base = media.video.time_base
    first: int | None = None
    with av.open(memory, "w", format="matroska") as container:
        track = container.add_stream_from_template(media.video)
        for packet in media.packets():
            if packet.stream_index != media.video.index or not packet.size or packet.dts is None:
                continue
            if count == 0 and not packet.is_keyframe:
                if time.monotonic() - began_s > seconds + _STALL_S:
                    break
                continue
            first = packet.dts if first is None else first
            if (base is not None and (packet.dts - first) * base > seconds) or size > _LARGEST:
                break
            packet.stream = track
            size, count = size + packet.size, count + 1
            container.mux(packet)
    if not count:
        raise SourceError(f"{shown}: it sent no key frame")
    codec = media.video.codec_context.name
    return RecordedVideo(codec, media.width, media.height, memory.getvalue(), count)
