"""Unpacks a tar file of a known kind into a fresh folder: only what is expected, and all of it or nothing."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

from msgspec import Struct

from agent.errors import BundleError, StorageError, reason_of
from agent.storage.durable import sync_folder
from agent.storage.tarball import Limits, Member, chunks, open_regular, walk


class Expected(Struct, frozen=True):
    """What a file has to be.

    Attributes:
        sha256: hex digest; empty: any, for what has been checked otherwise.
        size: bytes.
    """

    sha256: str
    size: int


def check(path: Path, files: Mapping[str, Expected], limits: Limits) -> None:
    """Refuse a tar file whose members are not those that are expected.

    Args:
        path: of the tar file.
        files: by name, every one that it has.
        limits: of what it may hold.

    Raises:
        BundleError: one is missing, was not expected, is of another size or hash; or see `walk`.
    """
    with open_regular(path) as file:
        for _, content in _expected(file, files, limits):
            for _ in content:
                pass


def unpack(path: Path, files: Mapping[str, Expected], folder: Path, limits: Limits) -> None:
    """Unpack a tar file; each file and each folder is on disk when this returns.

    Args:
        path: of the tar file.
        files: see `check`.
        folder: is made, and taken away again when anything is wrong; its parent is there.
        limits: of what it may hold.

    Raises:
        BundleError: see `check`. StorageError: the folder is there already, or the disk refuses.
    """
    try:
        folder.mkdir(mode=0o755)
    except OSError as error:
        raise StorageError(f"{folder}: cannot be made anew: {reason_of(error)}") from error
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
    file: BinaryIO, files: Mapping[str, Expected], limits: Limits
) -> Iterator[tuple[Member, Iterable[bytes]]]:
    """Each member with its content, which is refused at its end when it is not the one expected."""
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


def _verified(member: Member, content: Iterable[bytes], wanted: Expected) -> Iterator[bytes]:
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
