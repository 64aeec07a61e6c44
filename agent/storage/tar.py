"""A strict subset of tar: plain files with a short name, and nothing else.

Owners, times, links, devices, pax and GNU extensions and holes are not allowed. A reader need not know them: a
header equals what `header` returns, or it is refused. `unpack` writes only expected files, all of them or none.

Source of the format: POSIX.1-1988, "ustar", as in https://www.gnu.org/software/tar/manual/html_node/Standard.html
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO

from msgspec import Struct

from agent.errors import BundleError, StorageError, reason_of
from agent.storage.files import open_replacement, storage_errors, sync_folder

BLOCK = 512
CHUNK = 1 << 20
_END = bytes(2 * BLOCK)


class ArchiveLimits(Struct, frozen=True):
    """Bounds of a tar file.

    Attributes:
        files: number of files.
        size: of all files together, bytes.
    """

    files: int
    size: int


class Member(Struct, frozen=True):
    """A file in a tar file.

    Attributes:
        name: path in the tar file, printable, never absolute or upwards.
        size: bytes.
        start: offset of its content in the tar file, bytes.
    """

    name: str
    size: int
    start: int


def header(name: str, size: int) -> bytes:
    """Return the header of a file.

    Raises:
        ValueError: the name is too long or not ASCII, or the size is too large.
    """
    info = tarfile.TarInfo(name)
    info.size = size
    return info.tobuf(tarfile.USTAR_FORMAT, "ascii", "strict")


def write_tarball(path: Path, members: Iterable[tuple[str, int, Iterable[bytes]]]) -> None:
    """Write a tar file as a whole, and sync it.

    Args:
        path: replaced.
        members: name, size and content of each, in order.

    Raises:
        StorageError: it cannot be written, or a content has another size than given.
    """
    with storage_errors(f"{path}: cannot be written"), open_replacement(path) as file:
        for name, size, content in members:
            file.write(header(name, size))
            written = sum(file.write(chunk) for chunk in content)
            if written != size:
                raise StorageError(f"{name}: {written} bytes instead of {size}: it was changed meanwhile")
            file.write(bytes(-size % BLOCK))
        file.write(_END)


def open_regular(path: Path) -> BufferedReader:
    """Open a plain file for reading.

    Raises:
        BundleError: it is a link, a pipe or a device, is missing, or cannot be read.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        file = os.fdopen(descriptor, "rb")
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            return file
        file.close()
    except OSError as error:
        why = "is a link: give the file itself" if path.is_symlink() else f"cannot be read: {reason_of(error)}"
        raise BundleError(f"{path}: {why}") from error
    raise BundleError(f"{path}: not a file")


def walk(file: BinaryIO, limits: ArchiveLimits) -> Iterator[Member]:
    """Yield the members of a tar file in order. The caller may seek meanwhile.

    Raises:
        BundleError: a member is not one that `write_tarball` writes, is there twice (ignoring case), has an
            unsafe name, or is cut off; there are too many or too large ones; or something follows the end.
    """
    end = file.seek(0, os.SEEK_END)
    at, total, seen = 0, 0, set[str]()
    while (block := _read(file, at, BLOCK)) != bytes(BLOCK):
        member = _member(block, at)
        total += member.size
        if len(seen) >= limits.files or total > limits.size:
            raise BundleError(
                f"{member.name}: more than {limits.files} files or {limits.size} bytes: too much to unpack"
            )
        if member.name.lower() in seen:
            raise BundleError(f"{member.name}: is there twice, or told apart by case only")
        at = member.start + member.size + -member.size % BLOCK
        if at > end:
            raise BundleError(
                f"{member.name}: cut off: {member.size} bytes are promised; copy the file once more"
            )
        seen.add(member.name.lower())
        yield member
    if _read(file, at, 2 * BLOCK) != _END or at + len(_END) != end:
        raise BundleError(f"something comes after the end, at byte {at + BLOCK}")


def chunks(file: BinaryIO, member: Member) -> Iterator[bytes]:
    """Yield the content of a member, in pieces of at most `CHUNK` bytes.

    Raises:
        BundleError: it is cut off.
    """
    file.seek(member.start)
    left = member.size
    while left:
        piece = file.read(min(left, CHUNK))
        if not piece:
            raise BundleError(f"{member.name}: cut off: {left} bytes are missing; copy the file once more")
        left -= len(piece)
        yield piece


def _read(file: BinaryIO, at: int, size: int) -> bytes:
    file.seek(at)
    found = file.read(size)
    if len(found) != size:
        raise BundleError(f"cut off at byte {at + len(found)}: copy the file once more")
    return found


def _member(block: bytes, at: int) -> Member:
    """Decode a header, and refuse one that `header` would not return."""
    try:
        info = tarfile.TarInfo.frombuf(block, "ascii", "strict")
        same = header(info.name, info.size) == block
    except (tarfile.TarError, ValueError, OverflowError):
        same = False
    if not same:
        what = "found a link, a device, a folder or what another program wrote, or the file is damaged"
        raise BundleError(f"at byte {at}: expected a plain file with a short name; {what}")
    parts = info.name.split("/")
    if not info.name.isprintable() or "\\" in info.name or any(part in ("", ".", "..") for part in parts):
        raise BundleError(f"at byte {at}: expected a path within the archive; found {info.name[:200]!r}")
    return Member(info.name, info.size, at + BLOCK)


class ExpectedMember(Struct, frozen=True):
    """Expected content of a file.

    Attributes:
        sha256: hex digest; empty: any, for a file that is checked otherwise.
        size: bytes.
    """

    sha256: str
    size: int


def check(path: Path, files: Mapping[str, ExpectedMember], limits: ArchiveLimits) -> None:
    """Check that the members of a tar file are those that are expected.

    Raises:
        BundleError: one is missing, not expected, of another size or hash, or not valid, see `walk`.
    """
    with open_regular(path) as file:
        for _, content in _expected(file, files, limits):
            for _ in content:
                pass


def unpack(path: Path, files: Mapping[str, ExpectedMember], folder: Path, limits: ArchiveLimits) -> None:
    """Unpack a tar file; every file and folder is synced when this returns.

    Args:
        path: of the tar file.
        files: all expected files, by name.
        folder: created, and removed again after an error; its parent exists.
        limits: bounds of its content.

    Raises:
        BundleError: its content is not as expected, see `check`.
        StorageError: the folder exists already, or the disk refuses.
    """
    with storage_errors(f"{folder}: cannot be made anew"):
        folder.mkdir(mode=0o755)
    try:
        with open_regular(path) as file:
            for member, content in _expected(file, files, limits):
                _write(folder / member.name, content)
        _sync(folder)
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, OSError):
            raise StorageError(f"{folder}: {path.name} cannot be unpacked: {reason_of(error)}") from error
        raise


def _expected(
    file: BinaryIO, files: Mapping[str, ExpectedMember], limits: ArchiveLimits
) -> Iterator[tuple[Member, Iterable[bytes]]]:
    """Yield each member with its content, which raises at its end if it is not as expected."""
    missing = set(files)
    for member in walk(file, limits):
        if member.name not in files:
            raise BundleError(f"{member.name}: is in the bundle, but is not listed in it: build it anew")
        wanted = files[member.name]
        if member.size != wanted.size:
            raise BundleError(f"{member.name}: {member.size} bytes, and {wanted.size} are listed: build it anew")
        missing.discard(member.name)
        yield member, _verified(member, chunks(file, member), wanted)
    if missing:
        raise BundleError(f"{min(missing)}: is listed in the bundle, but is not in it: build it anew")


def _verified(member: Member, content: Iterable[bytes], wanted: ExpectedMember) -> Iterator[bytes]:
    digest = hashlib.sha256()
    for piece in content:
        digest.update(piece)
        yield piece
    if wanted.sha256 and digest.hexdigest() != wanted.sha256:
        raise BundleError(f"{member.name}: its sha256 is {digest.hexdigest()}, and {wanted.sha256} is listed")


def _write(path: Path, content: Iterable[bytes]) -> None:
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(path, flags, 0o644), "wb") as file:
        for piece in content:
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    for inside, _, _ in os.walk(folder, topdown=False):
        sync_folder(Path(inside))
    sync_folder(folder.parent)
