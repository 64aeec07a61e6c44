"""Hardware decoders that work, fail, hang or give wrong pictures, with FFmpeg's software inside."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import cast

import av
from av.packet import Packet
from av.stream import Stream
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

Tamper = Callable[[int, list[VideoFrame]], list[VideoFrame]]


class PretendDecoder:
    """Decodes in software; `tamper` is handed the number of the packet and its pictures."""

    def __init__(self, track: VideoStream, tamper: Tamper) -> None:
        known = track.codec_context
        self._context = cast(VideoCodecContext, av.CodecContext.create(known.name, "r"))
        self._context.extradata = known.extradata
        self._tamper, self._count = tamper, 0

    def decode(self, packet: Packet[Stream] | None = None, /) -> list[VideoFrame]:
        pictures = self._context.decode(packet)
        for picture in pictures:
            picture.opaque = None  # a driver keeps none
        self._count += 1
        return self._tamper(self._count, pictures)

    def flush_buffers(self) -> None:
        self._context.flush_buffers()


def right(number: int, pictures: list[VideoFrame]) -> list[VideoFrame]:
    """Give what was decoded."""
    return pictures


def failing(after: int) -> Tamper:
    """Report an error after so many packets."""

    def tamper(number: int, pictures: list[VideoFrame]) -> list[VideoFrame]:
        if number > after:
            raise OSError(5, "Input/output error")
        return pictures

    return tamper


def hanging(after: int, released: threading.Event) -> Tamper:
    """Do not answer after so many packets, until `released`."""

    def tamper(number: int, pictures: list[VideoFrame]) -> list[VideoFrame]:
        if number > after:
            released.wait(60)
        return pictures

    return tamper


def silent(after: int) -> Tamper:
    """Give no picture after so many packets."""
    return lambda number, pictures: [] if number > after else pictures


def green(number: int, pictures: list[VideoFrame]) -> list[VideoFrame]:
    """Give pictures of zeros, which are green."""
    found = []
    for picture in pictures:
        blank = VideoFrame(picture.width, picture.height, "yuv420p")
        for plane in blank.planes:
            plane.update(bytes(plane.buffer_size))
        blank.pts, blank.time_base = picture.pts, picture.time_base
        found.append(blank)
    return found


def opener(tamper: Tamper, opened: list[str] | None = None) -> Callable[[str, VideoStream], PretendDecoder]:
    """Return what opens such a decoder; it adds its name to `opened`."""

    def open_hardware(name: str, track: VideoStream) -> PretendDecoder:
        if opened is not None:
            opened.append(name)
        return PretendDecoder(track, tamper)

    return open_hardware
