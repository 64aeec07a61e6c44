"""One clip's file: pictures are appended as they come, and it has its name only when it is complete.

Until then it is `.NAME.part`, locked by whoever writes it. A crash or a power cut leaves that behind; the next
start completes it up to where it is whole, or removes it when there is nothing in it. A complete one keeps that
name besides its own until it is settled, so that the next start tells of it, should the crash come before that.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import BinaryIO

import msgspec
from msgspec import Struct

from agent.clips import Clip, Occasion, Picture
from agent.storage import matroska as mkv
from agent.storage.clipscan import TAG, Label, label_of, rest_of
from agent.storage.durable import sync_folder

_MODE = 0o640
_CLUSTER_MS = 2000
"""Players jump to clusters, and a cut loses the last."""


class Ending(Struct, frozen=True):
    """What a complete file is to say.

    Attributes:
        cues: of its clusters.
        frames: pictures in it.
        last_ms: time of the last.
        end: offset after the clusters.
    """

    cues: tuple[mkv.Cue, ...]
    frames: int
    last_ms: int
    end: int

    @property
    def duration_ms(self) -> float:
        """With the last picture as long as the mean of the others; a single one lasts a second."""
        if self.frames < 2:
            return 1000.0
        return self.last_ms * self.frames / (self.frames - 1)


class ClipFile:
    """A clip that is being written. For one thread; every method may raise an OSError.

    Attributes:
        path: that it will have.
        bytes: written so far.
        frames: pictures written so far.
    """

    def __init__(self, path: Path, occasion: Occasion, first: Picture) -> None:
        """Create the file; its folder exists."""
        self.path, self._occasion, self._first = path, occasion, first
        self._head = Label(occasion, first.width, first.height, first.captured_at, None, 0)
        self.part = part_of(path)
        # Nothing waits in a buffer of ours: a crash then loses nothing that was written.
        self._file = os.fdopen(
            os.open(self.part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _MODE), "r+b", buffering=0
        )
        self._cues: list[mkv.Cue] = []
        self.bytes = self.frames = self._last_ms = 0
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._write(_head_of(self._head))
        except BaseException:
            self.drop()
            raise

    def fits(self, picture: Picture) -> bool:
        """Whether a picture is as large as those before it."""
        return (picture.width, picture.height) == (self._first.width, self._first.height)

    def append(self, pictures: Sequence[Picture]) -> None:
        """Write pictures behind those before them."""
        first_ns = self._first.captured_ns
        for some in _clusters(pictures):
            self._cues.append(mkv.Cue(mkv.milliseconds(some[0].captured_ns - first_ns), self.bytes))
            self._write(mkv.cluster(some, first_ns))
            self.frames += len(some)
            self._last_ms = mkv.milliseconds(some[-1].captured_ns - first_ns)

    def sync(self) -> None:
        """Let what was written survive a power cut."""
        os.fdatasync(self._file.fileno())

    def finish(self, tracks: tuple[str, ...]) -> Clip:
        """Complete the file and give it its name."""
        ending = Ending(tuple(self._cues), self.frames, self._last_ms, self.bytes)
        return _complete(self._file, self.path, self._head, ending, tracks)

    def drop(self) -> None:
        """Close it and remove it."""
        self._file.close()
        self.part.unlink(missing_ok=True)

    def _write(self, data: bytes) -> None:
        _write_all(self._file, data)
        self.bytes += len(data)


def part_of(path: Path) -> Path:
    """The name of a clip that is not complete."""
    return path.with_name(f".{path.name}.part")


def repair(part: Path) -> Clip | None:
    """Complete a file that was cut off, or was not settled; None: it is being written by another process.

    Raises:
        OSError: it cannot be completed now.
        ValueError: there is nothing in it that can be played.
    """
    with part.open("r+b", buffering=0) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return None
        label = label_of(file)
        if len(_head_of(label)) != label.head_bytes:
            raise ValueError("its head is damaged")  # another written over it would reach into the pictures
        rest = rest_of(file, label.head_bytes)
        if not rest.frames:
            raise ValueError("no picture in it is whole")
        os.ftruncate(file.fileno(), rest.end)
        tracks = (label.occasion.track,) if label.occasion.track else ()
        ending = Ending(rest.cues, rest.frames, rest.last_ms, rest.end)
        path = part.with_name(part.name.removeprefix(".").removesuffix(".part"))
        cut_off = not path.exists()
        return msgspec.structs.replace(_complete(file, path, label, ending, tracks), repaired=cut_off)


def settle(path: Path) -> None:
    """A clip has been told of: it needs no other name.

    Raises:
        OSError: that cannot be removed.
    """
    part_of(path).unlink(missing_ok=True)


def _complete(file: BinaryIO, path: Path, label: Label, ending: Ending, tracks: tuple[str, ...]) -> Clip:
    tail = mkv.cues(ending.cues)
    size = ending.end + len(tail)
    file.seek(ending.end)
    _write_all(file, tail)
    os.fsync(file.fileno())  # the head must not promise what is not there
    file.seek(0)
    _write_all(file, _head_of(label, mkv.Totals(ending.duration_ms, ending.frames, ending.end, size)))
    os.fsync(file.fileno())
    file.close()
    _name(path)
    sync_folder(path.parent)
    ended: datetime = label.began_at + timedelta(milliseconds=ending.duration_ms)
    return Clip(
        str(path),
        label.occasion,
        tracks,
        label.began_at,
        ended,
        round(ending.duration_ms / 1e3, 3),
        ending.frames,
        size,
    )


def _name(path: Path) -> None:
    try:
        path.hardlink_to(part_of(path))
    except FileExistsError:  # it was not settled
        pass
    except OSError:  # a file system without links, as of memory sticks: a crash may leave it untold
        part_of(path).rename(path)


def _head_of(label: Label, totals: mkv.Totals | None = None) -> bytes:
    occasion = label.occasion
    tags = {
        "TITLE": f"{occasion.label or 'clip'} at {occasion.stream}",
        TAG: msgspec.json.encode(occasion).decode(),
    }
    return mkv.head(label.width, label.height, label.began_at, tags, totals)


def _clusters(pictures: Sequence[Picture]) -> Iterator[Sequence[Picture]]:
    begin = 0
    for end in range(1, len(pictures) + 1):
        if end == len(pictures) or pictures[end].captured_ns - pictures[begin].captured_ns > _CLUSTER_MS * 1e6:
            yield pictures[begin:end]
            begin = end


def _write_all(file: BinaryIO, data: bytes) -> None:
    """Write everything: a file without a buffer may take only a part."""
    view = memoryview(data)
    while view:
        written = file.write(view)
        if not written:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        view = view[written:]
