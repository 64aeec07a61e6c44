"""Cameras by RTSP or HTTP, of which only those pictures are decoded that are of use."""

from __future__ import annotations

import errno
import os
import socket
import time
from collections import deque
from collections.abc import Callable
from fractions import Fraction
from typing import TYPE_CHECKING, cast

import av
from av.packet import Packet
from av.stream import Stream
from msgspec import Struct

from agent.capture.arrivals import Liveness, MediaClock
from agent.capture.decode_policy import BurstThinner, DecodePolicy, DecodeStep, PacketFacts
from agent.capture.media import Media, OpenError, is_disposable
from agent.capture.source import (
    LARGEST_PIXELS,
    WAITS,
    DecodeMode,
    Demand,
    FilteredPictures,
    SourceListener,
    check_size,
    jpeg_size,
)
from agent.capture.video import DecodedPicture, Video, describe
from agent.config.source_uri import SourceUri
from agent.errors import SoundAloneError, SourceError
from agent.types import DeferredImage

if TYPE_CHECKING:
    from agent.capture.hardware_decoder import HardwareDecoder

_LOGIN = "; set capture.username and capture.password_file"
_UNKNOWN_NAME = "no address is known for its host; check the name and the network"
_UNESCAPED = "; write / ? # and @ in a password as %2F %3F %23 and %40, or use capture.password_file"
_SILENT = "no stream comes in time; is the camera on, and on this network?"
_NO_STREAM = (
    "what it sends is not a stream that can be read; check scheme, port and path, and use the camera's MJPEG or "
    "RTSP address, not that of a page or a snapshot"
)
_PROBING = {"analyzeduration": "300000", "probesize": "100000", "max_pixels": str(LARGEST_PIXELS)}
"""Looking at 0.3 s (µs here) instead of 5 s of the stream opens a camera in 0.5 s instead of 2. Larger pictures
are not decoded for it."""
NO_DATAGRAM = "no datagram arrives over UDP: check the firewall (ports 5000 to 65000)"
_UDP_BYTES = 1024 * 1024
"""Buffer to ask the kernel for: a key frame comes at once."""
_RTSP = {"format_whitelist": "rtsp", "protocol_whitelist": "tcp,tls,udp,rtp,srtp"}
_HTTP_FORMATS = (
    *("mpjpeg", "mpegts", "mpeg", "flv", "live_flv", "hls", "h264", "hevc", "matroska", "mov", "asf", "avi"),
    *("ogg", "mp3", "aac", "flac", "wav"),
)
_HTTP = {
    "format_whitelist": ",".join(_HTTP_FORMATS),
    "protocol_whitelist": "http,https,httpproxy,tcp,tls,crypto",
}
"""A server may answer with any format. Lists of other addresses, such as SDP, would have this machine open ports
or files of the server's choice. HLS is the only one that cameras use, and its parts come by HTTP. Single pictures
are no stream."""


def demuxer_options(address: SourceUri) -> dict[str, str]:
    """Return the options with which a source on the network is opened."""
    if not address.scheme.startswith("rtsp"):
        return {**_PROBING, **_HTTP}
    options = {**_PROBING, **_RTSP, "rtsp_transport": address.rtsp_transport}
    return options | {"buffer_size": str(_UDP_BYTES)} if address.rtsp_transport == "udp" else options


def describe_encryption(address: SourceUri) -> str:
    """Return what to add to the description of a source with TLS: FFmpeg does not verify certificates unasked."""
    return ", certificate not verified" if address.scheme in ("rtsps", "https") else ""


def open_medium(address: SourceUri, stall_s: float, *, sound_alone: bool = False) -> Media:
    """Open a source on the network.

    Args:
        address: of the source.
        stall_s: limit for each step of the opening, and for each packet, s; resolving the name may take longer.
        sound_alone: its sound is expected, else its pictures.

    Raises:
        SoundAloneError: it has sound, and no video.
        SourceError: it cannot be opened; says why.
    """
    began_s = time.monotonic()
    try:
        return Media(address.target, demuxer_options(address), stall_s, sound_alone=sound_alone)
    except OpenError as error:
        is_late = time.monotonic() - began_s >= stall_s
        why = str(error) if error.cause is None else _describe(error.cause, address, is_late=is_late)
        raised = SoundAloneError if error.kinds else SourceError
        expected = "a stream of sound" if sound_alone else "a video stream"
        raise raised(f"{address.masked}: expected {expected}; {why}") from None


def _describe(error: Exception, address: SourceUri, *, is_late: bool) -> str:
    """Return why a source was not opened, without FFmpeg's text, which may hold credentials."""
    if isinstance(error, (av.error.HTTPClientError, av.error.HTTPServerError)):
        return f"{error.strerror}{_LOGIN if isinstance(error, av.error.HTTPUnauthorizedError) else ''}"
    if getattr(error, "errno", None) == errno.EPROTONOSUPPORT:
        other = "udp" if address.rtsp_transport == "tcp" else "tcp"
        over = f"the server answers 461: it does not send over {address.rtsp_transport.upper()}"
        return f'{over}; set capture.rtsp_transport = "{other}"'
    try:
        socket.getaddrinfo(address.host, None)
    except OSError:
        return _UNKNOWN_NAME + (_UNESCAPED if address.masked.endswith("***") else "")
    if isinstance(error, OSError) and error.errno not in (None, errno.EIO):
        return f"it cannot be reached: {os.strerror(error.errno)}"
    return _SILENT if is_late else _NO_STREAM


class _Arrival(Struct, frozen=True, gc=False):
    """When a packet was captured and read, ns of CLOCK_MONOTONIC."""

    captured_ns: int
    read_ns: int


class _Arrived(Struct, frozen=True, gc=False):
    """A packet and its times, which its picture is given when it is decoded."""

    packet: Packet[Stream]
    times: _Arrival


_HEARD_S, _UNHEARD_S = 0.14, 0.2
"""Time for which packets wait to be read, s: while their sound is heard, about as long as
`agent.capture.camera_sound` gathers it; and else. A camera sends a picture in pieces, each of which may wake a
reader that waits for it; that costs more than reading them."""
_WAITED_NS = 2_000_000
"""Time that a read takes from which on its packet was not there yet when it was asked for, ns."""
_TALL, _SHORT = 720, 60
"""Least height of pictures, px, and most of them from one key frame to the next, where all but key frames are
decoded without the loop filter. Smaller ones are hardly scaled down for a model; the sixtieth has lost 1.9 dB at
1.4 Mbit/s."""
_PARSED = ("h264", "hevc")
"""Codecs of RTSP and bare video whose packets FFmpeg returns when the next picture begins."""
_MICROSECOND = Fraction(1, 1_000_000)
_MODES = tuple(mode.name.lower() for mode in DecodeMode)
_UNHURRIED = (DecodeMode.PACKETS, DecodeMode.KEYFRAMES)
"""Modes in which a packet may wait."""


def _tick_length_ns(track: Stream) -> tuple[int, int]:
    """Return the length of a tick of a track, ns, as numerator and denominator.

    PyAV makes a fraction of a packet's time base at each use, which takes longer than all else there.
    """
    base = track.time_base or Fraction(1, 1_000_000_000)
    return base.numerator * 1_000_000_000, base.denominator


class NetworkStream(Video):
    """Pictures of a stream from another machine, of which only those are decoded that are of use."""

    def __init__(
        self,
        media: Media,
        address: SourceUri,
        stall_s: float,
        now_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        """Take an open medium.

        Args:
            media: of the address.
            address: of the camera.
            stall_s: longest time without a packet, s.
            now_ns: clock of the packets' arrival, ns.

        Raises:
            SourceError: its pictures are too large; the medium is closed.
        """
        super().__init__(media, address.masked)
        self._encryption = describe_encryption(address)
        self.description += self._encryption
        self._hardware: HardwareDecoder | None = None
        self._tried = False
        self._address, self._stall_s, self._now_ns = address, stall_s, now_ns
        self._size, self._codec = (media.width, media.height), media.video.codec_context.name
        self._clock, self._burst = MediaClock(), BurstThinner()
        self._is_parsed = self._codec in _PARSED and (address.scheme.startswith("rtsp") or not media.is_timed)
        self._demand, self._hears_only = Demand(), False
        self._asked_ns = self._read_ns = self._picture_ns = 0
        self._ticks = {one.index: _tick_length_ns(one) for one in (media.video, media.sound) if one is not None}
        self.has_sound = media.sound is not None
        self._policy: DecodePolicy[_Arrived] = DecodePolicy("full")
        self._may_save, self._keeps, self._has_read = False, True, False
        self._steps: deque[DecodeStep[_Arrived]] = deque()
        self._life, self._arrived, self._newest_ns = Liveness(stall_s, time.monotonic()), _Arrival(0, 0), 0
        self.undecoded = self.inter_coded = 0

    def follow(self, listener: SourceListener) -> None:
        super().follow(listener)
        self._policy = DecodePolicy(listener.decode)
        is_recorded = listener.wants_packets and listener.demand.mode is DecodeMode.NOTHING
        self._life.needs_keys = listener.decode == "keyframes" or is_recorded
        self._obey(listener.demand)
        self._may_save = listener.decode in ("auto", "saving")

    def grab(self) -> bool:
        self._held = None
        self._advance()
        while self._held is None and (self._steps or self._decoded or self._listener is None):
            self._advance()
        self.holds = self._held is not None
        return True

    def _advance(self) -> None:
        """Hold the next picture; before it, decode the next step; before that, read the next packet."""
        if not self._decoded:
            if not self._steps:
                self._receive()
            if self._steps:
                self._run(step := self._steps.popleft())
                self._judge(step)
        if self._decoded:
            self._hold(self._decoded.popleft())
        if self._held is not None or not self._steps:
            self._check_alive(self._held is not None)

    def _check_alive(self, has_picture: bool) -> None:
        """Raise SourceError if there was no picture for too long, or no sound where that alone is of use."""
        now_s = time.monotonic()
        if has_picture:
            self._life.add_picture(now_s)
        elif why := self._life.trouble(now_s):
            raise self._silence() if self._hears_only else SourceError(f"{self._shown}: {why}")
        self.waits_for = WAITS if self._life.awaits_key_frame(now_s) else ""

    def _read_in_time(self) -> Packet[Stream]:
        """Return the next packet; an empty one at the end. FFmpeg may end a silence with one from before it."""
        began_s = time.monotonic()
        if self._hears_only and not self.has_sound:
            raise SourceError(f"{self._shown}: expected sound; it has none, only pictures: turn its sound on")
        self._asked_ns = self._now_ns()
        try:
            packet = self._next_packet()
        except av.FFmpegError:
            packet = None
        if time.monotonic() - began_s >= self._stall_s:
            raise self._silence()
        self._has_read = True
        if packet is None:
            raise SourceError(f"{self._shown}: expected the next picture; the server stopped sending")
        if self._listener is not None:
            self._obey(self._listener.demand)
        return packet

    def _receive(self) -> None:
        """Read a packet, and plan what is to be decoded."""
        if self._hears_only or self._policy.mode in _UNHURRIED:
            self._pause()
        packet = self._read_in_time()
        if packet.stream_index != self._track:
            if self._hears_only:
                self._life.add_sound(time.monotonic())
            return
        if not packet.size:
            if packet.pts is None:  # the end: the decoder gives what it holds back; else an empty part of MJPEG
                self._decode(packet)
            return
        if not self._hears_only:
            counts = self._listener is not None  # whoever only tries a camera waits for a picture
            self._life.add_packet(time.monotonic(), keyframe=packet.is_keyframe, counts=counts)
        self._plan(packet)

    def _pause(self) -> None:
        """Let packets gather if all were read that were there; who hears them gets 0.1 s at a time anyway."""
        if self._media.is_timed and self._read_ns - self._asked_ns >= _WAITED_NS:
            is_heard = self._listener is not None and self._listener.wants_sound
            time.sleep(_HEARD_S if is_heard else _UNHEARD_S)

    def _obey(self, demand: Demand) -> None:
        """Take a demand, which decides whether only the sound is of use."""
        if demand is self._demand:
            return
        is_recorded = self._listener is not None and self._listener.wants_packets
        hears_only = demand.mode is DecodeMode.NOTHING and not is_recorded
        if hears_only is not self._hears_only:
            self._life.begin_again(time.monotonic())
        self._demand, self._hears_only = demand, hears_only

    def _silence(self) -> SourceError:
        what = "sound" if self._hears_only else "picture"
        expected = self._address.scheme, self._address.rtsp_transport
        why = f"; {NO_DATAGRAM}" if expected == ("rtsp", "udp") and not self._has_read else ""
        return SourceError(f"{self._shown}: no {what} for {self._stall_s:g} s{why}")

    def _stamp(self, packet: Packet[Stream]) -> int:
        """Return when a picture, or the first sample, was captured, ns."""
        track, read_ns = packet.stream_index, self._now_ns()
        self._read_ns = read_ns
        pts = packet.pts if self._media.is_timed else None
        tick_ns, divisor = self._ticks[track]
        pts_ns = None if pts is None else pts * tick_ns // divisor
        is_picture = track == self._track
        length_ns = 0 if is_picture else (packet.duration or 0) * tick_ns // divisor
        came_ns = read_ns
        if is_picture and self._is_parsed:  # FFmpeg gives a picture when the next one begins
            came_ns, self._picture_ns = self._picture_ns or self._asked_ns, read_ns
        began_ns = self._clock.captured_ns(track, pts_ns, came_ns, length_ns)
        if is_picture:
            if packet.is_keyframe and (size := self._media.changed_size):
                self._check_same_size(size)
            self._arrived = _Arrival(began_ns, read_ns)
        if not self._media.is_timed:  # clips need the time of arrival instead of FFmpeg's 25 fps
            packet.time_base, packet.duration = _MICROSECOND, 0
            packet.pts = packet.dts = began_ns // 1000
        return began_ns

    def _plan(self, packet: Packet[Stream]) -> None:
        arrived = self._arrived
        disposable = self._demand.mode is not DecodeMode.NOTHING and is_disposable(self._codec, packet)
        facts = PacketFacts(packet.size, packet.is_keyframe, disposable, arrived.read_ns)
        steps = self._policy.add(_Arrived(packet, arrived), facts, self._demand)
        self.decoding = _MODES[self._policy.mode]
        self.undecoded += not steps
        self.inter_coded += not packet.is_keyframe
        self._steps += steps
        if len(steps) > 1:
            self._burst.begin(steps[0].packet.times.captured_ns, arrived.captured_ns)

    def _run(self, step: DecodeStep[_Arrived]) -> None:
        """Decode one packet."""
        packet, decoder = step.packet.packet, self._hardware or self._decoder
        packet.opaque = step.packet.times
        if step.restart:
            self._decoded.clear()
            decoder.restart()
        if step.restart or packet.is_keyframe:
            self._decoder.filter_pictures(self._filtered(step))
        if step.alone is self._keeps:
            self._keeps = not step.alone  # the next picture may come in seconds
            self._converter.keep(self._keeps)
        if step.alone:
            self._decoded += self._decoder.decode_alone(packet)
            return
        if packet.is_keyframe and self._listener is not None:
            self._use_decoder(self._listener.decoder)
        self._decode(packet)

    def _use_decoder(self, choice: str) -> None:
        """Use a hardware decoder from the next packet on, which is a key frame, unless one was tried."""
        if choice == "software" or self._tried:
            return
        from agent.capture.hardware_decoder import HardwareDecoder, usable_decoder

        self._tried = True
        if name := usable_decoder(choice, self._codec):
            self._decoded += self._decoder.decode(None)
            self._decoder.restart()
            answer_s = min(2.0, self._stall_s / 5.0)
            self._hardware = HardwareDecoder(name, self._media.video, self._shown, self._decoder, answer_s)

    def _decode(self, packet: Packet[Stream]) -> None:
        if self._hardware is None:
            super()._decode(packet)
        else:
            self._decoded += self._hardware.decode(packet if packet.size else None)

    def deferred(self) -> DeferredImage | None:
        """Return the held picture, see `Video.deferred`; None: it is in a driver's few buffers."""
        return None if self._hardware is not None and self._hardware.name else super().deferred()

    def close(self) -> None:
        if self._hardware is not None:
            self._hardware.close()
        super().close()

    def _judge(self, step: DecodeStep[_Arrived]) -> None:
        """Record whether a step gave a picture. Raises SourceError if it was one that is too large."""
        gave, packet = bool(self._decoded), step.packet.packet
        self._life.add_step(time.monotonic(), gave=gave, keyframe=packet.is_keyframe)
        if step.alone:
            self._policy.mark_check(step.packet.times.read_ns, succeeded=gave)
        if not gave and self._codec == "mjpeg":  # FFmpeg refuses the large without saying so
            check_size(self._shown, *(jpeg_size(bytes(packet)) or (0, 0)))

    def _filtered(self, step: DecodeStep[_Arrived]) -> FilteredPictures:
        """Return which pictures get the loop filter from a step on."""
        if not self._may_save or self._demand.exact or not step.packet.packet.is_keyframe:
            return "all"
        if self._media.height < _TALL:
            return "all"
        if step.alone and self._policy.mode is DecodeMode.PACKETS:  # for the motion gate
            return "none"
        return "keyframes" if 0 < self._policy.group <= _SHORT else "all"

    def _hold(self, picture: DecodedPicture) -> None:
        """Hold a picture, unless it was given before, or is one too many of those that are decoded late."""
        frame, arrived = picture.frame, cast(_Arrival, picture.opaque or self._arrived)
        captured_ns = min(arrived.captured_ns, self._now_ns())
        if captured_ns <= self._newest_ns or not self._burst.passes(captured_ns):
            return
        if (frame.width, frame.height) != self._size:
            self._learn_size(frame.width, frame.height)
        self._newest_ns, self._held = captured_ns, frame
        self.captured_ns, self.read_ns = captured_ns, arrived.read_ns
        self.late = self._burst.is_late(captured_ns)

    def _check_same_size(self, size: tuple[int, int]) -> None:
        """Raise SourceError if pictures have changed their size, before a clip begins with the first of them."""
        known = self._media.width, self._media.height
        if self._demand.mode is not DecodeMode.NOTHING and size != known != (0, 0):
            raise self._other_size(known, size)

    def _other_size(self, before: tuple[int, int], after: tuple[int, int]) -> SourceError:
        sizes = " to ".join(f"{width}x{height}" for width, height in (before, after))
        return SourceError(f"{self._shown}: its pictures changed from {sizes}")

    def _learn_size(self, width: int, height: int) -> None:
        """Take the size of the first picture, if none was announced. Raises SourceError if it changes."""
        if self._size != (0, 0):
            raise self._other_size(self._size, (width, height))
        self._size = self._media.width, self._media.height = width, height
        self.description = describe(self._media) + self._encryption


def open_stream(address: SourceUri, stall_s: float) -> NetworkStream:
    """Open an RTSP or HTTP stream.

    Raises:
        SourceError: it cannot be opened within `stall_s`, or is no video; SoundAloneError: it has sound alone.
    """
    return NetworkStream(open_medium(address, stall_s), address, stall_s)
