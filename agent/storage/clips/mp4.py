"""Fragmented MP4 (ISO/IEC 14496-12): packets are put into fragments by FFmpeg, and nothing is encoded.

A file is `ftyp`, `moov`, a box with the clip's label, fragments of `moof` and `mdat`, and, once it is complete,
a box with its totals. A fragment begins at each key frame and after a second. Each is playable by itself, so
that a file that is cut off anywhere plays up to the last one.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import TYPE_CHECKING, BinaryIO

from msgspec import Struct

from agent.errors import StorageError
from agent.storage.clips.packets import TimedPacket
from agent.types import MediaTrack

if TYPE_CHECKING:
    from av import Packet
    from av.stream import Stream as AvStream

VIDEO_CODECS = frozenset({"h264", "hevc", "av1", "vp9"})
"""Codecs that are copied: browsers play the first everywhere, the others where the machine has a decoder."""
_IN_UNITS = frozenset({"h264", "hevc"})
SOUND_CODECS = frozenset({"aac", "mp3", "opus"})
_OPTIONS = {
    # Without `frag_discont` FFmpeg would let each track begin at 0: the sound would lead by the time that
    # pictures wait to be decoded.
    "movflags": "frag_keyframe+empty_moov+default_base_moof+skip_trailer+frag_discont",
    "use_editlist": "0",
    "frag_duration": "1000000",
    "max_interleave_delta": "1000000",
    "avoid_negative_ts": "disabled",
}
_NS = 1_000_000_000


class Box(Struct, frozen=True, gc=False):
    """A box at the top level of a file: its type, and the offsets of its begin, its content and its end."""

    type: bytes
    begin: int
    body: int
    end: int


def read_boxes(file: BinaryIO, begin: int = 0) -> Iterator[Box]:
    """Yield the boxes from an offset on, up to the first that is not whole."""
    size = file.seek(0, io.SEEK_END)
    while begin + 8 <= size:
        file.seek(begin)
        head = file.read(16)
        length, body = int.from_bytes(head[:4], "big"), begin + 8
        if length == 1:
            length, body = int.from_bytes(head[8:16], "big"), begin + 16
        if length < body - begin or begin + length > size:
            return
        yield Box(head[4:8], begin, body, begin + length)
        begin += length


def make_box(kind: bytes, content: bytes) -> bytes:
    """Return a box with this type and content."""
    return (8 + len(content)).to_bytes(4, "big") + kind + content


class _Sink:
    """Takes what FFmpeg writes; without `seek`, so that it only appends."""

    def __init__(self) -> None:
        self._data = bytearray()

    def write(self, data: bytes) -> int:
        self._data += data
        return len(data)

    def take(self, *, all_of_it: bool = False) -> bytes:
        """Return and forget the whole fragments, or everything."""
        end = len(self._data) if all_of_it else self._whole()
        taken = bytes(self._data[:end])
        del self._data[:end]
        return taken

    def _whole(self) -> int:
        """Return the offset after the last whole `mdat`."""
        begin = whole = 0
        while begin + 8 <= len(self._data):
            begin, kind = (
                begin + int.from_bytes(self._data[begin : begin + 4], "big"),
                self._data[begin + 4 : begin + 8],
            )
            if begin > len(self._data):
                break
            if kind == b"mdat":
                whole = begin
        return whole


class Mp4Muxer:
    """Puts packets into fragments. For one thread. Methods raise StorageError if FFmpeg refuses them.

    Attributes:
        head: `ftyp` and `moov` of the file.
    """

    def __init__(self, video: MediaTrack, sound: MediaTrack | None, first: TimedPacket) -> None:
        """Prepare a file of these tracks; time stamps count from the decoding of `first`, a key frame."""
        import av

        self._av, self._sink, self._zero_ns = av, _Sink(), first.dts_ns
        self._errors = av.error.FFmpegError
        self._packed = video.codec not in _IN_UNITS or _is_packed(first.packet.data)
        try:
            self._file = av.open(self._sink, "w", format="mp4", options=_OPTIONS)
            self._streams = {"video": self._add(video)}
            if sound is not None:
                self._streams["sound"] = self._add(sound)
            self._file.start_encoding()
        except (self._errors, ValueError) as error:
            raise StorageError(f"{video.codec} cannot be stored in MP4: {error}") from error
        self.head = self._sink.take(all_of_it=True)

    def add(self, packets: Iterable[TimedPacket]) -> bytes:
        """Return the fragments that these packets have completed."""
        try:
            for packet in packets:
                if (made := self._packet(packet)) is not None:
                    self._file.mux_one(made)
        except (self._errors, ValueError) as error:
            raise StorageError(f"packets of the camera cannot be stored in MP4: {error}") from error
        return self._sink.take()

    def finish(self) -> bytes:
        """Return the last fragment."""
        try:
            self._file.close()
        except (self._errors, ValueError) as error:
            raise StorageError(f"packets of the camera cannot be stored in MP4: {error}") from error
        return self._sink.take()

    def _add(self, track: MediaTrack) -> AvStream:
        with self._av.open(io.BytesIO(track.header), format="mp4") as header:
            added: AvStream = self._file.add_stream_from_template(header.streams[0])
        if track.codec == "hevc":
            added.codec_context.codec_tag = "hvc1"  # Safari plays no `hev1`
        added.time_base = Fraction(*track.time_base)
        return added

    def _packet(self, timed: TimedPacket) -> Packet[AvStream] | None:
        stream = self._streams.get(timed.packet.track.kind)
        if stream is None or timed.dts_ns < self._zero_ns:  # sound of before the first picture
            return None
        data = timed.packet.data
        made = self._av.Packet(data if self._packed or not timed.is_video else pack_units(data))
        base = Fraction(*timed.packet.track.time_base)
        made.stream, made.time_base, made.is_keyframe = stream, base, timed.packet.keyframe
        made.dts = _ticks(timed.dts_ns - self._zero_ns, base)
        made.pts = _ticks(timed.pts_ns - self._zero_ns, base)
        made.duration = _ticks(timed.duration_ns, base)
        return made


def _ticks(ns: int, base: Fraction) -> int:
    scale = base.denominator
    return (ns * scale + base.numerator * _NS // 2) // (base.numerator * _NS)


def _is_packed(data: bytes) -> bool:
    """Return True if each unit has its length before it, as in MP4; False: start codes, as from RTSP."""
    at = 0
    while at + 4 <= len(data):
        at += 4 + int.from_bytes(data[at : at + 4], "big")
    return at == len(data)


def pack_units(data: bytes) -> bytes:
    """Return a picture with the length of each unit before it, instead of start codes.

    The two forms are those of ITU-T H.264 annex B and ISO/IEC 14496-15; H.265's are the same.
    """
    parts, begin = list[bytes](), data.find(b"\0\0\1")
    while begin >= 0:
        end = data.find(b"\0\0\1", begin + 3)
        unit = data[begin + 3 : end if end >= 0 else len(data)].rstrip(b"\0")
        if unit:
            parts += (len(unit).to_bytes(4, "big"), unit)
        begin = end
    return b"".join(parts)
