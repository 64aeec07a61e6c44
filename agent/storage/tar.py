"""Tar files that can be written in one way only: plain files with a short name, and nothing else.

What a header may say besides the name and the size (owner, time, links, devices, pax and GNU extensions, holes)
has no place in such a file. A reader need not understand it: a header is what `header` gives, or it is refused.

Source of the format: POSIX.1-1988, "ustar", as in https://www.gnu.org/software/tar/manual/html_node/Standard.html
"""

from __future__ import annotations

import os
import stat
import tarfile
from collections.abc import Iterable, Iterator
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO

from msgspec import Struct

from agent.errors import BundleError, StorageError, reason_of
from agent.storage.durable import sync_folder

BLOCK = 512
CHUNK = 1 << 20
_END = bytes(2 * BLOCK)
_KINDS = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a character device",
    b"4": "a block device",
    b"5": "a folder",
    b"6": "a pipe",
    b"7": "a contiguous file",
    b"x": "a pax header, which could give what follows another name and size",
    b"g": "a pax header for all that follows",
    b"L": "a long name of GNU tar",
    b"K": "a long link of GNU tar",
    b"S": "a sparse file of GNU tar",
    b"M": "the rest of a file of another volume",
    b"V": "the name of a volume",
}
_KIND = slice(156, 157)


class Limits(Struct, frozen=True):
    """What a tar file may hold.

    Attributes:
        files: at most.
        size: of all of them together, bytes.
    """

    files: int
    size: int


class Member(Struct, frozen=True):
    """A file in a tar file.

    Attributes:
        name: its path there, of a known alphabet, never absolute or upwards.
        size: bytes.
        start: where its content begins, bytes from the start of the tar file.
    """

    name: str
    size: int
    start: int


def header(name: str, size: int) -> bytes:
    """The one header of a file of that name and size.

    Raises:
        ValueError: the name is too long, or not ASCII; or the size is.
    """
    info = tarfile.TarInfo(name)
    info.size = size
    return info.tobuf(tarfile.USTAR_FORMAT, "ascii", "strict")


def write_tarball(path: Path, members: Iterable[tuple[str, int, Iterable[bytes]]]) -> None:
    """Write a tar file, durably: all of it is there under its name, or nothing of it.

    Args:
        path: replaced.
        members: name, size and content of each, in order.

    Raises:
        StorageError: it cannot be written, or a file has another size than was said.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("xb") as file:
            for name, size, content in members:
                _append(file, name, size, content)
            file.write(_END)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise StorageError(f"{path}: cannot be written: {reason_of(error)}") from error
    finally:
        temporary.unlink(missing_ok=True)


def _append(file: BinaryIO, name: str, size: int, content: Iterable[bytes]) -> None:
    file.write(header(name, size))
    written = sum(file.write(chunk) for chunk in content)
    if written != size:
        raise StorageError(f"{name}: {written} bytes, of {size} that were expected: it was changed meanwhile")
    file.write(bytes(-size % BLOCK))


def open_regular(path: Path) -> BufferedReader:
    """Open a file for reading that is no link, pipe or device.

    Raises:
        BundleError: it is one, is missing, or cannot be read.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        file = os.fdopen(descriptor, "rb")
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            return file
        file.close()
    except OSError as error:
        told = "is a link: give the file itself" if path.is_symlink() else f"cannot be read: {reason_of(error)}"
        raise BundleError(f"{path}: {told}") from error
    raise BundleError(f"{path}: not a file")


def walk(file: BinaryIO, limits: Limits) -> Iterator[Member]:
    """The members of a tar file in order; whoever asks for the next may have read somewhere else.

    Args:
        file: of which nothing is believed; can be sought in.
        limits: of what it may hold.

    Raises:
        BundleError: a member is none that `write_tarball` writes, is there twice (case is not told apart), has an
            unsafe name, or is cut off; there are too many or too large ones; something comes after the end.
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
    """The content of a member, in pieces of at most `CHUNK` bytes.

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
    """What a header says, if it is the one way to say it."""
    try:
        info = tarfile.TarInfo.frombuf(block, "ascii", "strict")
        same = header(info.name, info.size) == block
    except (tarfile.TarError, ValueError, OverflowError):
        same = False
    if not same:
        kind = _KINDS.get(block[_KIND], "a damaged header, or one that another program wrote")
        raise BundleError(f"at byte {at}: {kind}: only plain files may be in it")
    _check_name(info.name, at)
    return Member(info.name, info.size, at + BLOCK)


def _check_name(name: str, at: int) -> None:
    parts = name.split("/")
    if not name.isprintable() or "\\" in name or any(part in ("", ".", "..") for part in parts):
        raise BundleError(f"at byte {at}: {name[:200]!r}: a name that could lead elsewhere")
