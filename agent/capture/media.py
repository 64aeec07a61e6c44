"""Encoded video and sound, demultiplexed by PyAV: FFmpeg's libraries.

Only what opens an encoded source may import this module: PyAV takes 18 MB.
"""

from __future__ import annotations

import ctypes
import functools
import io
from collections.abc import Iterator
from contextlib import suppress
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import av
import av._core
import av.logging
import msgspec
from av.container import InputContainer
from av.packet import Packet
from av.stream import Stream
from av.video.stream import VideoStream

from agent.capture.source import LARGEST_PIXELS
from agent.types import MediaPacket, MediaTrack

if TYPE_CHECKING:
    from agent.capture.nal import TrackParameters

_FRAGMENTED = {"movflags": "frag_keyframe+empty_moov+default_base_moof"}
_FASTEST_FPS = 1000
"""Rates above this are a container's time base, not a rate."""


class OpenError(Exception):
    """A medium could not be opened. The text may be shown: it holds no address.

    Attributes:
        kinds: codecs of the sound that was found instead of video.
        cause: FFmpeg's error, whose text may hold credentials; None: the medium lacks what was expected.
    """

    def __init__(self, text: str, *, kinds: tuple[str, ...] = (), cause: Exception | None = None) -> None:
        super().__init__(text)
        self.kinds, self.cause = kinds, cause


_UNTIMED = ("mpjpeg", "mjpeg", "h264", "hevc")
"""FFmpeg's names of formats without times: the pictures of an IP camera by HTTP, and bare video."""


class Media:
    """An open file or stream with one track of video and at most one of sound. For one thread.

    Attributes:
        sound: the first track of sound; None: there is none.
        width, height: of the pictures as announced, pixels; 0: unknown.
        changed_size: width and height by parameters that came later, pixels; None: none came, or it is unknown.
        fps: pictures per second as announced; 0: unknown.
        is_timed: False for a format without times, whose rate and time stamps are FFmpeg's default of 25 fps.
        frames: number of pictures as announced, perhaps estimated; 0: unknown.
    """

    def __init__(
        self,
        target: str,
        options: dict[str, str],
        timeout_s: float | None = None,
        *,
        sound_alone: bool = False,
    ) -> None:
        """Open a file or an address.

        Args:
            target: path or address; may hold credentials.
            options: of FFmpeg's demultiplexer.
            timeout_s: limit for each step of the opening, and for each packet, s; None: wait.
            sound_alone: only its sound is of use.

        Raises:
            OpenError: it cannot be opened, or has no video, or no sound if that is wanted alone.
        """
        self._container = _opened(target, options, timeout_s)
        videos = [one for one in self._container.streams.video if not one.disposition & _COVER]
        self._video = videos[0] if videos and not sound_alone else None
        self.sound = next(iter(self._container.streams.audio), None)
        if sound_alone and self.sound is None:
            self.close()
            raise OpenError("it has no sound")
        if not videos and not sound_alone:
            kinds = tuple(one.codec_context.name for one in self._container.streams.audio)
            self.close()
            only = f", only {', '.join(kinds)}" if kinds else ""
            raise OpenError(f"it has no video{only}", kinds=kinds)
        self.is_timed = self._container.format.name not in _UNTIMED
        self._tracks: dict[int, MediaTrack] = {}
        self._parameters: TrackParameters | None = None
        self.changed_size: tuple[int, int] | None = None
        self.width = self.height = self.frames = 0
        self.fps, self._described = 0.0, b""
        if self._video is not None:
            self._describe(self._video)

    def _describe(self, video: VideoStream) -> None:
        context = video.codec_context
        self.width, self.height, self.fps = context.width, context.height, _rate(video)
        self.frames = video.frames or self._estimated_frames()
        codec, extradata = context.name, context.extradata or b""
        # Only packets with start codes hold parameters; extradata that begins with a 1 is that of the other form.
        if codec in ("h264", "hevc") and extradata[:1] != b"\1":
            from agent.capture.nal import TrackParameters

            self._parameters = TrackParameters(codec, extradata)
            self._described = self._parameters.newest  # what the header of the track was made of

    @property
    def video(self) -> VideoStream:
        """The first track of video."""
        assert self._video is not None, "only its sound is of use"
        return self._video

    def packets(self) -> Iterator[Packet[Stream]]:
        """Read packet by packet; at the end an empty packet of each track.

        Raises:
            av.FFmpegError: the connection broke, or no packet came in time. Its text may hold credentials.
        """
        packets = self._container.demux(*(one for one in (self._video, self.sound) if one is not None))
        return packets if self._parameters is None else self._learning(packets, self._parameters)

    def _learning(
        self, packets: Iterator[Packet[Stream]], parameters: TrackParameters
    ) -> Iterator[Packet[Stream]]:
        from agent.capture.nal import may_hold_parameters

        index = self.video.index
        for packet in packets:
            if packet.stream_index == index and may_hold_parameters(parameters.codec, packet):
                self._learn(packet, parameters)
            yield packet

    def media_packet(self, packet: Packet[Stream], captured_ns: int, began_ns: int = 0) -> MediaPacket:
        """Return a packet as plain data; the times are those of `MediaPacket`."""
        index = packet.stream_index
        if (track := self._tracks.get(index)) is None:
            track = self._tracks[index] = _track(packet.stream, packet.time_base)
        if self._parameters is not None and packet.is_keyframe and index == self.video.index:
            track = self._tracks[index] = self._with_parameters(track, bytes(packet), self._parameters)
        return _plain(packet, track, captured_ns, began_ns)

    def _learn(self, packet: Packet[Stream], parameters: TrackParameters) -> None:
        """Learn the parameters of a picture, and give the newest to decoders that are opened from now on."""
        from agent.capture.nal import with_parameters

        known, learn = parameters.newest, parameters.add if packet.is_keyframe else parameters.add_other
        learn(bytes(packet))
        if parameters.newest != known:
            self.video.codec_context.extradata = parameters.newest
            data = with_parameters(parameters.codec, bytes(packet), parameters.newest)
            if (found := _read_key_frame(parameters.codec, data)) is not None:
                self.changed_size = found[1:]

    def _with_parameters(self, track: MediaTrack, key_frame: bytes, parameters: TrackParameters) -> MediaTrack:
        """Return the track with the newest parameters, or without a header while they may be damaged."""
        if not parameters.are_sure:
            return msgspec.structs.replace(track, header=b"") if track.header else track
        is_known = track.header and track.width and parameters.newest == self._described
        if is_known or not parameters.newest:
            return track
        from agent.capture.nal import with_parameters

        key_frame = with_parameters(track.codec, key_frame, parameters.newest)
        if (read := _read_parameters(track, key_frame)) is not track:
            self._described = parameters.newest
        return read

    def close(self) -> None:
        """Close it. May be called twice."""
        self._container.close()

    def _estimated_frames(self) -> int:
        duration_us = self._container.duration
        return int(duration_us / 1e6 * self.fps) if duration_us and duration_us > 0 else 0


_LARGEST_BYTES = 192 * 1024 * 1024
"""Most that FFmpeg may ask for at once, bytes: a picture of 50 megapixels has up to four bytes a pixel. What a
server announces, or what has no end, is read into one piece of memory, of up to 2 GB if nothing limits it."""


@functools.cache
def _limit_memory() -> None:
    """Limit each piece of FFmpeg's memory in this process: av_max_alloc of libavutil, which PyAV lacks."""
    with suppress(OSError, AttributeError):  # another build of PyAV
        ctypes.CDLL(av._core.__file__).av_max_alloc(ctypes.c_size_t(_LARGEST_BYTES))


def _opened(target: str, options: dict[str, str], timeout_s: float | None) -> InputContainer:
    _limit_memory()
    av.logging.set_level(None)  # FFmpeg's messages repeat, name no stream, and could show credentials
    try:
        return av.open(target, "r", options=options, timeout=timeout_s)
    except (av.FFmpegError, OSError, ValueError, RuntimeError) as error:
        raise OpenError("it cannot be read", cause=error) from None


def _plain(packet: Packet[Any], track: MediaTrack, captured_ns: int, began_ns: int) -> MediaPacket:
    stamps = packet.pts, packet.dts, packet.duration or 0
    return MediaPacket(track, bytes(packet), *stamps, packet.is_keyframe, captured_ns, began_ns)


_COVER = av.stream.Disposition.attached_pic


def _rate(video: VideoStream) -> float:
    """Return the announced pictures per second; 0: unknown."""
    for rate in (video.average_rate, video.guessed_rate, video.base_rate):
        if rate and 0 < rate <= _FASTEST_FPS:
            return float(rate)
    return 0.0


def _track(stream: Stream, base: Fraction | None) -> MediaTrack:
    context = stream.codec_context
    time_base = (base.numerator, base.denominator) if base else (1, 1_000_000_000)
    header = mp4_header(stream)
    if isinstance(stream, VideoStream):
        return MediaTrack("video", context.name, time_base, header, stream.width, stream.height)
    rate_hz, channels = int(getattr(context, "sample_rate", 0)), int(getattr(context, "channels", 0))
    setup = bytes(context.extradata or b"")
    return MediaTrack("sound", context.name, time_base, header, rate_hz=rate_hz, channels=channels, setup=setup)


def _read_parameters(track: MediaTrack, key_frame: bytes) -> MediaTrack:
    """Return a track with the header and size that a key frame with start codes holds, or as it is."""
    if (found := _read_key_frame(track.codec, key_frame)) is None:
        return track
    header, width, height = found
    return msgspec.structs.replace(track, header=header, width=width, height=height)


def _read_key_frame(codec: str, key_frame: bytes) -> tuple[bytes, int, int] | None:
    """Return the header, width and height that a key frame with start codes holds; None: it cannot be read."""
    options = {"max_pixels": str(LARGEST_PIXELS)}
    try:
        with av.open(io.BytesIO(key_frame), "r", format=codec, options=options) as medium:
            stream = medium.streams.video[0]
            header, width, height = mp4_header(stream), stream.width, stream.height
    except (av.FFmpegError, ValueError, IndexError):
        return None
    return (header, width, height) if header else None


def mp4_header(stream: Stream) -> bytes:
    """Return the initialisation segment of a fragmented MP4 with this stream alone; empty: MP4 cannot hold it."""
    memory = io.BytesIO()
    try:
        writer = av.open(memory, "w", format="mp4", options=dict(_FRAGMENTED))
        writer.add_stream_from_template(stream)
        writer.start_encoding()
    except (av.FFmpegError, ValueError):  # no such codec in MP4, or its parameters are missing
        return b""
    # The container is never closed: that would add an index of fragments.
    return memory.getvalue()
