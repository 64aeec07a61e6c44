"""The file of one clip: pictures are appended as they come, and it gets its name when it is complete.

Until then it is called `.NAME.part` and locked by its writer. After a crash or a power cut, the next start
completes it up to the last whole cluster, or removes it if there is none. A complete clip keeps the partial name
as a second name until it is settled, so that the next start publishes it if a crash came first.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import BinaryIO

import msgspec
from msgspec import Struct

from agent.errors import StorageError, reason_of
from agent.storage.clips import matroska as mkv
from agent.storage.clips.matroska import Element, read_elements
from agent.storage.files import sync_folder
from agent.structs import from_json
from agent.types import Clip, ClipReason, EncodedFrame

TAG = "VEDETTE"
"""Name of the tag that holds the `ClipReason`, as JSON."""
_MAX_CLUSTER = 256 * 1024 * 1024
"""A cluster that claims more is damaged, bytes."""
_MAX_MS = 86400_000
"""A clip is shorter than this, ms."""
_MAX_SIDE = 65535
"""No JPEG is larger, px."""
_DATE = 0x4461


class ClipHeader(Struct, frozen=True):
    """Content of the head of a clip.

    Attributes:
        occasion: why it was made.
        width, height: of its pictures, px.
        began_at: UTC of its first picture.
        duration_s: length; None: the clip was not completed.
        head_bytes: length of the head.
    """

    occasion: ClipReason
    width: int
    height: int
    began_at: datetime
    duration_s: float | None
    head_bytes: int


class ClipIndex(Struct, frozen=True):
    """The clusters of a clip that can be played.

    Attributes:
        cues: of its clusters.
        frames: number of pictures.
        last_ms: time of the last picture.
        end: offset after the clusters.
    """

    cues: tuple[mkv.Cue, ...]
    frames: int
    last_ms: int
    end: int

    @property
    def duration_ms(self) -> float:
        """Length, with the last picture as long as the mean of the others; a single picture lasts a second."""
        if self.frames < 2:
            return 1000.0
        return self.last_ms * self.frames / (self.frames - 1)


def read_header(path: Path) -> ClipHeader:
    """Read the header of a clip.

    Raises:
        StorageError: it cannot be read, or is not a clip of Vedette's.
    """
    try:
        with path.open("rb") as file:
            return header_of(file)
    except OSError as error:
        raise StorageError(f"{path}: cannot be read: {reason_of(error)}") from error
    except ValueError as error:
        raise StorageError(f"{path}: is not a clip of Vedette's, or {error}") from error


def header_of(file: BinaryIO) -> ClipHeader:
    """Read the header of an open file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not a clip of Vedette's, or damaged.
    """
    try:
        return _header(file)
    except (ValueError, KeyError, OverflowError, struct.error, msgspec.MsgspecError) as error:
        raise ValueError("its head is damaged") from error


def _header(file: BinaryIO) -> ClipHeader:
    parts = {part.id: part for part in _parts(file) if part.id != mkv.CLUSTER}
    info = _values(file, parts[mkv.INFO])
    (entry,) = _children(file, parts[mkv.TRACKS])
    (video,) = (part for part in _children(file, entry) if part.id == mkv.VIDEO)
    size = _values(file, video)
    duration = info.get(mkv.DURATION)
    width, height = (int.from_bytes(size[number], "big") for number in (mkv.WIDTH, mkv.HEIGHT))
    if not (0 < width <= _MAX_SIDE and 0 < height <= _MAX_SIDE and len(info[_DATE]) == 8):
        raise ValueError(f"{width}x{height}, {len(info[_DATE])} bytes of date")
    return ClipHeader(
        from_json(_tags(file, parts[mkv.TAGS])[TAG], ClipReason),
        width,
        height,
        mkv.EPOCH + timedelta(microseconds=int.from_bytes(info[_DATE], "big", signed=True) / 1e3),
        round(struct.unpack(">d", duration)[0] / 1e3, 3) if duration else None,
        parts[mkv.TAGS].end or 0,
    )


def playable_part(file: BinaryIO, begin: int) -> ClipIndex:
    """Find the clusters from an offset on, up to the first that is not whole.

    A power cut may leave zeros instead of data, so each picture must begin and end like a JPEG.
    """
    cues, end, frames, last_ms = list[mkv.Cue](), begin, 0, 0
    for part in read_elements(file, begin, _length(file)):
        if part.id != mkv.CLUSTER or part.end is None or part.end - part.body > _MAX_CLUSTER:
            break
        times = _times(file, part)
        if times is None or times != sorted(times) or not last_ms <= times[0] <= times[-1] < _MAX_MS:
            break
        cues.append(mkv.Cue(times[0], part.begin))
        end, frames, last_ms = part.end, frames + len(times), times[-1]
    return ClipIndex(tuple(cues), frames, last_ms, end)


def _times(file: BinaryIO, cluster: Element) -> list[int] | None:
    """Return the times of a cluster's pictures, ms; None: it is damaged."""
    base, times, end = 0, list[int](), cluster.body
    for part in _children(file, cluster):
        body = _body(file, part)
        if part.id == mkv.CLUSTER_TIME:
            base = int.from_bytes(body, "big")
        elif part.id == mkv.SIMPLE_BLOCK and _is_jpeg(body[mkv.BLOCK_HEAD :]):
            times.append(base + int(struct.unpack(">h", body[1:3])[0]))
        else:
            return None
        end = part.end or 0
    return times if times and end == cluster.end else None


def _is_jpeg(data: bytes) -> bool:
    return data.startswith(b"\xff\xd8") and data.endswith(b"\xff\xd9")


def _parts(file: BinaryIO) -> Iterator[Element]:
    """Yield the elements of the segment up to the first cluster."""
    (segment,) = (part for part in read_elements(file, 0, _length(file)) if part.id == mkv.SEGMENT)
    for part in read_elements(file, segment.body, min(segment.end or _length(file), _length(file))):
        if part.id == mkv.CLUSTER:
            return
        yield part


def _children(file: BinaryIO, parent: Element) -> Iterator[Element]:
    return read_elements(file, parent.body, parent.end or parent.body)


def _values(file: BinaryIO, parent: Element) -> dict[int, bytes]:
    return {part.id: _body(file, part) for part in _children(file, parent)}


def _body(file: BinaryIO, part: Element) -> bytes:
    file.seek(part.body)
    return file.read((part.end or part.body) - part.body)


def _tags(file: BinaryIO, tags: Element) -> dict[str, str]:
    found = {}
    for tag in _children(file, tags):
        for simple in _children(file, tag):
            if simple.id == mkv.SIMPLE_TAG:
                values = _values(file, simple)
                found[values[mkv.TAG_NAME].decode()] = values[mkv.TAG_STRING].decode()
    return found


def _length(file: BinaryIO) -> int:
    return file.seek(0, 2)


_MODE = 0o640
_CLUSTER_MS = 2000
"""Longest cluster: players jump to clusters, and a power cut loses the last, ms."""


class ClipFile:
    """A clip that is being written, by one thread. Every method may raise an OSError.

    Attributes:
        path: that it will have.
        bytes: written so far.
        frames: pictures written so far.
    """

    def __init__(self, path: Path, occasion: ClipReason, first: EncodedFrame) -> None:
        """Create the file; its folder exists."""
        self.path, self._first = path, first
        self._header = ClipHeader(occasion, first.width, first.height, first.captured_at, None, 0)
        self.part = part_of(path)
        # Unbuffered, so that a crash loses nothing that was written.
        self._file = os.fdopen(
            os.open(self.part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _MODE), "r+b", buffering=0
        )
        self._cues: list[mkv.Cue] = []
        self.bytes = self.frames = self._last_ms = 0
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._write(_head_of(self._header))
        except BaseException:
            self.drop()
            raise

    def fits(self, picture: EncodedFrame) -> bool:
        """Return True if a picture has the size of the first one."""
        return (picture.width, picture.height) == (self._first.width, self._first.height)

    def append(self, pictures: Sequence[EncodedFrame]) -> None:
        first_ns = self._first.captured_ns
        for some in _clusters(pictures):
            self._cues.append(mkv.Cue(mkv.milliseconds(some[0].captured_ns - first_ns), self.bytes))
            self._write(mkv.cluster(some, first_ns))
            self.frames += len(some)
            self._last_ms = mkv.milliseconds(some[-1].captured_ns - first_ns)

    def sync(self) -> None:
        """Sync what was written, so that it survives a power cut."""
        os.fdatasync(self._file.fileno())

    def finish(self, tracks: tuple[str, ...]) -> Clip:
        """Complete the file and give it its name."""
        index = ClipIndex(tuple(self._cues), self.frames, self._last_ms, self.bytes)
        return _complete(self._file, self.path, self._header, index, tracks)

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


def repair(part: Path) -> Clip | None:
    """Complete a clip that was cut off or not settled; return None if another process is writing it.

    Raises:
        OSError: it cannot be completed now.
        ValueError: nothing in it can be played.
    """
    with part.open("r+b", buffering=0) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return None
        header = header_of(file)
        if len(_head_of(header)) != header.head_bytes:
            raise ValueError("its head is damaged")  # a new head would overwrite pictures
        playable = playable_part(file, header.head_bytes)
        if not playable.frames:
            raise ValueError("no picture in it is whole")
        os.ftruncate(file.fileno(), playable.end)
        tracks = (header.occasion.track,) if header.occasion.track else ()
        path = part.with_name(part.name.removeprefix(".").removesuffix(".part"))
        cut_off = not path.exists()
        return msgspec.structs.replace(_complete(file, path, header, playable, tracks), repaired=cut_off)


def settle(path: Path) -> None:
    """Remove the partial name of a clip that has been published.

    Raises:
        OSError: it cannot be removed.
    """
    part_of(path).unlink(missing_ok=True)


def _complete(file: BinaryIO, path: Path, header: ClipHeader, index: ClipIndex, tracks: tuple[str, ...]) -> Clip:
    tail = mkv.cues(index.cues)
    size = index.end + len(tail)
    file.seek(index.end)
    _write_all(file, tail)
    os.fsync(file.fileno())  # the head must not promise what is not there
    file.seek(0)
    _write_all(file, _head_of(header, mkv.Totals(index.duration_ms, index.frames, index.end, size)))
    os.fsync(file.fileno())
    file.close()
    _give_name(path)
    sync_folder(path.parent)
    ended: datetime = header.began_at + timedelta(milliseconds=index.duration_ms)
    return Clip(
        str(path),
        header.occasion,
        tracks,
        header.began_at,
        ended,
        round(index.duration_ms / 1e3, 3),
        index.frames,
        size,
    )


def _give_name(path: Path) -> None:
    try:
        path.hardlink_to(part_of(path))
    except FileExistsError:  # it was not settled
        pass
    except OSError:  # a file system without links, as on memory sticks: a crash may leave it unpublished
        part_of(path).rename(path)


def _head_of(header: ClipHeader, totals: mkv.Totals | None = None) -> bytes:
    occasion = header.occasion
    tags = {
        "TITLE": f"{occasion.label or 'clip'} at {occasion.stream}",
        TAG: msgspec.json.encode(occasion).decode(),
    }
    return mkv.head(header.width, header.height, header.began_at, tags, totals)


def _clusters(pictures: Sequence[EncodedFrame]) -> Iterator[Sequence[EncodedFrame]]:
    begin = 0
    for end in range(1, len(pictures) + 1):
        if end == len(pictures) or pictures[end].captured_ns - pictures[begin].captured_ns > _CLUSTER_MS * 1e6:
            yield pictures[begin:end]
            begin = end


def _write_all(file: BinaryIO, data: bytes) -> None:
    """Write all of `data`: an unbuffered file may take only a part at once."""
    view = memoryview(data)
    while view:
        written = file.write(view)
        if not written:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        view = view[written:]
