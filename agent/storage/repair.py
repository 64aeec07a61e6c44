"""A corrupt spool: what can be read of it is kept, and the file is set aside for people to look at."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterable
from contextlib import closing, suppress
from pathlib import Path
from typing import Literal

from agent.messages import Stored
from agent.storage.durable import sync_folder
from agent.storage.wills import LeftWill

_BROKEN = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
FILES = ("", "-wal", "-shm")
"""What SQLite appends to the name of a database."""
_KEPT = 2
"""Corrupt databases kept; a dying card must not fill itself with them."""


def is_corrupt(error: Exception) -> bool:
    """Whether an error says that the file is damaged, and not merely that it cannot be used now."""
    return isinstance(error, sqlite3.Error) and (getattr(error, "sqlite_errorcode", 0) & 0xFF) in _BROKEN


def salvage(path: Path, highest: int) -> list[Stored]:
    """The rows that wait in a corrupt database, up to the first that cannot be read; none if it cannot be opened.

    The counter and the newest row that can be read say how far they have been acknowledged: those before it that
    neither knows of are sent again.

    Args:
        path: of the database.
        highest: a number above is no row of ours.
    """
    rows: list[tuple[Stored, bool]] = []
    last = acked = 0
    with suppress(sqlite3.Error), closing(sqlite3.connect(path, timeout=2.0)) as connection:
        for row in connection.execute("SELECT seq, topic, body, put_at, acked, settled FROM spool ORDER BY seq"):
            if _is_sound(row, last, highest):
                last, acked = row[0], max(acked, row[4])
                rows.append((Stored(*row[:4]), bool(row[5])))
    with suppress(sqlite3.Error), closing(sqlite3.connect(path, timeout=2.0)) as connection:
        for (value,) in connection.execute("SELECT value FROM counter WHERE name = 'acked'"):
            if isinstance(value, int) and value <= highest:
                acked = max(acked, value)
    return [row for row, settled in rows if row.seq > acked and not settled]


def salvage_wills(path: Path) -> list[LeftWill]:
    """The wills of a corrupt database up to the first that cannot be read."""
    wills: list[LeftWill] = []
    with suppress(sqlite3.Error), closing(sqlite3.connect(path, timeout=2.0)) as connection:
        rows = connection.execute("SELECT key, topic, body FROM will")
        wills.extend(LeftWill(*row) for row in rows if [*map(type, row)] == [str, str, bytes])
    return wills


def _is_sound(row: tuple[object, ...], last: int, highest: int) -> bool:
    seq, *rest = row
    return isinstance(seq, int) and last < seq <= highest and [*map(type, rest)] == [str, bytes, float, int, int]


def set_aside(path: Path, why: Literal["corrupt", "replaced"] = "corrupt") -> Path:
    """Rename a database that is not to be used, and delete all but the newest that were renamed before.

    Args:
        path: of the database.
        why: part of its new name; `replaced`: somebody has put it in the place of ours.

    Returns:
        its new name.

    Raises:
        OSError: the disk refuses.
    """
    base = f"{path.name}.{why}-"
    target = path.with_name(base + time.strftime("%Y%m%dT%H%M%SZ", time.gmtime()))
    for suffix in FILES:
        with suppress(FileNotFoundError):
            Path(f"{path}{suffix}").replace(f"{target}{suffix}")
    _forget_old(path.parent.glob(f"{base}*"))
    sync_folder(path.parent)
    return target


def _forget_old(files: Iterable[Path]) -> None:
    found = [file for file in files if not file.name.endswith(FILES[1:])]
    for old in sorted(found)[:-_KEPT]:
        for suffix in FILES:
            Path(f"{old}{suffix}").unlink(missing_ok=True)
