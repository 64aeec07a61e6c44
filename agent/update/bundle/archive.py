"""The file of a bundle, a tar: `bundle.toml`, then the other files sorted by path. Write, check and unpack it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path

from agent.errors import BundleError
from agent.storage import tar
from agent.storage.tar import ExpectedMember, open_regular
from agent.update.bundle.description import (
    FILES_MAX,
    NAME,
    SIZE_MAX,
    TOTAL_MAX,
    BundleFile,
    Description,
    parse,
    render,
)

SUFFIX = ".vedette"
_BEGINNING = NAME.encode().ljust(100, b"\0")
"""Name in the first tar header. A file that begins differently is reported as not a bundle, not as damaged."""
_LIMITS = tar.ArchiveLimits(FILES_MAX + 1, TOTAL_MAX + SIZE_MAX)


def listed(path: Path) -> BundleFile:
    """Return hash and size of a file; raise BundleError if it cannot be read."""
    with open_regular(path) as file:
        digest = hashlib.file_digest(file, "sha256")
        return BundleFile(digest.hexdigest(), file.tell())


def write(path: Path, description: Description, sources: Mapping[str, Path]) -> None:
    """Write a bundle, reproducibly: the same description and files give the same bytes.

    Args:
        path: replaced atomically.
        description: lists the files.
        sources: path of each file.

    Raises:
        BundleError: the description is not valid, or a file cannot be read.
        StorageError: the bundle cannot be written.
    """
    rendered = render(description)

    def members() -> Iterable[tuple[str, int, Iterable[bytes]]]:
        yield NAME, len(rendered), [rendered]
        for name, entry in sorted(description.files.items()):
            with open_regular(sources[name]) as file:
                yield name, entry.size, iter(lambda: file.read(tar.CHUNK), b"")

    tar.write_tarball(path, members())


def read_description(path: Path) -> Description:
    """Read the description of a bundle. Do not trust it before the signature is verified.

    Raises:
        BundleError: the file is not a bundle, or its description is not valid.
    """
    try:
        return parse(_first(path))
    except BundleError as error:
        raise _named(path, error) from error


def check(path: Path, description: Description) -> None:
    """Raise BundleError unless the files are those of the description: each once, with its size and hash."""
    try:
        tar.check(path, _expected(path, description), _LIMITS)
    except BundleError as error:
        raise _named(path, error) from error


def unpack(path: Path, description: Description, folder: Path) -> None:
    """Unpack a bundle with its `bundle.toml` into a new folder: all files are on disk then, or none.

    Args:
        path: of the bundle.
        description: from `read_description`.
        folder: to create.

    Raises:
        BundleError: see `check`. StorageError: the folder exists, or a disk error.
    """
    try:
        tar.unpack(path, _expected(path, description), folder, _LIMITS)
    except BundleError as error:
        raise _named(path, error) from error


def _expected(path: Path, description: Description) -> dict[str, ExpectedMember]:
    """Return the expected members, including the `bundle.toml` that was read."""
    own = _first(path)
    if parse(own) != description:
        raise BundleError(f"{NAME}: has changed since it was read")
    first = ExpectedMember(hashlib.sha256(own).hexdigest(), len(own))
    return {NAME: first} | {
        name: ExpectedMember(file.sha256, file.size) for name, file in description.files.items()
    }


def _first(path: Path) -> bytes:
    with open_regular(path) as file:
        begins = file.read(len(_BEGINNING))
        if begins != _BEGINNING[: len(begins)]:
            raise BundleError(f"does not begin with {NAME}: not a bundle")
        first = next(islice(tar.walk(file, _LIMITS), 1), None)
        if first is None or first.name != NAME or first.size > SIZE_MAX:
            raise BundleError(f"does not begin with {NAME}: not a bundle")
        return b"".join(tar.chunks(file, first))


def _named(path: Path, error: BundleError) -> BundleError:
    return error if str(error).startswith(f"{path}: ") else type(error)(f"{path}: {error}")
