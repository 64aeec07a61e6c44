"""Hardware decoders that FFmpeg can use, as a table, and their opening.

V4L2's memory-to-memory devices are in /dev/video*: `bcm2835-codec` of a Raspberry Pi 4B, `venus` of Snapdragon.
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Protocol, cast

import av
import av.codec.hwaccel
from av.packet import Packet
from av.stream import Stream
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from agent.capture.hardware.table import DECODERS, DecoderKind
from agent.capture.source import LARGEST_PIXELS

TIME_BASE = Fraction(1, 1_000_000)
"""Unit of the time stamps of packets for hardware decoders, s."""


class DecoderError(Exception):
    """A hardware decoder cannot be used, or failed. The text says why, for people."""


class PictureDecoder(Protocol):
    """Decodes packets of one track of video: a context of FFmpeg. For one thread at a time."""

    def decode(self, packet: Packet[Stream] | None = None, /) -> list[VideoFrame]:
        """Decode a packet; None: the end. Return the pictures that are ready, in their order."""
        ...

    def flush_buffers(self) -> None:
        """Forget what came before; the next packet is a key frame."""
        ...


def open_decoder(name: str, track: VideoStream) -> PictureDecoder:
    """Open a hardware decoder for a track of video. It may hang, or end the process.

    Args:
        name: of `DECODERS`.
        track: its context is not changed.

    Raises:
        DecoderError: there is no such decoder here, or it is not for this codec.
    """
    kind = DECODERS[name]
    known = track.codec_context
    codec = known.name
    if codec not in kind.codecs:
        raise DecoderError(f"it is for {' and '.join(kind.codecs)}; the camera sends {codec}")
    if not list(Path("/dev").glob(kind.nodes)):
        raise DecoderError(f"there is no such device: no /dev/{kind.nodes}")
    context = _context(kind, codec)
    context.extradata, context.width, context.height = known.extradata, known.width, known.height
    # Without it, FFmpeg's V4L2 decoders lose the time stamps; what a stamp counts is all the same to them.
    time_base = f"{TIME_BASE.numerator}/{TIME_BASE.denominator}"
    context.options = {"pkt_timebase": time_base, "max_pixels": str(LARGEST_PIXELS)}
    try:
        context.open()
    except (av.FFmpegError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DecoderError(f"no device of this board decodes {codec}: {reason}") from None
    return context


def _context(kind: DecoderKind, codec: str) -> VideoCodecContext:
    try:
        if not kind.device:
            return cast(VideoCodecContext, av.CodecContext.create(kind.name, "r"))
        found = av.Codec(codec, "r").hardware_configs
        if not any(one.device_type.name == kind.device and one.is_supported for one in found):
            raise DecoderError(f"the FFmpeg in PyAV {av.__version__} has no decoder of {codec} for it")
        device = av.codec.hwaccel.HWAccel(kind.device, allow_software_fallback=False)
        return cast(VideoCodecContext, av.CodecContext.create(codec, "r", device))
    except (av.FFmpegError, ValueError, NotImplementedError, RuntimeError) as error:
        raise DecoderError(f"FFmpeg cannot open it: {error}") from None
