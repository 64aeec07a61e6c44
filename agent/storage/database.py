"""The spool's database file: opened so that it wears a card little, checked, and brought up to date.

A commit appends the pages that it changes to a journal, which is folded into the file when it is full. So pages
are small, as most commits change a few hundred bytes; and what is free in the file is used again and never given
back. Rows that are deleted are overwritten only where their page is written anyway.
"""

from __future__ import annotations

import errno
import os
import sqlite3
from contextlib import suppress
from pathlib import Path

from agent.storage.durable import STATE_MODE

SIZE = "length(body) + length(CAST(topic AS BLOB))"
"""Bytes that a row counts for, see `agent.storage.batch.size`."""

_PAGE, _FRAME = 512, 24
"""Bytes of a page in a new file, and of what the journal writes before each."""
_JOURNAL, _LEAST = 1 << 20, 1 << 16
"""1 MiB, or less where there is little room: the journal must not be what fills a small partition."""
_SCHEMA = """
CREATE TABLE IF NOT EXISTS spool (
    seq INTEGER PRIMARY KEY, topic TEXT NOT NULL, body BLOB NOT NULL, put_at REAL NOT NULL,
    acked INTEGER NOT NULL DEFAULT 0, settled INTEGER NOT NULL DEFAULT 0, first_seq INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE IF NOT EXISTS will (key TEXT NOT NULL, topic TEXT NOT NULL, body BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS counter (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
"""
_LATER = ("acked", "settled", "first_seq")
"""Columns that files of older versions lack."""


def connect(path: Path) -> sqlite3.Connection:
    """A connection for any thread, without transactions of its own.

    Raises:
        sqlite3.Error: it cannot be opened.
        OSError: so.
    """
    make_file(path)
    connection = sqlite3.connect(path, timeout=2.0, isolation_level=None, check_same_thread=False)
    try:
        connection.execute(f"PRAGMA page_size={_PAGE}")  # of a new file; an old one keeps its own
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA secure_delete=FAST")  # else freed pages are filled with zeros and written
        (page,) = connection.execute("PRAGMA page_size").fetchone()
        pages = _journal_bytes(path.parent) // page
        connection.execute(f"PRAGMA wal_autocheckpoint={pages}")
        # What is cut off would have to be added again, which costs writes of the file system.
        connection.execute(f"PRAGMA journal_size_limit={(pages + 1) * (page + _FRAME)}")
    except BaseException:
        connection.close()
        raise
    return connection


def make_file(path: Path) -> None:
    """Make an empty file for a database, if there is none: SQLite makes it, and those beside it, 0644.

    Raises:
        OSError: there is a link, which SQLite would follow.
    """
    with suppress(OSError):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, STATE_MODE))
    if path.is_symlink():
        raise OSError(errno.ELOOP, f"{path.name} is a link where a file is expected: remove it")


def _journal_bytes(folder: Path) -> int:
    """A sixteenth of the partition, within bounds."""
    found = os.statvfs(folder)
    return min(_JOURNAL, max(_LEAST, found.f_blocks * found.f_frsize // 16))


def prepare(connection: sqlite3.Connection) -> None:
    """Check a file, and bring it up to date.

    Raises:
        sqlite3.DatabaseError: it is damaged.
    """
    (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if verdict != "ok":
        error = sqlite3.DatabaseError(verdict)
        error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
        raise error
    connection.executescript(_SCHEMA)
    columns = {name for _, name, *_ in connection.execute("PRAGMA table_info(spool)")}
    for column in _LATER:
        if column not in columns:
            connection.execute(f"ALTER TABLE spool ADD COLUMN {column} INTEGER NOT NULL DEFAULT 0")
