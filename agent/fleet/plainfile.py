"""Files that an operator names: only plain ones, and up to a bound, since a pipe or a device may never end."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from pathlib import Path

from agent.errors import FleetError, StorageError, reason_of
from agent.storage.regular import kind_of, read_regular


def check_plain(path: Path, advice: str) -> None:
    """Refuse what is there and is no file; a link to a file is one.

    Args:
        path: that somebody has named.
        advice: what to do.

    Raises:
        FleetError: says what it is.
    """
    try:
        found = path.stat()
    except FileNotFoundError:
        return
    except OSError as error:
        raise FleetError(f"{path}: cannot be read: {reason_of(error)}; {advice}") from error
    if not stat.S_ISREG(found.st_mode):
        raise FleetError(f"{path}: is {kind_of(found)}, and no plain file: {advice}")


def read_plain(path: Path, largest: int, advice: str) -> bytes:
    """All of a file.

    Args:
        path: that somebody has named.
        largest: bytes that it may have.
        advice: what to do where it cannot be used.

    Raises:
        FileNotFoundError: there is none.
        FleetError: it is no file, too large, or cannot be read.
    """
    check_plain(path, advice)
    try:
        return read_regular(path.resolve(), largest)
    except FileNotFoundError:
        raise
    except StorageError as error:
        raise FleetError(f"{error}; {advice}") from error
    except OSError as error:
        raise FleetError(f"{path}: cannot be read: {reason_of(error)}; {advice}") from error


def check_place(path: Path, others: Iterable[Path], advice: str) -> None:
    """Refuse a place where no file can be written, or that is another file's.

    Args:
        path: of the file, which need not be there yet.
        others: that are not to be written over.
        advice: what to do.

    Raises:
        FleetError: says why.
    """
    check_plain(path, advice)
    target = path.resolve()
    if target in [other.resolve() for other in others]:
        raise FleetError(f"{path}: would be written over: {advice}")
    if not target.parent.is_dir():
        raise FleetError(f"{path}: cannot be written: there is no folder {target.parent}; {advice}")
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise FleetError(f"{path}: cannot be written: nothing may be put into {target.parent}; {advice}")
