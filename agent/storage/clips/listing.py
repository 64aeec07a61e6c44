"""Clips to show: the newest ones, with those that are being recorded, and their files to read."""

from __future__ import annotations

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
from agent.storage.clips.retention import clips_in, is_piece, parts_in

_FOLDER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
"""Name of a stream's folder, without those of streams that no configuration can have."""
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
    for path in sorted(_paths(folder), key=lambda one: (one.name, one.parent.name), reverse=True):
        if len(found) == most:
            break
        named = NAME.fullmatch(path.name)
        if named is None or is_piece(named[2]) is not pieces or stream not in ("", path.parent.name):
            continue
        if not before or path.name < before:
            with suppress(StorageError, OSError, ValueError):  # ValueError: its name has no time
                found.append(_read(path, datetime.strptime(named[1], TIME).replace(tzinfo=UTC)))
    return found


def _paths(folder: Path) -> set[Path]:
    """Return the paths of all clips, of those that are being recorded the ones that they will have."""
    try:
        parts = parts_in(folder)
    except OSError as error:
        raise StorageError(f"{folder}: cannot be read: {error.strerror}") from error
    return {*(entry.path for entry in clips_in(folder)), *map(path_of, parts)}


def _read(path: Path, at: datetime) -> ShownClip:
    recording = not path.exists()
    header = read_header(part_of(path) if recording else path)
    size = header.playable if recording else path.stat().st_size
    return ShownClip(path.parent.name, path.name, at, header, size, recording)


def clip_folders(folder: Path) -> list[str]:
    """Return the names of the streams' folders, sorted; none where there is no folder."""
    return sorted(_folders(folder))


def _folders(folder: Path) -> Iterator[str]:
    with suppress(OSError):
        for one in os.scandir(folder):
            if one.is_dir(follow_symlinks=False) and _FOLDER.fullmatch(one.name):
                yield one.name


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
