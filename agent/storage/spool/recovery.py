"""The spool's database when the daemon does not write it: read for people, or set aside since it is corrupt."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from msgspec import Struct

from agent.errors import StorageError
from agent.storage.files import sync_folder
from agent.storage.spool.pending import StoredOpenTrack
from agent.storage.spool.table import FILES, is_corrupt
from agent.types import Stored

_CHUNK = 200
"""Rows per query."""
_SELECT = """
WITH newest AS (SELECT acked FROM spool ORDER BY seq DESC LIMIT 1),
     mark AS (SELECT max(ifnull((SELECT value FROM counter WHERE name = 'acked'), 0),
                         ifnull((SELECT acked FROM newest), 0)) AS acked)
SELECT seq, topic, body, put_at, first_seq, seq <= mark.acked OR settled FROM spool, mark
"""


class HistoryEntry(Struct, frozen=True):
    """A message of the spool.

    Attributes:
        stored: as it was put, with its number.
        acknowledged: True if the broker has it; that is recorded up to ten seconds later.
    """

    stored: Stored
    acknowledged: bool


class History:
    """The messages of a state folder, read beside the daemon: those that wait and those that the broker has.

    Every query opens the database and closes it: an open reader would keep the journal from being emptied, and
    would not notice that a damaged file has been set aside.
    """

    def __init__(self, folder: Path) -> None:
        """Name the database of a state folder; nothing is opened yet."""
        self._path = folder / "spool.db"

    def after(self, seq: int) -> Iterator[HistoryEntry]:
        """Yield messages above a number, in order.

        Raises:
            StorageError: the database is missing, damaged, or may not be read.
        """
        return self._pages("seq > ? ORDER BY seq", seq)

    def backwards(self) -> Iterator[HistoryEntry]:
        """Yield all messages, the newest first. Raises as `after` does."""
        return self._pages("seq < ? ORDER BY seq DESC", 1 << 62)

    def _pages(self, which: str, seq: int) -> Iterator[HistoryEntry]:
        while found := self._query(f"{_SELECT} WHERE {which} LIMIT {_CHUNK}", seq):
            yield from found
            seq = found[-1].stored.seq

    def _query(self, statement: str, seq: int) -> list[HistoryEntry]:
        try:
            with closing(self._open()) as connection:
                rows = connection.execute(statement, (seq,)).fetchall()
        except FileNotFoundError as error:
            what = "no history is kept here; look at [storage] state_dir, or give the folder by --folder"
            raise StorageError(f"{self._path}: no such file: {what}") from error
        except (OSError, sqlite3.Error) as error:
            what = "is damaged" if is_corrupt(error) else "cannot be read"
            why = getattr(error, "strerror", None) or error
            raise StorageError(
                f"{self._path}: {what}: {why}; run this as root, or as the user that runs vedette"
            ) from error
        return [HistoryEntry(Stored(*row[:5]), bool(row[5])) for row in rows]

    def _open(self) -> sqlite3.Connection:
        with self._path.open("rb"):  # SQLite does not say why it cannot
            pass
        # A writer has a journal. Without one, the file can be read as it is, even in a folder where this user may
        # not create the files that SQLite puts beside it.
        has_journal = os.path.lexists(f"{self._path}-wal")
        how = "mode=ro" if has_journal else "mode=ro&immutable=1"
        return sqlite3.connect(f"file:{quote(str(self._path))}?{how}", uri=True, timeout=2.0)


def recover(path: Path, highest: int) -> tuple[list[Stored], list[StoredOpenTrack]]:
    """Return the waiting rows and the crash ends of a corrupt database, up to the first that cannot be read.

    The counter and the newest readable row say how far rows have been acknowledged. Acknowledged rows that
    neither knows of are sent again.

    Args:
        path: of the database.
        highest: rows with a number above it are garbage.
    """
    rows: list[tuple[Stored, bool]] = []
    last = acked = 0
    for row in _readable(path, "SELECT seq, topic, body, put_at, acked, settled FROM spool ORDER BY seq"):
        if [*map(type, row)] == [int, str, bytes, float, int, int] and last < row[0] <= highest:
            last, acked = row[0], max(acked, row[4])
            rows.append((Stored(*row[:4]), bool(row[5])))
    for (value,) in _readable(path, "SELECT value FROM counter WHERE name = 'acked'"):
        if isinstance(value, int) and value <= highest:
            acked = max(acked, value)
    tracks = _readable(path, "SELECT key, topic, body FROM will")
    return (
        [row for row, settled in rows if row.seq > acked and not settled],
        [StoredOpenTrack(*track) for track in tracks if [*map(type, track)] == [str, str, bytes]],
    )


def _readable(path: Path, statement: str) -> Iterator[tuple[Any, ...]]:
    with suppress(sqlite3.Error), closing(sqlite3.connect(path, timeout=2.0)) as connection:
        yield from connection.execute(statement)


_KEPT = 2
"""How many corrupt databases are kept; a dying card must not fill up with them."""


def quarantine(path: Path, why: Literal["corrupt", "replaced"] = "corrupt") -> Path:
    """Rename a database that is not to be used, and delete all but the newest renamed ones.

    Args:
        path: of the database.
        why: part of its new name; `replaced`: another program has put it there.

    Returns:
        its new path.
    """
    base = f"{path.name}.{why}-"
    target = path.with_name(base + time.strftime("%Y%m%dT%H%M%SZ", time.gmtime()))
    for suffix in FILES:
        with suppress(FileNotFoundError):
            Path(f"{path}{suffix}").replace(f"{target}{suffix}")
    _delete_old(path.parent.glob(f"{base}*"))
    sync_folder(path.parent)
    return target


def _delete_old(files: Iterable[Path]) -> None:
    found = [file for file in files if not file.name.endswith(FILES[1:])]
    for old in sorted(found)[:-_KEPT]:
        for suffix in FILES:
            Path(f"{old}{suffix}").unlink(missing_ok=True)
