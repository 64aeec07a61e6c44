"""Where clips are stored, how they are named, and which of them are deleted.

Only files named like a clip are deleted: other files may be kept in the same folder.
"""

from __future__ import annotations

import errno
import logging
import math
import os
import re
import shutil
import tempfile
import time
from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from msgspec import Struct

from agent.config import StorageConfig
from agent.errors import StorageError, reason_of
from agent.storage.clips.file import NAME, SUFFIX, TIME, recover
from agent.storage.files import CLOCK_SET, STATE_MODE, open_replacement, read_regular, storage_errors
from agent.text import file_name
from agent.types import Clip, ClipReason

log = logging.getLogger(__name__)

CONTINUOUS = "continuous"
"""Reason of a recording that goes on without an end; it is a word of the names of its files."""
_CONTINUOUS_NAME = re.compile(rf"{CONTINUOUS}-[0-9a-f]{{6}}(-[0-9a-f]{{6}})?")
_LONGEST = 48
"""Longest part of a name that comes from a label or a track's id, characters."""
_FOLDER_MODE = 0o750
_SHARE, _LEAST_BYTES, _MOST_BYTES = 0.1, 1 << 20, 1 << 30
"""Default of `clips_max_share`, and the bounds of what it comes to."""


class Entry(Struct, frozen=True):
    """A stored clip.

    Attributes:
        path: of its file.
        began_at: UTC, from its name.
        bytes: of the file.
        continuous: whether it is a piece of a recording that goes on without an end.
    """

    path: Path
    began_at: datetime
    bytes: int
    continuous: bool = False


def clip_path(folder: Path, occasion: ClipReason, began_at: datetime, token: str = "") -> Path:
    """Return the path of a new clip: a safe name in the stream's folder, whatever its label contains.

    Args:
        folder: of all clips.
        occasion: what it is made for.
        began_at: UTC of the event or the command.
        token: makes the name unique where label and track id do not.
    """
    when = began_at.astimezone(UTC).strftime(TIME)
    about = (occasion.label or occasion.reason, occasion.track, token)
    parts = (when, *(file_name(text, _LONGEST) for text in about))
    return folder / folder_name(occasion.stream) / ("-".join(part for part in parts if part) + SUFFIX)


def folder_name(stream: str) -> str:
    """Return the name of a stream's folder: the stream's own, made safe where it is not from a configuration."""
    is_safe = re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", stream)
    return stream if is_safe else file_name(stream, _LONGEST) or "stream"


def make_clips_folder(folder: Path) -> None:
    """Create the folder of all clips, or the folder of a stream in it.

    Raises:
        OSError: it cannot be created.
    """
    for one in (folder.parent, folder):  # the mode of a folder above is not that of the last
        one.mkdir(_FOLDER_MODE, parents=True, exist_ok=True)


def clips_in(folder: Path) -> list[Entry]:
    """List the clips of all streams, oldest first; none where there is no folder.

    Raises:
        StorageError: it cannot be read.
    """
    try:
        found = list(_entries(folder))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StorageError(f"{folder}: cannot be read: {reason_of(error)}") from error
    return sorted(found, key=lambda entry: (entry.began_at, entry.path))


def _entries(folder: Path) -> Iterator[Entry]:
    for file in _files(folder):
        if (entry := _entry(file)) is not None:
            yield entry


def _files(folder: Path) -> Iterator[os.DirEntry[str]]:
    for stream in _folders(folder):
        with suppress(FileNotFoundError), os.scandir(stream) as files:  # deleted meanwhile
            yield from files


def _entry(file: os.DirEntry[str]) -> Entry | None:
    named = NAME.fullmatch(file.name)
    if named is None or not file.is_file(follow_symlinks=False):
        return None
    try:
        began = datetime.strptime(named[1], TIME).replace(tzinfo=UTC)
        return Entry(Path(file.path), began, file.stat(follow_symlinks=False).st_size, is_piece(named[2]))
    except (ValueError, FileNotFoundError):  # no time; or deleted meanwhile
        return None


def is_piece(about: str) -> bool:
    """Return True if the label in a clip's name is that of a piece of a continuous recording."""
    return _CONTINUOUS_NAME.fullmatch(about) is not None


def _folders(folder: Path) -> list[str]:
    return [entry.path for entry in os.scandir(folder) if entry.is_dir(follow_symlinks=False)]


def parts_in(folder: Path) -> list[Path]:
    """List clips that are not complete.

    Raises:
        OSError: the folder cannot be read.
    """
    if not folder.is_dir():
        return []
    return sorted(
        part
        for stream in _folders(folder)
        for part in Path(stream).iterdir()
        if part.name.startswith(".") and part.name.endswith(f"{SUFFIX}.part") and part.is_file()
    )


def recover_partial_clips(folder: Path, on_complete: Callable[[Clip], None]) -> None:
    """Name the partial clips in a folder, or remove those that cannot be played.

    Raises:
        OSError: the folder cannot be made or read, or a broken clip cannot be removed.
    """
    make_clips_folder(folder)
    for part in parts_in(folder):
        _recover(part, on_complete)


def _recover(part: Path, on_complete: Callable[[Clip], None]) -> None:
    try:
        clip = recover(part)
        if clip is not None and folder_name(clip.occasion.stream) != part.parent.name:
            raise ValueError("it is in another stream's folder")
    except ValueError as error:
        log.warning("clip %s: was cut off and is removed: %s", part, error)
        part.unlink(missing_ok=True)
    except OSError as error:
        log.warning("clip %s: was cut off and cannot be completed: %s", part, reason_of(error))
    else:
        if clip is not None:
            on_complete(clip)


_FRESH_S = 30.0
"""Clips are not deleted for room by a list that is older, s: somebody may have deleted others meanwhile."""


class ClipStore:
    """The clips of a folder, kept within bounds. For one thread.

    Attributes:
        folder: of all clips.
        bytes: of all clips, as of the last scan and what was added and deleted since.
        deleted: clips deleted since the start.
    """

    def __init__(self, folder: Path, config: StorageConfig) -> None:
        self.folder, self._config = folder, config
        self._entries: list[Entry] = []
        self._scanned_s = -math.inf
        self.bytes = self.deleted = 0

    def __len__(self) -> int:
        """Return the number of clips, as of the last scan and what was added and deleted since."""
        return len(self._entries)

    def configure(self, config: StorageConfig) -> None:
        self._config = config

    @property
    def max_bytes(self) -> int:
        return clips_max_bytes(self.folder, self._config)

    def scan(self) -> None:
        """List the clips on the disk; files that are in the list already are not looked at again.

        Raises:
            StorageError: the folder cannot be read.
        """
        known, found = {str(entry.path): entry for entry in self._entries}, list[Entry]()
        try:
            for file in _files(self.folder):
                if (entry := known.get(file.path) or _entry(file)) is not None:
                    found.append(entry)
        except FileNotFoundError:
            found.clear()
        except OSError as error:
            raise StorageError(f"{self.folder}: cannot be read: {reason_of(error)}") from error
        self._entries = sorted(found, key=_turn)
        self.bytes = sum(entry.bytes for entry in self._entries)
        self._scanned_s = time.monotonic()

    def add(self, clip: Clip) -> None:
        """Add a clip that was completed since the last scan."""
        named = NAME.fullmatch(Path(clip.path).name)
        if named is None:
            return
        began = datetime.strptime(named[1], TIME).replace(tzinfo=UTC)
        insort(self._entries, Entry(Path(clip.path), began, clip.bytes, is_piece(named[2])), key=_turn)
        self.bytes += clip.bytes

    def expire(self, now: datetime) -> dict[str, int]:
        """Delete clips that are too old; return how many, by the key that says so."""
        config, at_s, old = self._config, now.timestamp(), list[Entry]()
        for continuous, age_s in ((False, config.clips_max_age_s), (True, config.recordings_max_age_s)):
            span = (datetime.fromtimestamp(max(CLOCK_SET, end), UTC) for end in (CLOCK_SET, at_s - age_s))
            begin, end = (bisect_left(self._entries, (not continuous, at, ""), key=_turn) for at in span)
            old += self._entries[begin:end]
        counts = Counter[str]()
        for entry in old:
            counts["recordings_max_age_s" if entry.continuous else "clips_max_age_s"] += self._delete(entry)
        return {key: count for key, count in counts.items() if count}

    def make_room(self, more: int, other: int = 0) -> int:
        """Delete the oldest clips until `more` bytes fit besides `other` that are being written; return how many.

        Pieces of continuous recordings go first.

        Raises:
            StorageError: they do not fit even after every clip is deleted.
        """
        deleted = 0
        while why := self._why_full(more, other):
            if time.monotonic() - self._scanned_s > _FRESH_S:
                self.scan()
                continue
            if not self._entries:
                raise StorageError(why)
            deleted += self._delete(self._entries[0])
        return deleted

    def _why_full(self, more: int, other: int) -> str:
        """Return why more bytes do not fit; empty: they do."""
        config, most = self._config, self.max_bytes
        if self.bytes + other + more > most:
            return f"{self.folder}: what is being recorded is larger than {self._bound(most)}"
        return _why_disk_is_full(self.folder, config, shutil.disk_usage(self.folder).free, more)

    def _bound(self, most: int) -> str:
        """Return the key that bounds the bytes of all clips, and the bytes."""
        config = self._config
        if config.clips_max_share is not None and config.clips_max_bytes != most:
            return f"clips_max_share, {config.clips_max_share:g}, allows: {most} bytes"
        return f"clips_max_bytes, {most}"

    def _delete(self, entry: Entry) -> bool:
        """Delete a clip and forget it; return False if it was gone or could not be deleted."""
        self._entries.remove(entry)
        self.bytes -= entry.bytes
        try:
            entry.path.unlink()
        except FileNotFoundError:
            return False
        except OSError as error:
            log.warning("clip %s: cannot be deleted: %s", entry.path, reason_of(error))
            return False
        self.deleted += 1
        return True


_DAY_S = 86400.0
_COST, _MOST_S = 1.5, 2.0 * _DAY_S
"""Steady seconds that a second off or a second's move of the clock costs, and the most that are counted."""


class SteadyTime:
    """Counts for how long the clock has been steady while the board ran; kept in a file over restarts.

    The clock of a board without one of its own is days behind after a pause, until NTP sets it, and NTP may be
    wrong. Either makes clips seem old that are not, so none is deleted by age before a steady day has passed.
    """

    def __init__(self, path: Path) -> None:
        """Name the file; nothing is read before the first `update`."""
        self._path, self._steady_s = path, 0.0
        self._before: tuple[float, float] | None = None

    def update(self, now_s: float, ran_s: float) -> bool:
        """Count until now; return True after a steady day.

        Args:
            now_s: Unix time, s.
            ran_s: CLOCK_MONOTONIC, s. While the program is off, it counts as standing still.
        """
        then_s, began_s = self._before or (self._read(now_s), ran_s)
        passed_s = ran_s - began_s
        moved_s = abs(now_s - then_s - passed_s)
        self._steady_s = min(_MOST_S, max(0.0, self._steady_s + passed_s - _COST * moved_s))
        self._before = now_s, ran_s
        return self._steady_s >= _DAY_S

    def _read(self, now_s: float) -> float:
        """Read the steady time of the run before; return when it was written, Unix s, or `now_s`."""
        try:
            self._steady_s, then_s = map(float, read_regular(self._path, 100).split())
        except (OSError, ValueError, StorageError):
            return now_s
        return then_s

    def save(self, now_s: float, ran_s: float) -> None:
        """Count until now and write the file, if possible; without it, the day begins anew at the next start."""
        self.update(now_s, ran_s)
        new = f"{self._path.name}.new"
        with suppress(OSError), open_replacement(self._path, STATE_MODE, temporary=new, durable=False) as file:
            file.write(f"{self._steady_s} {now_s}\n".encode())


def _turn(entry: Entry) -> tuple[bool, datetime, str]:
    """Sort key of clips: the first are the first to be deleted for room."""
    return not entry.continuous, entry.began_at, str(entry.path)


def clips_max_bytes(folder: Path, config: StorageConfig) -> int:
    """Return the bound of the bytes of all clips: as configured, in bytes or as a share of the file system."""
    most = config.clips_max_bytes
    if config.clips_max_share is None and most is not None:
        return most
    try:
        there = next(path for path in (folder, *folder.parents) if path.exists())
        size = shutil.disk_usage(there).total
    except (OSError, StopIteration):
        return _MOST_BYTES if most is None else most
    if config.clips_max_share is None:
        return max(_LEAST_BYTES, min(_MOST_BYTES, int(size * _SHARE)))
    share = max(_LEAST_BYTES, int(size * config.clips_max_share))
    return share if most is None else min(share, most)


def _why_disk_is_full(folder: Path, config: StorageConfig, free: int, more: int) -> str:
    """Return why the disk has no room for more; empty: it has."""
    if free - more >= config.clips_keep_free_bytes:
        return ""
    return (
        f"{folder}: {free / 1e6:.0f} MB are free on the disk, and clips leave "
        f"{config.clips_keep_free_bytes / 1e6:.0f} MB of it to others; make room, or set "
        "[storage] clips_keep_free_bytes"
    )


_PROBE = bytes(4096)


def check_writable(folder: Path) -> None:
    """Check that a folder can be written, by writing 4 KiB into a file without a name.

    Raises:
        StorageError: nothing can be written there, with the reason.
    """
    saving = storage_errors(f"{folder}: clips cannot be saved there")
    with saving, tempfile.TemporaryFile(dir=folder, buffering=0) as probe:
        if probe.write(_PROBE) < len(_PROBE):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def check_room(folder: Path, config: StorageConfig, more: int, at: Path | None = None) -> None:
    """Check that more bytes fit if every clip is deleted.

    Args:
        folder: of all clips.
        config: free space that clips leave to other programs.
        more: bytes to be written.
        at: an existing folder on the same disk, in case `folder` does not exist yet.

    Raises:
        StorageError: they do not fit, or the folder cannot be read.
    """
    with storage_errors(f"{folder}: cannot be read"):
        free = shutil.disk_usage(at or folder).free
    clips = sum(entry.bytes for entry in clips_in(folder))
    if why := _why_disk_is_full(folder, config, free + clips, more):
        raise StorageError(why)
