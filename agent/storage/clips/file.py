"""The file of one clip: fragmented MP4 (ISO/IEC 14496-12), to which whole fragments are appended as they come.

A file is `ftyp`, `moov`, a box with the clip's label, fragments of `moof` and `mdat`, and, once it is complete,
a box with its totals. Packets are put into fragments by FFmpeg, and nothing is encoded. A fragment begins at each
key frame and after a second. Each is playable by itself, so that a file that is cut off plays up to the last one.

Until it is complete it is called `.NAME.part` and locked by its writer. After a crash or a power cut, the next
start gives it its name, without what comes after the last whole fragment, or removes it if there is none. A
complete clip keeps the partial name as a second name until it is settled, so that the next start publishes it if
a crash came first. No clip ever takes a name that another one has, and a partial name is removed only where the
complete clip is the same file.
"""

from __future__ import annotations

import errno
import fcntl
import io
import os
import re
import secrets
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TypeVar

import msgspec
from msgspec import Struct

from agent.errors import StorageError, reason_of
from agent.storage.clips.packets import TimedPacket
from agent.storage.files import sync_folder
from agent.structs import from_json
from agent.types import Clip, ClipReason, MediaTrack

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
        boxes = read_boxes(io.BytesIO(self._data))
        return max((box.end for box in boxes if box.type == b"mdat"), default=0)


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

    def add(self, packets: Iterable[TimedPacket], *, last: bool = False) -> bytes:
        """Return the fragments that these packets have completed; after the `last` ones all that is left."""
        try:
            for packet in packets:
                if (made := self._packet(packet)) is not None:
                    self._file.mux_one(made)
            if last:
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


SUFFIX = ".mp4"
NAME = re.compile(rf"(\d{{4}}-\d\d-\d\dT\d\d-\d\d-\d\dZ)-([A-Za-z0-9_-]+){re.escape(SUFFIX)}")
"""Name of a clip: time, label and track."""
TIME = "%Y-%m-%dT%H-%M-%SZ"

_LABEL = bytes.fromhex("5b0d0a6e3c2146c79f6b1a4f52d7e3b1")
_TOTALS = bytes.fromhex("e1f3e3a90d0c4f7a8a37c2d8b6475c02")
"""Types of the two `uuid` boxes that are Vedette's."""
_LARGEST_BOX = 1 << 20
"""A label or totals that claim more are damaged, bytes."""
_TAIL = 16
"""No picture or sound ends with so many zeros; a power cut may leave them instead of data."""


class ClipLabel(Struct, frozen=True):
    """Content of the label of a clip: why it was made, and the UTC of its first picture."""

    occasion: ClipReason
    began_at: datetime


class ClipTotals(Struct, frozen=True):
    """Content of the box at the end of a complete clip.

    Attributes:
        duration_s: length, s.
        frames: number of pictures.
        tracks: ids of the tracks that it was made for.
    """

    duration_s: float
    frames: int
    tracks: tuple[str, ...] = ()


class ClipHeader(Struct, frozen=True):
    """What a clip says about itself.

    Attributes:
        label: why it was made, and when it begins.
        totals: None: it is not complete.
        playable: bytes up to the end of its last whole fragment.
    """

    label: ClipLabel
    totals: ClipTotals | None
    playable: int

    @property
    def duration_s(self) -> float | None:
        """Length, s; None: it is not complete."""
        return None if self.totals is None else self.totals.duration_s


def read_header(path: Path) -> ClipHeader:
    """Read what a clip says about itself.

    Raises:
        StorageError: it cannot be read, or is not a clip of Vedette's.
    """
    try:
        with path.open("rb") as file:
            return _scan(file)
    except OSError as error:
        raise StorageError(f"{path}: cannot be read: {reason_of(error)}") from error
    except ValueError as error:
        raise StorageError(f"{path}: is not a clip of Vedette's, or {error}") from error


def _scan(file: BinaryIO) -> ClipHeader:
    """Read the header of an open clip. Raises OSError; ValueError: it has no label, or a damaged one."""
    label = totals = None
    end, has_moof = 0, False
    for box in read_boxes(file):
        if box.type == b"uuid":
            if box.end - box.body > _LARGEST_BOX:
                raise ValueError("its head is damaged")
            file.seek(box.body)
            kind, content = file.read(16), file.read(max(0, box.end - box.body - 16))
            if kind == _LABEL:
                label, end = _decode(content, ClipLabel), box.end
            elif kind == _TOTALS and label is not None:
                totals = _decode(content, ClipTotals)
        elif box.type == b"mdat":
            if not (has_moof and _has_content(file, box)):
                break
            end = box.end
        has_moof = box.type == b"moof"
    if label is None:
        raise ValueError("its head is damaged")
    return ClipHeader(label, totals, end)


T = TypeVar("T", ClipLabel, ClipTotals)


def _decode(content: bytes, kind: type[T]) -> T:
    try:
        return from_json(content, kind)
    except (msgspec.MsgspecError, ValueError) as error:
        raise ValueError("its head is damaged") from error


def _has_content(file: BinaryIO, box: Box) -> bool:
    file.seek(max(box.body, box.end - _TAIL))
    return any(file.read(box.end - file.tell()))


def _uuid_box(kind: bytes, content: Struct) -> bytes:
    data = kind + msgspec.json.encode(content)
    return (8 + len(data)).to_bytes(4, "big") + b"uuid" + data


_MODE = 0o640


class ClipFile:
    """A clip that is being written, by one thread. Every method may raise an OSError or a StorageError.

    Attributes:
        path: that it will have.
        first: the key frame that it begins with.
        bytes: written so far.
        frames: pictures so far.
    """

    def __init__(self, path: Path, label: ClipLabel, first: TimedPacket, sound: MediaTrack | None) -> None:
        """Create the file; its folder exists. `first` is not added yet."""
        self.path, self.part, self._label, self.first = path, part_of(path), label, first
        self._muxer = Mp4Muxer(first.packet.track, sound, first)
        # Unbuffered, so that a crash loses nothing that was written.
        self._file = os.fdopen(
            os.open(self.part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _MODE), "r+b", buffering=0
        )
        self.bytes = self.frames = self._end_ns = 0
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._write(self._muxer.head + _uuid_box(_LABEL, label))
        except BaseException:
            self.drop()
            raise

    def append(self, packets: Sequence[TimedPacket]) -> None:
        """Add packets; what they complete is written."""
        for packet in packets:
            if packet.is_video:
                self.frames += 1
                self._end_ns = max(self._end_ns, packet.pts_ns + packet.duration_ns - self.first.pts_ns)
        self._write(self._muxer.add(packets))

    def sync(self) -> None:
        """Sync what was written, so that it survives a power cut."""
        os.fdatasync(self._file.fileno())

    def finish(self, tracks: tuple[str, ...]) -> Clip:
        """Complete the file and give it its name."""
        self._write(self._muxer.add((), last=True))
        totals = ClipTotals(round(self._end_ns / 1e9, 3), self.frames, tracks)
        return _complete(self._file, self.path, self._label, totals, self.bytes)

    def close_cut_off(self) -> Clip | None:
        """Close the file after a write that failed, and complete it with its whole fragments.

        Raises:
            ValueError: nothing in it can be played.
        """
        self._file.close()
        return recover(self.part)

    def drop(self) -> None:
        """Close the file and remove it."""
        self._file.close()
        self.part.unlink(missing_ok=True)

    def _write(self, data: bytes) -> None:
        _write_all(self._file, data)
        self.bytes += len(data)


def part_of(path: Path) -> Path:
    """Return the path of a clip while it is not complete."""
    return path.with_name(f".{path.name}.part")


def path_of(part: Path) -> Path:
    """Return the path that a partial clip will have."""
    return part.with_name(part.name.removeprefix(".").removesuffix(".part"))


def free_path(path: Path) -> Path:
    """Return a path for a new clip that no clip and no partial clip has: this one, or one like it."""
    free = path
    while os.path.lexists(free) or os.path.lexists(part_of(free)):
        free = path.with_name(f"{path.stem}-{secrets.token_hex(3)}{path.suffix}")
    return free


def recover(part: Path) -> Clip | None:
    """Name a clip that was cut off or not settled; return None if another process is writing it.

    What comes after the last whole fragment is cut off.

    Raises:
        OSError: it cannot be done now.
        ValueError: nothing in it can be played.
    """
    with part.open("r+b", buffering=0) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return None
        header, path = _scan(file), path_of(part)
        if header.totals is not None:
            return _name(path, header.label, header.totals, file.seek(0, os.SEEK_END))
        os.ftruncate(file.fileno(), header.playable)
        totals = _count(part, header.label.occasion.track)
        clip = _complete(file, path, header.label, totals, header.playable)
        return msgspec.structs.replace(clip, repaired=True)


def _count(path: Path, track: str) -> ClipTotals:
    """Count what is in a file without totals, which was made for a track.

    Raises:
        ValueError: there is no picture in it.
    """
    import av

    frames, first_s, end_s = 0, None, 0.0
    try:
        with av.open(str(path), format="mp4") as file:
            for packet in file.demux(video=0):
                if packet.pts is None or packet.time_base is None:
                    continue
                at_s = float(packet.pts * packet.time_base)
                first_s = at_s if first_s is None else min(first_s, at_s)
                end_s = max(end_s, at_s + float((packet.duration or 0) * packet.time_base))
                frames += 1
    except (av.error.FFmpegError, IndexError) as error:
        raise ValueError(f"nothing in it can be played: {error}") from error
    if first_s is None:
        raise ValueError("no picture in it is whole")
    return ClipTotals(round(end_s - first_s, 3), frames, (track,) if track else ())


def settle(path: Path) -> None:
    """Remove the partial name of a clip that has been published, if it is a second name of the same file.

    Raises:
        OSError: it cannot be removed.
    """
    if _is_same_file(path, part_of(path)):
        part_of(path).unlink(missing_ok=True)


def _complete(file: BinaryIO, path: Path, label: ClipLabel, totals: ClipTotals, size: int) -> Clip:
    tail = _uuid_box(_TOTALS, totals)
    file.seek(size)
    _write_all(file, tail)
    os.fsync(file.fileno())  # the name must not promise what is not there
    file.close()
    return _name(path, label, totals, size + len(tail))


def _name(path: Path, label: ClipLabel, totals: ClipTotals, size: int) -> Clip:
    path = _give_name(path)
    sync_folder(path.parent)
    began, length = label.began_at, totals.duration_s
    ended = began + timedelta(seconds=length)
    return Clip(str(path), label.occasion, totals.tracks, began, ended, length, totals.frames, size)


def _give_name(path: Path) -> Path:
    """Give a partial clip its name, or one like it where another file has that already; return its path."""
    part = part_of(path)
    if os.path.lexists(path):
        if _is_same_file(path, part):  # it was not settled
            return path
        path = free_path(path)
        part = part.rename(part_of(path))
    try:
        path.hardlink_to(part)
    except OSError as error:
        if isinstance(error, FileExistsError):
            raise
        part.rename(path)  # a file system without links, as on memory sticks: a crash may leave it unpublished
    return path


def _is_same_file(one: Path, other: Path) -> bool:
    try:
        return os.path.samestat(one.lstat(), other.lstat())
    except FileNotFoundError:
        return False


def _write_all(file: BinaryIO, data: bytes) -> None:
    """Write all of `data`: an unbuffered file may take only a part at once."""
    view = memoryview(data)
    while view:
        written = file.write(view)
        if not written:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        view = view[written:]
