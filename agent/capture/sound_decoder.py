"""Decodes encoded sound, by PyAV: of packets, of files that hold video, and of streams without pictures."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import av
import av.logging
import numpy as np
from av.audio.frame import AudioFrame
from av.container import InputContainer

from agent.capture.arrivals import MediaClock
from agent.capture.audio_file import Block, mono, to_int16
from agent.capture.media import Media
from agent.capture.network import describe_encryption, open_medium
from agent.capture.source import DecodeMode, Source, SourceListener, status, with_login
from agent.config import CaptureConfig
from agent.config.source_uri import SourceUri, parse
from agent.errors import SoundAloneError, SourceError
from agent.text import plural
from agent.types import Image, MediaPacket, MediaTrack, Samples

_ERRORS = (av.FFmpegError, OSError, ValueError, TypeError, MemoryError)


class SoundDecoder:
    """Decodes the packets of one track. For one thread.

    Attributes:
        rate_hz: samples per second, of the newest packet.
        description: rate, channels and codec, for people.
    """

    def __init__(self, track: MediaTrack) -> None:
        """Open the decoder.

        Raises:
            SourceError: there is no decoder for it.
        """
        av.logging.set_level(None)  # FFmpeg's messages repeat, and name no stream
        self.rate_hz, self._codec = track.rate_hz, track.codec
        self.description = self._describe(track.rate_hz, track.channels)
        self._base = Fraction(*track.time_base)
        try:
            context: Any = av.CodecContext.create(track.codec, "r")
            if track.rate_hz:
                context.sample_rate = track.rate_hz
            if track.channels in (1, 2):
                context.layout = "stereo" if track.channels == 2 else "mono"
            if track.setup:
                context.extradata = track.setup
            context.open()
        except _ERRORS as error:
            raise SourceError(f"its sound ({track.codec}) cannot be decoded: {type(error).__name__}") from None
        self._context = context

    def decode(self, packet: MediaPacket) -> Samples:
        """Return the samples of a packet, N int16, the mean of all channels; empty if it is damaged."""
        made = av.Packet(packet.data)
        made.pts, made.dts, made.time_base = packet.pts, packet.dts, self._base
        try:
            parts = [self._samples(frame) for frame in self._context.decode(made)]
        except _ERRORS:  # whole packets may follow
            parts = []
        if len(parts) == 1:
            return parts[0]
        return np.concatenate(parts) if parts else np.empty(0, np.int16)

    def _samples(self, frame: AudioFrame) -> Samples:
        if frame.sample_rate != self.rate_hz:  # a decoder may know better than the announcement
            self.rate_hz = frame.sample_rate
            self.description = self._describe(frame.sample_rate, frame.layout.nb_channels)
        return samples_of(frame)

    def _describe(self, rate_hz: int, channels: int) -> str:
        return f"{rate_hz} Hz, {plural(channels, 'channel')}, {self._codec}"


def samples_of(frame: AudioFrame) -> Samples:
    """Return a decoded frame as N int16, the mean of all channels."""
    if frame.format.name in ("s16", "s16p") and frame.layout.nb_channels == 1:  # as of G.711: nothing to convert
        return np.frombuffer(memoryview(frame.planes[0]), np.int16)[: frame.samples]
    values: Any = frame.to_ndarray()
    if not frame.format.is_planar:
        values = values.reshape(-1, frame.layout.nb_channels).T
    if values.dtype == np.uint8:
        values = (values.astype(np.int16) - 128) << 8
    elif values.dtype == np.int32:
        values = (values >> 16).astype(np.int16)
    elif values.dtype != np.int16:
        return to_int16(mono(values.T.astype(np.float32), None))
    return cast(Samples, mono(values.T, None))


class FileSound:
    """Sound of a file that holds video, once or in a loop."""

    live = False

    def __init__(self, address: SourceUri) -> None:
        """Open the file.

        Raises:
            SourceError: it is missing, cannot be read, or has no sound.
        """
        self._address, self._shown = address, address.masked
        self._loop, self.paced = address.options.loop, address.options.pace == "realtime"
        self._container = _open(address)
        self._frames, self._heard = self._decoded(), False
        context = self._container.streams.audio[0].codec_context
        self.rate_hz = context.sample_rate
        self.description = f"{self.rate_hz} Hz, {plural(context.channels, 'channel')}, {context.name}"

    def read(self) -> Block | None:
        frame = next(self._frames, None)
        if frame is None:
            if not self._heard:
                raise SourceError(f"{self._shown}: expected sound; found none that can be decoded: cut off?")
            if not self._loop:
                return None
            self._container.close()
            self._container, self._heard = _open(self._address), False
            self._frames = self._decoded()
            return Block(np.empty(0, np.int16))
        self._heard, self.rate_hz = True, frame.sample_rate
        return Block(samples_of(frame))

    def close(self) -> None:
        self._container.close()

    def _decoded(self) -> Iterator[AudioFrame]:
        """Decode packet by packet; what is damaged is left out."""
        track = self._container.streams.audio[0]
        packets = self._container.demux(track)
        with suppress(av.FFmpegError):  # a damaged container
            for packet in packets:
                with suppress(av.error.InvalidDataError):
                    yield from packet.decode()


def _open(address: SourceUri) -> InputContainer:
    path, expected = Path(address.target), f"{address.masked}: expected a file with sound"
    if status(address) is None:
        raise SourceError(f"{expected}; there is no {path.absolute()}")
    av.logging.set_level(None)
    try:
        container = av.open(f"file:{path}", "r")
    except _ERRORS as error:
        raise SourceError(f"{expected}; FFmpeg cannot read it ({type(error).__name__})") from None
    if not container.streams.audio:
        container.close()
        raise SourceError(f"{expected}; it has none")
    return container


def open_file_sound(address: SourceUri, stall_s: float, rate_hz: int) -> FileSound:
    """Open the sound of a file that holds video.

    Raises:
        SourceError: it is missing, cannot be read, or has no sound.
    """
    return FileSound(address)


_S = 1_000_000_000


class SoundAlone(Source):
    """Packets of sound, handed to a listener; no picture is ever held."""

    order = "bgr"
    holds, has_sound = False, True

    def __init__(self, media: Media, address: SourceUri, stall_s: float) -> None:
        """Take an open medium of the address, which gives a packet every `stall_s`."""
        self._media, self._shown, self._stall_s = media, address.masked, stall_s
        self.live, self.pace_s, self.period_s = True, 0.0, 0.0
        codec = media.sound.codec_context.name if media.sound is not None else ""
        self.description = f"sound alone, {codec}{describe_encryption(address)}"
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
    return SoundAlone(open_medium(address, stall_s, sound_alone=True), address, stall_s)
