"""Files that survive being cut off at any instruction, and plain files that are safe to read.

Another user might have put a pipe, which never ends, or a link in place of a file. Functions raise StorageError
if the disk refuses; those with an OSError in their description raise that.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping, Set
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from agent.errors import BundleError, StorageError, VedetteError, reason_of

CLOCK_SET = 1_735_689_600.0
"""2025, Unix s: a board whose clock shows less has not synchronised it yet, so its files have no known age."""
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


@contextmanager
def storage_errors(what: str) -> Iterator[None]:
    """Raise StorageError for an OSError inside, such as `/x: cannot be written: No space left on device`."""
    try:
        yield
    except OSError as error:
        raise StorageError(f"{what}: {reason_of(error)}") from error


def read_regular(path: Path, largest: int, folder: int | None = None, owners: Set[int] | None = None) -> bytes:
    """Read a whole plain file.

    Args:
        path: of the file.
        largest: bytes that it may have.
        folder: descriptor of its folder; None: as the path says.
        owners: ids of users who may own it; None: any.

    Raises:
        FileNotFoundError: there is none.
        StorageError: it is not a plain file, too large, or another user's.
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
    """Check that a path is of the wanted kind, `S_IFREG` or `S_IFDIR`.

    Raises:
        StorageError: it is of another kind.
    """
    if stat.S_IFMT(found.st_mode) != wanted:
        expected = "a folder" if wanted == stat.S_IFDIR else "a file"
        kind = _KINDS.get(stat.S_IFMT(found.st_mode), "a file of another kind")
        raise StorageError(f"{path}: is {kind} where {expected} is expected: remove it")


def refuse_special(path: Path, error: type[VedetteError] = BundleError, *, follow: bool = True) -> None:
    """Refuse a pipe, a device or a folder, before it is read or replaced.

    Args:
        path: given by a user; it may be missing.
        error: class of the error that is raised.
        follow: follow links.
    """
    try:
        check_kind(path.stat(follow_symlinks=follow), stat.S_IFREG, path)
    except StorageError as why:
        raise error(str(why)) from None
    except OSError:
        return


STATE_MODE = 0o640
"""Mode of every file of the state folder: written by its user, readable by its group."""


def write_atomic(
    path: Path, data: bytes, mode: int = 0o644, *, follow: bool = True, durable: bool = True
) -> None:
    """Replace a file as a whole: a reader, also after a power cut, finds the old content or the new.

    Args:
        path: the file; its folder exists.
        data: the whole content.
        mode: permissions, before the umask.
        follow: replace what a symbolic link at `path` leads to; False: replace the link itself.
        durable: sync it; False for a file that need not survive a power cut, such as one in memory.

    Raises:
        StorageError: it cannot be written, or is a device, a pipe or a folder; the old content is still there.
    """
    try:
        target = path.resolve() if follow else path
        if not (target.is_file() or (target.is_symlink() and not follow)) and os.path.lexists(target):
            raise StorageError(f"{path}: cannot be written: not a file, but a device, a pipe or a folder")
        with open_replacement(target, mode, durable=durable) as file:
            file.write(data)
    except (OSError, RuntimeError) as error:  # a RuntimeError: links that lead to each other
        raise StorageError(f"{path}: cannot be written: {reason_of(error)}") from error


def write_together(files: Mapping[Path, bytes]) -> None:
    """Replace files that belong together, all of them or, if the disk refuses one, none.

    All contents are on the disk before the first rename. A power cut between two renames leaves the first
    files of the mapping new and the others as they were: the file that makes the set valid comes last.

    Args:
        files: whole contents by path, in the order in which they are renamed. Folders exist; links are followed.

    Raises:
        StorageError: a file cannot be written; files that were not there before are removed again.
    """
    for path in files:
        refuse_special(path, StorageError)
    created = list[Path]()
    try:
        targets = {path.resolve(): data for path, data in files.items()}
        created += [path for path in targets if not path.exists()]
        with ExitStack() as renames:  # contexts end in the reverse order
            for path, data in reversed(list(targets.items())):
                file = renames.enter_context(open_replacement(path, durable=False))
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        for folder in {path.parent for path in targets}:
            sync_folder(folder)
    except BaseException as error:
        for path in created:
            with suppress(OSError):
                path.unlink()
        if isinstance(error, (OSError, RuntimeError)):  # a RuntimeError: links that lead to each other
            what = f"{next(iter(files)).parent}: cannot be written to: {reason_of(error)}"
            raise StorageError(what) from error
        raise


@contextmanager
def open_replacement(
    path: Path,
    mode: int = 0o644,
    *,
    folder: int | None = None,
    like: os.stat_result | None = None,
    temporary: str = "",
    durable: bool = True,
) -> Iterator[BinaryIO]:
    """Open a temporary file beside `path` that replaces it when the context ends; after an error it is removed.

    Args:
        path: the file to replace; a link is replaced itself.
        mode: permissions, before the umask.
        folder: descriptor of the folder that it is in; None: as the path says.
        like: give the file this owner, group and permissions.
        temporary: name of the temporary file; one that a power cut has left is replaced. Empty: a new name each
            time, for files that several processes write.
        durable: sync the file and its folder.

    Raises:
        OSError: the disk refuses; the old content is still there.
    """
    target = path if folder is None else Path(path.name)
    new = target.with_name(temporary or f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        if temporary:
            with suppress(FileNotFoundError):
                os.unlink(new, dir_fd=folder)
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | SAFE, mode, dir_fd=folder)
        with os.fdopen(descriptor, "wb") as file:
            if like is not None:
                os.fchown(descriptor, like.st_uid, like.st_gid)
                os.fchmod(descriptor, stat.S_IMODE(like.st_mode))
            yield file
            file.flush()
            if durable:
                os.fsync(file.fileno())
        os.replace(new, target, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        with suppress(OSError):
            os.unlink(new, dir_fd=folder)
        raise
    if durable and folder is not None:
        os.fsync(folder)
    elif durable:
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Sync a folder, so that created, renamed and deleted names survive a power cut, or raise an OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> None:
    """Create a folder and its parents, if need be, and check that it can be written.

    Raises:
        StorageError: it cannot be created or written.
    """
    with storage_errors(f"{folder}: cannot be used as a folder"):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass


_LARGEST = 4 * 1024**2
_CHUNK = 1024**2


def add_line(path: Path, line: bytes) -> None:
    """Append a line to a file and sync it. A line that a power cut has cut off is ended first.

    Args:
        path: of the file; created if there is none.
        line: without a newline.
    """
    with storage_errors(f"{path}: cannot be written"):
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


@contextmanager
def open_partial(path: Path, keep: int) -> Iterator[BinaryIO]:
    """Open a file that is written piece by piece, behind its first bytes; a link is not followed.

    Args:
        path: of the file; created if there is none.
        keep: number of bytes that stay.

    Raises:
        StorageError: it cannot be opened.
    """
    with storage_errors(f"{path}: cannot be written"):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | SAFE, 0o644)
    with os.fdopen(descriptor, "wb") as file:
        with storage_errors(f"{path}: cannot be written"):
            file.truncate(keep)
            file.seek(keep)
        yield file


def keep_newest(path: Path, largest: int) -> None:
    """Drop the older half of a file's lines if it is too large; a reader finds the old or the new content."""
    with storage_errors(f"{path}: cannot be read"):
        if not path.exists() or path.stat().st_size <= largest:
            return
        with path.open("rb") as file:
            file.seek(-(largest // 2), os.SEEK_END)
            file.readline()  # a partial line
            newest = file.read()
    write_atomic(path, newest)


def read_lines(path: Path) -> list[bytes]:
    """Return the lines of a file, the newest 4 MiB; none if there is no file.

    Raises:
        StorageError: it cannot be read.
    """
    if not path.exists():
        return []
    with storage_errors(f"{path}: cannot be read"), path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _LARGEST))
        lines = file.read().split(b"\n")
    return [line for line in (lines[1:] if size > _LARGEST else lines) if line]


@contextmanager
def owned_file(path: Path) -> Iterator[None]:
    """Lock a file that lines are appended to while the context lasts; it is created if there is none.

    Raises:
        StorageError: another process has locked it, or it cannot be written.
    """
    with storage_errors(f"{path}: cannot be written"):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
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
    with storage_errors(f"{source}: cannot be copied to {target}"):
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        # Not blocking: opening a pipe would wait for a writer.
        with os.fdopen(os.open(source, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            found = os.fstat(file.fileno())
            check_kind(found, stat.S_IFREG, source)
            like = found if like_source else None
            with open_replacement(target, 0o600, like=like, temporary=f".{target.name}.new") as copy:
                shutil.copyfileobj(file, copy, _CHUNK)


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
    with storage_errors(f"{path}: cannot be written"):
        found, new = like.stat(), f".{target.name}.new"
        with open_replacement(target, 0o600, like=found, temporary=new) as file:
            file.write(data)


def rename(source: Path, target: Path) -> None:
    """Rename a file and sync the folder."""
    with storage_errors(f"{source}: cannot be renamed"):
        source.replace(target)
        sync_folder(target.parent)


def remove(*paths: Path) -> None:
    """Delete files and sync their folders; missing ones are ignored."""
    for path in paths:
        with storage_errors(f"{path}: cannot be deleted"):
            path.unlink(missing_ok=True)
            if path.parent.is_dir():
                sync_folder(path.parent)


def delete_folder(folder: Path) -> None:
    """Delete a folder with its content, if it exists."""
    with storage_errors(f"{folder}: cannot be deleted"):
        if folder.exists():
            shutil.rmtree(folder)
