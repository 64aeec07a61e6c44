"""Clips to show: the newest ones, with those that are being recorded, and their files to read."""

from __future__ import annotations

import functools
import heapq
import os
import re
import stat
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from msgspec import Struct

from agent.errors import StorageError
from agent.storage.clips.file import NAME, TIME, ClipHeader, part_of, path_of, read_header
from agent.storage.clips.retention import is_piece
from agent.storage.files import storage_errors

_FOLDER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
"""Name of a stream's folder, without those of streams that no configuration can have."""
_TIME_LENGTH = len("2026-11-25T10-15-03Z")
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class ShownClip(Struct, frozen=True):
    """A clip to show.

    Attributes:
        folder: name of its stream's folder.
        name: of its file, now or when it is complete.
        at: UTC of its event or command, by its name: in whole seconds, rounded down.
        header: what it says about itself.
        bytes: of its file; of one that is being recorded, those that can be played.
        recording: True if it is being recorded.
    """

    folder: str
    name: str
    at: datetime
    header: ClipHeader
    bytes: int
    recording: bool = False


def newest_clips(
    folder: Path, stream: str = "", *, before: str = "", pieces: bool = False, most: int = 12
) -> list[ShownClip]:
    """Return the newest clips, newest first. Damaged ones, and those deleted meanwhile, are left out.

    Args:
        folder: of all clips.
        stream: name of a stream's folder; empty: of all streams.
        before: name of a clip: only older ones; empty: all.
        pieces: pieces of continuous recordings, and nothing else; False: all but these.
        most: number of them.

    Raises:
        StorageError: the folder cannot be read.
    """
    found = list[ShownClip]()
    for name, place in _newest_first(_places(folder, stream), before, pieces=pieces, batch=2 * most):
        if len(found) == most:
            break
        with suppress(StorageError, OSError, ValueError):  # ValueError: its name has no time
            found.append(_read(folder / place / name))
    return found


def _places(folder: Path, stream: str) -> list[Path]:
    """Return the folders of all streams, or of one."""
    with storage_errors(f"{folder}: cannot be read"), suppress(FileNotFoundError):
        return [folder / one for one in _folders(folder) if stream in ("", one)]
    return []


def _newest_first(places: list[Path], before: str, *, pieces: bool, batch: int) -> Iterator[tuple[str, str]]:
    """Yield names and folders of clips, newest first, once each.

    Only the newest `batch` are kept in memory; the folders are read anew where these do not suffice, since some
    of them are damaged.
    """
    last = (before, "")
    while some := heapq.nlargest(batch, _named(places, last, pieces=pieces)):
        yield from dict.fromkeys(some)
        if len(some) < batch:
            return
        last, batch = some[-1], 4 * batch


def _named(places: list[Path], before: tuple[str, str], *, pieces: bool) -> Iterator[tuple[str, str]]:
    """Yield names and folders of clips and of those that are being recorded, some twice, in any order."""
    for place in places:
        reading = storage_errors(f"{place}: cannot be read")
        with reading, suppress(FileNotFoundError), os.scandir(place) as files:  # deleted meanwhile
            for file in files:
                name = file.name
                if name.startswith(".") and name.endswith(".part"):
                    name = path_of(Path(name)).name
                if before[0] and (name, place.name) >= before:
                    continue
                named = NAME.fullmatch(name)
                if named is not None and is_piece(named[2]) is pieces:
                    yield name, place.name


def _read(path: Path) -> ShownClip:
    at = datetime.strptime(path.name[:_TIME_LENGTH], TIME).replace(tzinfo=UTC)
    recording = not os.path.lexists(path)
    place = part_of(path) if recording else path
    state = place.lstat()
    is_file = stat.S_ISREG(state.st_mode)
    header = _read_header(place, state.st_ino, state.st_size, state.st_ctime_ns) if is_file else None
    if header is None:
        raise StorageError(f"{path}: is not a clip")
    size = header.playable if recording else state.st_size
    return ShownClip(path.parent.name, path.name, at, header, size, recording)


@functools.lru_cache(512)
def _read_header(path: Path, *_: int) -> ClipHeader | None:
    """Return the header of a file as it is now; None: it is damaged. The numbers tell when it was changed."""
    try:
        return read_header(path)
    except StorageError as error:
        if isinstance(error.__cause__, OSError):  # the next time it may be read
            raise
        return None


def clip_folders(folder: Path) -> list[str]:
    """Return the names of the streams' folders, sorted; none where there is no folder."""
    with suppress(OSError):
        return sorted(_folders(folder))
    return []


def _folders(folder: Path) -> list[str]:
    with os.scandir(folder) as files:
        return [one.name for one in files if one.is_dir(follow_symlinks=False) and _FOLDER.fullmatch(one.name)]


def open_clip(folder: Path, stream: str, name: str) -> BinaryIO | None:
    """Open a clip to read, also while it is recorded; None: there is no such clip.

    Stream and name may come from a stranger: only a regular file that is named like a clip, in the folder of a
    stream, is opened, and no link is followed below `folder`.
    """
    if not _FOLDER.fullmatch(stream) or not NAME.fullmatch(name):
        return None
    try:
        place = os.open(folder / stream, _READ | os.O_DIRECTORY)
    except OSError:
        return None
    try:
        for one in (name, part_of(Path(name)).name):
            if (file := _open_regular(one, place)) is not None:
                return file
        return None
    finally:
        os.close(place)


def _open_regular(name: str, place: int) -> BinaryIO | None:
    try:
        number = os.open(name, _READ, dir_fd=place)
    except OSError:
        return None
    if stat.S_ISREG(os.fstat(number).st_mode):
        return os.fdopen(number, "rb")
    os.close(number)
    return None
