"""The shelf: where clips lie, what they are called, and which of them have to go.

Only files that are called like a clip are ours to delete: anybody may keep others in the same folder.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from msgspec import Struct

from agent.config.device import StorageConfig
from agent.errors import StorageError, reason_of
from agent.types import ClipReason

log = logging.getLogger(__name__)

SUFFIX = ".mkv"
_TIME = "%Y-%m-%dT%H-%M-%SZ"
_NAME = re.compile(r"(\d{4}-\d\d-\d\dT\d\d-\d\d-\d\dZ)-[A-Za-z0-9_-]+" + re.escape(SUFFIX))
_LONGEST = 48
"""Letters of a label, or of a track's id, in a name."""
_CLOCK_WRONG = datetime(2025, 1, 1, tzinfo=UTC)
"""A clip that is older than Vedette was made before the clock was set: how old it is cannot be known."""
_FOLDER_MODE = 0o750
_SHARE, _LEAST_BYTES, _MOST_BYTES = 0.1, 1 << 20, 1 << 30
"""Of the file system for clips, where the configuration does not say; bounds of that."""


class Entry(Struct, frozen=True):
    """A clip on the shelf.

    Attributes:
        path: of its file.
        began_at: UTC, by its name.
        bytes: of the file.
    """

    path: Path
    began_at: datetime
    bytes: int


def clip_path(folder: Path, occasion: ClipReason, began_at: datetime, token: str = "") -> Path:
    """Where a clip is to lie; whatever a label holds, it is a name of one level in the stream's folder.

    Args:
        folder: of all clips.
        occasion: what it is made for.
        began_at: UTC of the event or the command.
        token: what makes the name unique where no track's id does.
    """
    when = began_at.astimezone(UTC).strftime(_TIME)
    parts = (when, _safe(occasion.label or occasion.reason), _safe(occasion.track or token))
    return folder / folder_name(occasion.stream) / ("-".join(part for part in parts if part) + SUFFIX)


def folder_name(stream: str) -> str:
    """Of a stream's folder: its name, which a configuration keeps to letters, digits, hyphens and underscores."""
    return stream if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", stream) else _safe(stream) or "stream"


def _safe(text: str) -> str:
    """Letters and digits of ASCII as they are, whatever lies between them a hyphen."""
    return re.sub(r"[^A-Za-z0-9_]+", "-", text)[:_LONGEST].strip("-")


def make_folder(folder: Path) -> None:
    """Create the folder of all clips, or that of a stream in it.

    Raises:
        OSError: it cannot be created.
    """
    for one in (folder.parent, folder):  # the mode of a folder above is not that of the last
        one.mkdir(_FOLDER_MODE, parents=True, exist_ok=True)


def clips_in(folder: Path) -> list[Entry]:
    """The clips in the folders of all streams, oldest first; none where there is no folder.

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
    for stream in _folders(folder):
        for file in os.scandir(stream):
            named = _NAME.fullmatch(file.name)
            if named is None or not file.is_file(follow_symlinks=False):
                continue
            try:
                began = datetime.strptime(named[1], _TIME).replace(tzinfo=UTC)
                yield Entry(Path(file.path), began, file.stat(follow_symlinks=False).st_size)
            except (ValueError, FileNotFoundError):  # no time; or deleted meanwhile
                continue


def _folders(folder: Path) -> list[str]:
    return [entry.path for entry in os.scandir(folder) if entry.is_dir(follow_symlinks=False)]


def parts_in(folder: Path) -> list[Path]:
    """Clips that are not complete.

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


class ClipStore:
    """The clips of a folder, within their bounds. For one thread.

    Attributes:
        folder: of all clips.
        bytes: of all clips, as far as is known.
        deleted: clips that had to go since the start.
    """

    def __init__(self, folder: Path, config: StorageConfig) -> None:
        self.folder, self._config = folder, config
        self._entries: list[Entry] = []
        self.bytes = self.deleted = 0

    def __len__(self) -> int:
        """How many clips there are, as far as is known."""
        return len(self._entries)

    def configure(self, config: StorageConfig) -> None:
        """Keep to other bounds from now on."""
        self._config = config

    @property
    def max_bytes(self) -> int:
        """Bytes of all clips at most, see `clips_max_bytes`."""
        return clips_max_bytes(self.folder, self._config)

    def look(self) -> None:
        """See what lies there.

        Raises:
            StorageError: the folder cannot be read.
        """
        self._entries = clips_in(self.folder)
        self.bytes = sum(entry.bytes for entry in self._entries)

    def expire(self, now: datetime) -> int:
        """Delete what has become too old; how many."""
        oldest = now.timestamp() - self._config.clips_max_age_s
        old = [e for e in self._entries if e.began_at >= _CLOCK_WRONG and e.began_at.timestamp() < oldest]
        return sum(self._delete(entry) for entry in old)

    def make_room(self, more: int, other: int = 0) -> int:
        """Delete the oldest clips until more bytes fit; how many were deleted.

        Args:
            more: bytes that are about to be written.
            other: bytes of clips that are being written.

        Raises:
            StorageError: they do not fit even without a single clip.
        """
        deleted = 0
        while why := self._tight(more, other):
            if not self._entries:
                raise StorageError(why)
            deleted += self._delete(self._entries[0])
        return deleted

    def _tight(self, more: int, other: int) -> str:
        """Why more bytes do not fit; empty: they do."""
        config, most = self._config, self.max_bytes
        if self.bytes + other + more > most:
            return f"{self.folder}: what is being recorded is larger than clips_max_bytes, {most}"
        return is_tight(self.folder, config, shutil.disk_usage(self.folder).free, more)

    def _delete(self, entry: Entry) -> bool:
        """Whether it was there and could be deleted; either way it is off our list."""
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


def clips_max_bytes(folder: Path, config: StorageConfig) -> int:
    """Return how many bytes all clips of a folder may have: as configured, or a share of its file system.

    Args:
        folder: of all clips; it need not exist yet.
        config: of the storage.
    """
    if config.clips_max_bytes is not None:
        return config.clips_max_bytes
    try:
        there = next(path for path in (folder, *folder.parents) if path.exists())
        return max(_LEAST_BYTES, min(_MOST_BYTES, int(shutil.disk_usage(there).total * _SHARE)))
    except (OSError, StopIteration):
        return _MOST_BYTES


def is_tight(folder: Path, config: StorageConfig, free: int, more: int) -> str:
    """Why the disk has no room for more; empty: it has.

    Args:
        folder: of all clips.
        config: what clips have to leave to others.
        free: bytes that are free for them.
        more: bytes that are about to be written.
    """
    if free - more >= config.clips_keep_free_bytes:
        return ""
    return (
        f"{folder}: {free / 1e6:.0f} MB are free on the disk, and clips leave "
        f"{config.clips_keep_free_bytes / 1e6:.0f} MB of it to others; make room, or set "
        "[storage] clips_keep_free_bytes"
    )


_PROBE = bytes(4096)


def check_writable(folder: Path) -> None:
    """Write a little into a file without a name, which is gone before it reaches the disk itself.

    Args:
        folder: that a clip is to lie in.

    Raises:
        StorageError: nothing can be written there, with the reason.
    """
    try:
        with tempfile.TemporaryFile(dir=folder, buffering=0) as probe:
            if probe.write(_PROBE) < len(_PROBE):
                raise OSError(28, os.strerror(28))
    except OSError as error:
        raise StorageError(f"{folder}: clips cannot be saved there: {reason_of(error)}") from error


def check_room(folder: Path, config: StorageConfig, more: int, at: Path | None = None) -> None:
    """Whether more fits once every clip that is there has gone.

    Args:
        folder: of all clips.
        at: a folder on the same disk that is there, where `folder` need not be.
        config: what clips have to leave to others.
        more: bytes that are about to come.

    Raises:
        StorageError: it does not, or the folder cannot be read.
    """
    try:
        free = shutil.disk_usage(at or folder).free
    except OSError as error:
        raise StorageError(f"{folder}: cannot be read: {reason_of(error)}") from error
    clips = sum(entry.bytes for entry in clips_in(folder))
    if why := is_tight(folder, config, free + clips, more):
        raise StorageError(why)
