"""Durable copies, renames and appended lines, for the files of an update."""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from agent.errors import StorageError, reason_of
from agent.storage.files import check_kind, open_replacement, sync_folder, write_atomic

_LARGEST = 4 * 1024**2
_CHUNK = 1024**2


def add_line(path: Path, line: bytes) -> None:
    """Append a line to a file and sync it. A line that a power cut has cut off is ended first.

    Args:
        path: of the file; created if there is none.
        line: without a newline.

    Raises:
        StorageError: the disk refuses.
    """
    try:
        is_new = not path.exists()
        with path.open("ab+") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                line = line if file.read(1) == b"\n" else b"\n" + line
            file.write(line + b"\n")
            file.flush()
            os.fsync(file.fileno())
        if is_new:
            sync_folder(path.parent)
    except OSError as error:
        raise StorageError(f"{path}: cannot be written: {reason_of(error)}") from error


def keep_newest(path: Path, largest: int) -> None:
    """Drop the older half of a file's lines if it is too large; a reader finds the old or the new content.

    Raises:
        StorageError: the disk refuses.
    """
    try:
        if not path.exists() or path.stat().st_size <= largest:
            return
        with path.open("rb") as file:
            file.seek(-(largest // 2), os.SEEK_END)
            file.readline()  # a partial line
            newest = file.read()
    except OSError as error:
        raise StorageError(f"{path}: cannot be read: {reason_of(error)}") from error
    write_atomic(path, newest)


def read_lines(path: Path) -> list[bytes]:
    """Return the lines of a file, the newest 4 MiB; none if there is no file.

    Raises:
        StorageError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _LARGEST))
            lines = file.read().split(b"\n")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StorageError(f"{path}: cannot be read: {reason_of(error)}") from error
    return [line for line in (lines[1:] if size > _LARGEST else lines) if line]


@contextmanager
def owned_file(path: Path) -> Iterator[None]:
    """Lock a file that lines are appended to while the context lasts; it is created if there is none.

    Raises:
        StorageError: another process has locked it, or it cannot be written.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise StorageError(f"{path}: cannot be written: {reason_of(error)}") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StorageError(f"{path}: in use by another vedette: wait until that is done") from error
        yield
    finally:
        os.close(descriptor)


def take_copy(source: Path, target: Path, *, like_source: bool = False) -> None:
    """Copy a file; after a power cut the target is complete or as before.

    Args:
        source: a plain file.
        target: replaced.
        like_source: give it the same owner and permissions; False: only its owner may read it.

    Raises:
        StorageError: the source cannot be read or is not a plain file, or the disk refuses.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        # Not blocking: opening a pipe would wait for a writer.
        with os.fdopen(os.open(source, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            found = os.fstat(file.fileno())
            check_kind(found, stat.S_IFREG, source)
            like = found if like_source else None
            with open_replacement(target, 0o600, like=like, temporary=f".{target.name}.new") as copy:
                shutil.copyfileobj(file, copy, _CHUNK)
    except OSError as error:
        raise StorageError(f"{source}: cannot be copied to {target}: {reason_of(error)}") from error


def write_like(path: Path, data: bytes, like: Path) -> None:
    """Replace a file as a whole, with the owner and permissions of another.

    A configuration may hold passwords that not every user may read, and the daemon must be able to read it.

    Args:
        path: of the file; a link is followed.
        data: the whole content.
        like: the other file, or this one as it was.

    Raises:
        StorageError: the disk refuses; the old content is still there.
    """
    target = path.resolve()
    try:
        with open_replacement(target, 0o600, like=like.stat(), temporary=f".{target.name}.new") as file:
            file.write(data)
    except OSError as error:
        raise StorageError(f"{path}: cannot be written: {reason_of(error)}") from error


def close_to_others(path: Path, group: int) -> bool:
    """Let only a file's owner and a group read it.

    Args:
        path: of the file; a link is followed.
        group: that may read it.

    Returns:
        True if every user could read it before, and cannot now.

    Raises:
        StorageError: it cannot be changed.
    """
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        if not mode & 0o007:
            return False
        os.chown(path, -1, group)
        path.chmod(mode & 0o770 | 0o040)
        return not path.stat().st_mode & 0o007
    except OSError as error:
        raise StorageError(f"{path}: cannot be closed to other users: {reason_of(error)}") from error


def rename(source: Path, target: Path) -> None:
    """Rename a file and sync the folder.

    Raises:
        StorageError: the disk refuses.
    """
    try:
        source.replace(target)
        sync_folder(target.parent)
    except OSError as error:
        raise StorageError(f"{source}: cannot be renamed: {reason_of(error)}") from error


def remove(*paths: Path) -> None:
    """Delete files and sync their folders; missing ones are ignored.

    Raises:
        StorageError: the disk refuses.
    """
    for path in paths:
        try:
            path.unlink(missing_ok=True)
            if path.parent.is_dir():
                sync_folder(path.parent)
        except OSError as error:
            raise StorageError(f"{path}: cannot be deleted: {reason_of(error)}") from error


def delete_folder(folder: Path) -> None:
    """Delete a folder with its content, if it exists.

    Raises:
        StorageError: the disk refuses.
    """
    try:
        if folder.exists():
            shutil.rmtree(folder)
    except OSError as error:
        raise StorageError(f"{folder}: cannot be deleted: {reason_of(error)}") from error
