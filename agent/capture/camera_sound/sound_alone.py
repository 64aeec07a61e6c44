"""The sound of a source of the network without pictures: it has none, or nobody wants them.

An RTSP camera is asked for its track of sound alone, so that it does not even send the other.

Only what opens an encoded source may import this module.
"""

from __future__ import annotations

import time

import av

from agent.capture.decode_policy import DecodeMode
from agent.capture.media import NoSoundError, OpenError, SoundMedia
from agent.capture.packet_clock import MediaClock, ReadPauses
from agent.capture.server_probe import why_unreachable
from agent.capture.source import Source, SourceListener, with_login
from agent.capture.video import ASK_S, HEARD_NS, OPTIONS, tick_length_ns
from agent.config import CaptureConfig
from agent.config.source_uri import SourceUri, parse
from agent.errors import SoundAloneError, SourceError
from agent.types import Image

_SOUND_ONLY = {**OPTIONS, "allowed_media_types": "audio"}
_CHOSEN = ("rtsp", "rtsps")
"""Schemes of servers that are told which tracks to send (RFC 2326, 10.4)."""


class SoundAlone(Source):
    """Packets of sound, handed to a listener; no picture is ever held."""

    order = "bgr"
    holds, has_sound, decoding = False, True, "nothing"

    def __init__(self, media: SoundMedia, address: SourceUri, stall_s: float) -> None:
        """Take an open medium of the address, which gives a packet every `stall_s`."""
        self._media, self._shown, self._stall_s = media, address.masked, stall_s
        self.live, self.pace_s, self.period_s = True, 0.0, 0.0
        self.description = f"sound alone, {media.sound.codec_context.name}"
        self._packets, self._clock, self._pauses = media.packets(), MediaClock(), ReadPauses()
        self._tick_ns, self._divisor = tick_length_ns(media.sound)
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
        if pause_ns := self._pauses.next_ns(time.monotonic_ns(), HEARD_NS):
            time.sleep(pause_ns / 1e9)
        asked_ns = time.monotonic_ns()
        try:
            packet = next(self._packets, None)
        except av.FFmpegError:
            packet = None
        read_ns = time.monotonic_ns()
        if (read_ns - asked_ns) / 1e9 >= self._stall_s:
            raise SourceError(f"{self._shown}: no sound for {self._stall_s:g} s")
        if packet is None or not packet.size:
            raise SourceError(f"{self._shown}: expected the next sound; the server stopped sending")
        pts, length_ns = packet.pts, (packet.duration or 0) * self._tick_ns // self._divisor
        pts_ns = None if pts is None else pts * self._tick_ns // self._divisor
        captured_ns = self._clock.captured_ns(0, pts_ns, read_ns, length_ns)
        if pts is not None:
            self._pauses.add(captured_ns + length_ns, asked_ns, read_ns)
        listener.take_packet(self._media.media_packet(packet, read_ns, captured_ns))
        return True

    def picture(self, into: Image | None) -> Image:
        raise SourceError(f"{self._shown}: it has sound alone")

    def close(self) -> None:
        self._media.close()


def open_sound_alone(uri: str, *, stall_s: float, login: CaptureConfig) -> SoundAlone:
    """Open a stream of the network that has sound alone.

    Raises:
        SourceError: there is no answer within `stall_s`, or it has no sound.
    """
    address = with_login(parse(uri), login)
    try:
        return _open(address, OPTIONS, stall_s)
    except OpenError:
        raise _unreachable(address, stall_s) from None


def open_chosen_sound(uri: str, *, stall_s: float, login: CaptureConfig) -> SoundAlone | None:
    """Open the sound of a camera, which is told to send no pictures; None: it cannot be told, or has no sound.

    Raises:
        SourceError: there is no answer within `stall_s`, or it refuses.
    """
    address = with_login(parse(uri), login)
    if address.scheme not in _CHOSEN:
        return None
    try:
        return _open(address, _SOUND_ONLY, stall_s)
    except NoSoundError:
        return None
    except OpenError:
        raise _unreachable(address, stall_s) from None


def _open(address: SourceUri, options: dict[str, str], stall_s: float) -> SoundAlone:
    return SoundAlone(SoundMedia(address.target, dict(options), stall_s), address, stall_s)


def _unreachable(address: SourceUri, stall_s: float) -> SourceError:
    why = why_unreachable(address.target, min(stall_s, ASK_S))
    return SourceError(f"{address.masked}: expected a stream of sound; {why}")
