"""What a disk's error is to a user: SQLite tells little of one that it meets while it opens a file."""

from __future__ import annotations

import errno
import os
import sqlite3
import tempfile
from pathlib import Path

_ERRNO = {sqlite3.SQLITE_FULL: errno.ENOSPC, sqlite3.SQLITE_READONLY: errno.EROFS}
_UNTOLD = (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN)
_ROOM = 64 * 1024
"""Bytes that opening a spool takes, and some more."""


def said(error: Exception, folder: Path) -> str:
    """In the system's words, and SQLite's behind them.

    Args:
        error: of SQLite or of the system.
        folder: where it met that; where the error does not tell, it is tried what a file there meets.
    """
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    number = _found(folder) if code in _UNTOLD else _ERRNO.get(code)
    if number is not None:
        return f"{os.strerror(number)} ({error})"
    return getattr(error, "strerror", None) or str(error)


def _found(folder: Path) -> int | None:
    """The number of the error that a new file meets; None: it meets none."""
    try:
        with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
            left = _ROOM
            while left > 0:
                left -= file.write(bytes(left))
    except OSError as error:
        return error.errno
    return None
