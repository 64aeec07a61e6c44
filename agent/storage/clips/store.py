"""Where clips are stored, how they are named, which of them are shown, and which are deleted.

Only files named like a clip are deleted: other files may be kept in the same folder.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import stat
import tempfile
from bisect import insort
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from msgspec import Struct

from agent.config import StorageConfig
from agent.errors import StorageError, reason_of
from agent.storage.clips.file import NAME, SUFFIX, TIME, ClipHeader, part_of, path_of, read_header, recover
from agent.storage.files import CLOCK_SET, check_kind, storage_errors
from agent.text import file_name
from agent.types import Clip, ClipReason

log = logging.getLogger(__name__)

CONTINUOUS = "continuous"
"""Reason of a recording that goes on without an end; it is a word of the names of its files."""
_CONTINUOUS_NAME = re.compile(rf"{CONTINUOUS}-[0-9a-f]{{6}}(-[0-9a-f]{{6}})?")
_LONGEST = 48
"""Longest part of a name that comes from a label or a track's id, characters."""
_FOLDER_MODE = 0o750
_FOLDER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
"""Name of a stream's folder, without those of streams that no configuration can have."""
_PART = f"{SUFFIX}.part"
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_SHARE, _LEAST_BYTES, _MOST_BYTES = 0.1, 1 << 20, 1 << 30
"""Default of `clips_max_bytes`: a share of the file system, and its bounds."""


class Entry(Struct, frozen=True):
    """A stored clip.

    Attributes:
        path: of its file, now or when it is complete.
        at: UTC of its event or command, by its name: in whole seconds, rounded down.
        bytes: of the file; of one that is shown while it is recorded, those that can be played.
        continuous: whether it is a piece of a recording that goes on without an end.
        recording: whether it is being recorded.
    """

    path: Path
    at: datetime
    bytes: int
    continuous: bool = False
    recording: bool = False


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
    return stream if _FOLDER.fullmatch(stream) else file_name(stream, _LONGEST) or "stream"


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
    entries = (_entry(path) for path in _files(folder))
    return sorted((entry for entry in entries if entry is not None), key=lambda entry: (entry.at, entry.path))


def _files(folder: Path) -> list[Path]:
    """Return the files in the folders of all streams; none where there is no folder.

    Raises:
        StorageError: they cannot be read.
    """
    paths = list[Path]()
    with storage_errors(f"{folder}: cannot be read"):
        for stream in clip_folders(folder):
            with suppress(FileNotFoundError), os.scandir(folder / stream) as files:  # deleted meanwhile
                paths += map(Path, files)
    return paths


def clip_folders(folder: Path) -> list[str]:
    """Return the names of the streams' folders, sorted; none where there is no folder.

    Raises:
        StorageError: it cannot be read.
    """
    reading = storage_errors(f"{folder}: cannot be read")
    with reading, suppress(FileNotFoundError), os.scandir(folder) as files:
        folders = [file.name for file in files if file.is_dir(follow_symlinks=False)]
        return sorted(name for name in folders if _FOLDER.fullmatch(name))
    return []


def _entry(path: Path) -> Entry | None:
    """Return a clip; None: it is none, or was deleted meanwhile."""
    with suppress(ValueError, FileNotFoundError):  # its name has no time
        if (named := NAME.fullmatch(path.name)) and stat.S_ISREG((state := path.lstat()).st_mode):
            return Entry(path, _time_of(path.name), state.st_size, is_piece(named[2]))
    return None


def _time_of(name: str) -> datetime:
    return datetime.strptime(name[: len("2026-11-25T10-15-03Z")], TIME).replace(tzinfo=UTC)


def is_piece(about: str) -> bool:
    """Return True if the label in a clip's name is that of a piece of a continuous recording."""
    return _CONTINUOUS_NAME.fullmatch(about) is not None


def recover_partial_clips(folder: Path, on_complete: Callable[[Clip], None]) -> None:
    """Name the partial clips in a folder, or remove those that cannot be played.

    Raises:
        OSError, StorageError: the folder cannot be made or read, or a broken clip cannot be removed.
    """
    make_clips_folder(folder)
    parts = (path for path in _files(folder) if path.name.endswith(_PART) and path.name[0] == ".")
    for part in sorted(path for path in parts if stat.S_ISREG(path.lstat().st_mode)):
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
        known = {entry.path: entry for entry in self._entries}
        entries = (known.get(path) or _entry(path) for path in _files(self.folder))
        self._entries = sorted((entry for entry in entries if entry is not None), key=_turn)
        self.bytes = sum(entry.bytes for entry in self._entries)

    def add(self, clip: Clip) -> None:
        """Add a clip that was completed since the last scan."""
        if (entry := _entry(Path(clip.path))) is not None:
            insort(self._entries, entry, key=_turn)
            self.bytes += entry.bytes

    def expire(self, now: datetime) -> dict[str, int]:
        """Delete clips that are too old; return how many, by the key that says so."""
        counts = Counter[str]()
        for entry in list(self._entries):
            key = "recordings_max_age_s" if entry.continuous else "clips_max_age_s"
            age_s, began_s = getattr(self._config, key), entry.at.timestamp()
            if CLOCK_SET <= began_s < now.timestamp() - age_s:
                counts[key] += self._delete(entry)
        return dict(+counts)

    def make_room(self, more: int, other: int = 0) -> int:
        """Delete the oldest clips until `more` bytes fit besides `other` that are being written; return how many.

        Pieces of continuous recordings go first.

        Raises:
            StorageError: they do not fit even after every clip is deleted.
        """
        deleted = 0
        while why := self._why_full(more, other):
            if not self._entries:
                raise StorageError(why)
            deleted += self._delete(self._entries[0])
        return deleted

    def _why_full(self, more: int, other: int) -> str:
        """Return why more bytes do not fit; empty: they do."""
        config, most = self._config, self.max_bytes
        if self.bytes + other + more > most:
            return f"{self.folder}: what is being recorded is larger than [storage] clips_max_bytes, {most} bytes"
        return _why_disk_is_full(self.folder, config, shutil.disk_usage(self.folder).free, more)

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


def _turn(entry: Entry) -> tuple[bool, datetime, str]:
    """Sort key of clips: the first are the first to be deleted for room."""
    return not entry.continuous, entry.at, str(entry.path)


def clips_max_bytes(folder: Path, config: StorageConfig) -> int:
    """Return the bound of the bytes of all clips: as configured, else a share of the file system."""
    if config.clips_max_bytes is not None:
        return config.clips_max_bytes
    try:
        there = next(path for path in (folder, *folder.parents) if path.exists())
        return max(_LEAST_BYTES, min(_MOST_BYTES, int(shutil.disk_usage(there).total * _SHARE)))
    except (OSError, StopIteration):
        return _MOST_BYTES


def _why_disk_is_full(folder: Path, config: StorageConfig, free: int, more: int) -> str:
    """Return why the disk has no room for more; empty: it has."""
    if free - more >= config.clips_keep_free_bytes:
        return ""
    return (
        f"{folder}: {free / 1e6:.0f} MB are free on the disk, and clips leave "
        f"{config.clips_keep_free_bytes / 1e6:.0f} MB of it to others; make room, or set "
        "[storage] clips_keep_free_bytes"
    )


def check_saving(folder: Path, config: StorageConfig, more: int, at: Path) -> None:
    """Check that clips can be saved, by writing 4 KiB into a file without a name, and that they have room.

    Args:
        folder: of all clips.
        config: free space that clips leave to other programs.
        more: bytes that are to fit if every clip is deleted.
        at: an existing folder on the same disk.

    Raises:
        StorageError: nothing can be written there, they do not fit, or the folder cannot be read.
    """
    with storage_errors(f"{at}: clips cannot be saved there"), tempfile.TemporaryFile(dir=at) as probe:
        probe.write(bytes(4096))
        probe.flush()
        free = shutil.disk_usage(at).free
    clips = sum(entry.bytes for entry in clips_in(folder))
    if why := _why_disk_is_full(folder, config, free + clips, more):
        raise StorageError(why)


def newest_clips(
    folder: Path, stream: str = "", *, before: str = "", pieces: bool = False, most: int = 12
) -> list[tuple[Entry, ClipHeader]]:
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
    paths = {path_of(path) for path in _files(folder) if stream in ("", path.parent.name)}
    shown = list[tuple[Entry, ClipHeader]]()
    for path in sorted(paths, key=lambda path: (path.name, path), reverse=True):
        named = NAME.fullmatch(path.name)
        if named is None or is_piece(named[2]) is not pieces or (before and path.name >= before):
            continue
        if len(shown) == most:
            break
        with suppress(StorageError, OSError, ValueError):  # ValueError: its name has no time
            shown.append(_shown(path, pieces))
    return shown


def _shown(path: Path, continuous: bool) -> tuple[Entry, ClipHeader]:
    at, recording = _time_of(path.name), not os.path.lexists(path)
    place = part_of(path) if recording else path
    state = place.lstat()
    check_kind(state, stat.S_IFREG, place)
    header = read_header(place)
    return Entry(path, at, header.playable if recording else state.st_size, continuous, recording), header


def open_clip(folder: Path, stream: str, name: str) -> BinaryIO | None:
    """Open a clip to read, also while it is recorded; None: there is no such clip.

    Stream and name may come from a stranger: only a regular file that is named like a clip, in the folder of a
    stream, is opened, and no link is followed below `folder`.
    """
    if not _FOLDER.fullmatch(stream) or not NAME.fullmatch(name):
        return None
    with suppress(OSError), ExitStack() as opened:
        place = os.open(folder / stream, _READ | os.O_DIRECTORY)
        opened.callback(os.close, place)
        for path in (name, part_of(Path(name)).name):
            with suppress(FileNotFoundError):
                number = os.open(path, _READ, dir_fd=place)
                if stat.S_ISREG(os.fstat(number).st_mode):
                    return os.fdopen(number, "rb")
                os.close(number)
    return None
