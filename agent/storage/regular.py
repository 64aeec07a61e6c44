"""Small files of ours, read only where they are files: somebody else might have put a pipe, which never ends."""

from __future__ import annotations

import os
import stat
from collections.abc import Set
from pathlib import Path

from agent.errors import BundleError, StorageError, VedetteError

SAFE = os.O_NOFOLLOW | os.O_CLOEXEC
_KINDS = {
    stat.S_IFREG: "a file",
    stat.S_IFLNK: "a link",
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def read_regular(path: Path, largest: int, folder: int | None = None, owners: Set[int] | None = None) -> bytes:
    """All of a file.

    Args:
        path: of the file.
        largest: bytes that it may have.
        folder: descriptor of the folder that it lies in; None: as the path says.
        owners: ids of the users whose it may be; None: anybody.

    Raises:
        FileNotFoundError: there is none.
        StorageError: it is no file, too large, or another user's.
        OSError: it cannot be read.
    """
    name = path if folder is None else path.name
    check_kind(os.stat(name, dir_fd=folder, follow_symlinks=False), stat.S_IFREG, path)
    with os.fdopen(os.open(name, os.O_RDONLY | os.O_NONBLOCK | SAFE, dir_fd=folder), "rb") as file:
        found = os.fstat(file.fileno())
        check_kind(found, stat.S_IFREG, path)
        if owners is not None and found.st_uid not in owners:
            raise StorageError(f"{path}: belongs to user {found.st_uid}, who may not write it: remove it")
        content = file.read(largest + 1)
    if len(content) > largest:
        raise StorageError(f"{path}: is too large: at most {largest} bytes are read")
    return content


def check_kind(found: os.stat_result, wanted: int, path: Path) -> None:
    """Refuse what is not of the wanted kind, `S_IFREG` or `S_IFDIR`.

    Raises:
        StorageError: it is another kind.
    """
    if stat.S_IFMT(found.st_mode) != wanted:
        expected = "a folder" if wanted == stat.S_IFDIR else "a file"
        raise StorageError(f"{path}: is {kind_of(found)} where {expected} is expected: remove it")


def kind_of(found: os.stat_result) -> str:
    """What it is, in words: `a pipe`."""
    return _KINDS.get(stat.S_IFMT(found.st_mode), "a file of another kind")


def what_is(path: Path, *, follow: bool = True) -> str:
    """What lies at a path, such as `a file`, `a folder` or `a pipe`; empty: nothing, or nobody may look.

    Args:
        path: that somebody gave.
        follow: whether a link counts for what it leads to.
    """
    try:
        return kind_of(path.stat(follow_symlinks=follow))
    except OSError:
        return ""


def refuse_special(path: Path, error: type[VedetteError] = BundleError, *, follow: bool = True) -> None:
    """Refuse what is there and no plain file, before it is read or replaced: pipes block, devices get lost.

    Args:
        path: that somebody gave; what is missing is not refused.
        error: that is raised.
        follow: whether a link counts for what it leads to.
    """
    found = what_is(path, follow=follow)
    if found not in ("", "a file"):
        raise error(f"{path}: is {found} where a file is expected")
