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
from typing import Any

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
        self._parameters: bytes | None = None
        """Newest parameter sets with start codes, empty: unknown; None: packets hold none."""
        self.changed_size: tuple[int, int] | None = None
        self.width = self.height = 0
        self.fps, self._described = 0.0, b""
        if self._video is not None:
            self._describe(self._video)

    def _describe(self, video: VideoStream) -> None:
        context = video.codec_context
        self.width, self.height, self.fps = context.width, context.height, _rate(video)
        codec, extradata = context.name, context.extradata or b""
        # Only packets with start codes hold parameters; extradata that begins with a 1 is that of the other form.
        if codec in _SLICES and extradata[:1] != b"\1":
            self._parameters = self._described = leading_parameters(codec, extradata)

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
        return packets if self._parameters is None else self._learning(packets)

    def _learning(self, packets: Iterator[Packet[Stream]]) -> Iterator[Packet[Stream]]:
        for packet in packets:
            if packet.stream_index == self.video.index:
                self._learn(packet)
            yield packet

    def media_packet(self, packet: Packet[Stream], captured_ns: int, began_ns: int = 0) -> MediaPacket:
        """Return a packet as plain data; the times are those of `MediaPacket`."""
        index = packet.stream_index
        if (track := self._tracks.get(index)) is None:
            track = self._tracks[index] = _track(packet.stream, packet.time_base)
        if self._parameters is not None and packet.is_keyframe and index == self.video.index:
            track = self._tracks[index] = self._with_parameters(track, bytes(packet), self._parameters)
        return _plain(packet, track, captured_ns, began_ns)

    def _learn(self, packet: Packet[Stream]) -> None:
        """Learn the parameters of a picture, and give the newest to decoders that are opened from now on.

        Cameras send parameters with each key frame, or once, when they change them; perhaps some pictures before
        the key frame.
        """
        context, known = self.video.codec_context, self._parameters or b""
        codec = context.name
        data = bytes(packet) if packet.is_keyframe else bytes(memoryview(packet)[:_HEAD])
        found = leading_parameters(codec, data)
        if not found or found in known:
            return
        self._parameters = context.extradata = replaced_parameters(codec, known, found)
        read = _read_key_frame(codec, with_parameters(codec, bytes(packet), self._parameters))
        self.changed_size = self.changed_size if read is None else read[1:]

    def _with_parameters(self, track: MediaTrack, key_frame: bytes, parameters: bytes) -> MediaTrack:
        """Return the track with the newest parameters, or without a header while none are known."""
        if not parameters:
            return msgspec.structs.replace(track, header=b"") if track.header else track
        if track.header and track.width and parameters == self._described:
            return track
        read = _read_parameters(track, with_parameters(track.codec, key_frame, parameters))
        self._described = parameters if read is not track else self._described
        return read

    def close(self) -> None:
        """Close it. May be called twice."""
        self._container.close()


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


_PARAMETERS = {"h264": (7, 8), "hevc": (32, 33, 34)}
"""Types of units with parameters: SPS and PPS of H.264, and VPS, SPS and PPS of H.265: table 7-1 of each."""
_SLICES = {"h264": (0, 0x1F, range(1, 6)), "hevc": (1, 0x3F, range(32))}
"""Where a unit of H.264 and H.265 has its type in its first byte: shift and mask; and the types of slices."""
_START_CODE = b"\0\0\1"
_LONGEST = 256
"""Bytes that a parameter set hardly exceeds: where the first datagram of a slice is lost, FFmpeg appends the rest
to the unit before, mostly a PPS."""
_HEAD = 1024
"""Bytes of a packet within which its first slice begins."""


def is_disposable(codec: str, packet: Packet[Stream]) -> bool:
    """Return True if no other picture is predicted from a packet of H.264 or H.265 with start codes.

    Sources: ITU-T H.264, 7.4.1 (nal_ref_idc); ITU-T H.265, table 7-1 (sub-layer non-reference pictures).
    """
    if codec not in _SLICES:
        return False
    head = bytes(memoryview(packet)[:_HEAD])
    if (at := _first_slice_at(codec, head)) is None:
        return False
    unit = head[at]
    if codec == "h264":
        return unit >> 5 & 3 == 0
    kind = unit >> 1 & 0x3F
    return kind < 16 and kind % 2 == 0


def _first_slice_at(codec: str, data: bytes) -> int | None:
    """Return where the first slice begins, after its start code; None: there is none."""
    shift, mask, kinds = _SLICES[codec]
    at = data.find(_START_CODE)
    while 0 <= at < len(data) - 3:
        if (data[at + 3] >> shift & mask) in kinds:
            return at + 3
        at = data.find(_START_CODE, at + 3)
    return None


def leading_parameters(codec: str, picture: bytes) -> bytes:
    """Return the parameter sets before the first slice, with start codes; empty: none, or damaged ones."""
    units = _parameter_units(codec, picture)
    return b"" if units and len(units[-1]) > _LONGEST else _joined(units)


def _joined(units: list[bytes]) -> bytes:
    return b"".join(b"\0\0\0\1" + unit for unit in units)


def replaced_parameters(codec: str, known: bytes, found: bytes) -> bytes:
    """Return parameter sets, of which a camera may send one kind alone, after those known of other kinds."""
    shift, mask, _ = _SLICES[codec]
    new = _parameter_units(codec, found)
    kinds = {unit[0] >> shift & mask for unit in new}
    return _joined(
        [unit for unit in _parameter_units(codec, known) if unit[0] >> shift & mask not in kinds] + new
    )


def _parameter_units(codec: str, picture: bytes) -> list[bytes]:
    shift, mask, slices = _SLICES[codec]
    units = []
    at = picture.find(_START_CODE)
    while 0 <= at < len(picture) - 3 and (kind := picture[at + 3] >> shift & mask) not in slices:
        end = picture.find(_START_CODE, at + 3)
        if kind in _PARAMETERS[codec]:
            units.append(picture[at + 3 : end if end >= 0 else None].rstrip(b"\0"))
        at = end
    return units


def with_parameters(codec: str, key_frame: bytes, parameters: bytes) -> bytes:
    """Return a key frame with these parameters instead of its own, both with start codes."""
    at = _first_slice_at(codec, key_frame)
    return parameters if at is None else parameters + b"\0" + _START_CODE + key_frame[at:]
