"""A stream of the network that has sound and no pictures, for streams that only hear.

Only what opens an encoded source may import this module.
"""

from __future__ import annotations

import time

import av

from agent.capture.decode_policy import DecodeMode
from agent.capture.media import SoundMedia
from agent.capture.network.opening import describe_encryption, open_medium
from agent.capture.packet_clock import MediaClock
from agent.capture.source import Source, SourceListener, with_login
from agent.config import CaptureConfig
from agent.config.source_uri import SourceUri, parse
from agent.errors import SoundAloneError, SourceError
from agent.types import Image

_S = 1_000_000_000


class SoundAlone(Source):
    """Packets of sound, handed to a listener; no picture is ever held."""

    order = "bgr"
    holds, has_sound = False, True

    def __init__(self, media: SoundMedia, address: SourceUri, stall_s: float) -> None:
        """Take an open medium of the address, which gives a packet every `stall_s`."""
        self._media, self._shown, self._stall_s = media, address.masked, stall_s
        self.live, self.pace_s, self.period_s = True, 0.0, 0.0
        self.description = f"sound alone, {media.sound.codec_context.name}{describe_encryption(address)}"
        self._packets, self._clock = media.packets(), MediaClock()
        self._listener: SourceListener | None = None

    def follow(self, listener: SourceListener) -> None:
        self._listener = listener

    def grab(self) -> bool:
        """Hand a packet to the listener.

        Raises:
            SourceError: none came in time, or the server stopped sending; SoundAloneError: somebody wants
                pictures now.
        """
        listener = self._listener
        if listener is None or listener.demand.mode is not DecodeMode.NOTHING:
            raise SoundAloneError(f"{self._shown}: expected a video stream; it has sound alone")
        began_s = time.monotonic()
        try:
            packet = next(self._packets, None)
        except av.FFmpegError:
            packet = None
        if time.monotonic() - began_s >= self._stall_s:
            raise SourceError(f"{self._shown}: no sound for {self._stall_s:g} s")
        if packet is None or not packet.size:
            raise SourceError(f"{self._shown}: expected the next sound; the server stopped sending")
        tick_s, read_ns = float(packet.time_base), time.monotonic_ns()
        pts_ns = None if packet.pts is None else round(packet.pts * tick_s * _S)
        began_ns = self._clock.captured_ns(0, pts_ns, read_ns, round((packet.duration or 0) * tick_s * _S))
        listener.take_packet(self._media.media_packet(packet, read_ns, began_ns))
        return True

    def picture(self, into: Image | None) -> Image:
        raise SourceError(f"{self._shown}: it has sound alone")

    def close(self) -> None:
        self._media.close()


def open_sound_alone(uri: str, *, stall_s: float, login: CaptureConfig) -> SoundAlone:
    """Open a stream of the network that has sound alone.

    Raises:
        SourceError: it cannot be opened within `stall_s`, or has no sound.
    """
    address = with_login(parse(uri), login)
    return SoundAlone(open_medium(SoundMedia, address, stall_s, "a stream of sound"), address, stall_s)
