"""The spool's rows on disk: one SQLite file in WAL mode, written so that an SD card wears little.

A commit appends the pages that it changes to a journal, which is copied into the file when it is full. Pages are
small, because most commits change a few hundred bytes. Free space in the file is used again and never given back.
Deleted rows are overwritten only where their page is written anyway.

Acknowledged rows stay as the history, for `vedette events`. They are deleted in pieces: to delete the oldest with
each new one would wear a card as much as the new ones do.
"""

from __future__ import annotations

import errno
import json
import os
import sqlite3
import threading
from collections.abc import Collection, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from msgspec import Struct

from agent.config import StorageConfig
from agent.errors import StorageError
from agent.storage.files import STATE_MODE, sync_folder
from agent.storage.spool.pending import Commit, Reason, StoredOpenTrack, size
from agent.types import Stored

SIZE = "length(body) + length(CAST(topic AS BLOB))"
"""SQL for the bytes of a row, see `agent.storage.spool.pending.size`."""

_PAGE, _FRAME = 512, 24
"""Bytes of a page in a new file, and of its header in the journal."""
_JOURNAL, _LEAST = 1 << 20, 1 << 16
"""Largest and smallest size at which the journal is copied into the file, bytes. A small partition gets less."""
_SCHEMA = """
CREATE TABLE IF NOT EXISTS spool (
    seq INTEGER PRIMARY KEY, topic TEXT NOT NULL, body BLOB NOT NULL, put_at REAL NOT NULL,
    acked INTEGER NOT NULL DEFAULT 0, settled INTEGER NOT NULL DEFAULT 0, first_seq INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE IF NOT EXISTS will (key TEXT NOT NULL, topic TEXT NOT NULL, body BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS counter (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
"""


def connect(path: Path) -> sqlite3.Connection:
    """Open a connection for any thread, in autocommit mode.

    Raises:
        sqlite3.Error, OSError: it cannot be opened.
    """
    _make_file(path)
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


def _make_file(path: Path) -> None:
    """Create an empty file for a database, if there is none; SQLite would create it with mode 0644."""
    with suppress(OSError):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, STATE_MODE))
    if path.is_symlink():
        raise OSError(errno.ELOOP, f"{path.name} is a link where a file is expected: remove it")


def _journal_bytes(folder: Path) -> int:
    """Return a sixteenth of the partition, within bounds."""
    found = os.statvfs(folder)
    return min(_JOURNAL, max(_LEAST, found.f_blocks * found.f_frsize // 16))


def prepare(connection: sqlite3.Connection) -> None:
    """Check a file and create its tables.

    Raises:
        sqlite3.DatabaseError: it is damaged.
    """
    (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if verdict != "ok":
        error = sqlite3.DatabaseError(verdict)
        error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
        raise error
    connection.executescript(_SCHEMA)


class Counts(NamedTuple):
    """Counts of a table, and how far it is acknowledged.

    A row is acknowledged if its number is at most `acked`, or if it is marked as settled, as one that overtook
    others. Each row carries the `acked` of its commit, and that of the newest row counts: so an acknowledgement
    costs no page of its own where events follow each other.

    Attributes:
        rows, bytes: of what waits.
        kept: bytes of the history: rows that have been acknowledged.
        acked: every row up to this number has been acknowledged.
        stored_acked: the `acked` in the counter, for when the newest row does not carry it.
    """

    rows: int
    bytes: int
    kept: int
    acked: int
    stored_acked: int

    def add(self, *, rows: int = 0, waiting: int = 0, kept: int = 0) -> Counts:
        """Return the counts with more rows that wait, their bytes, and bytes of history."""
        return self._replace(rows=self.rows + rows, bytes=self.bytes + waiting, kept=self.kept + kept)


def newest(connection: sqlite3.Connection) -> tuple[int, int]:
    """Return the number of the newest row and the `acked` that it carries; zeros if there is none."""
    found: tuple[int, int] | None = connection.execute(
        "SELECT seq, acked FROM spool ORDER BY seq DESC LIMIT 1"
    ).fetchone()
    return found or (0, 0)


def count(connection: sqlite3.Connection, stored_acked: int) -> Counts:
    """Count what a file holds, with `acked` of its counter."""
    acked = max(stored_acked, newest(connection)[1])
    found = connection.execute(
        f"SELECT seq <= ? OR settled AS done, count(*), sum({SIZE}) FROM spool GROUP BY done", (acked,)
    )
    by_done = {bool(done): (rows, size) for done, rows, size in found}
    return Counts(*by_done.get(False, (0, 0)), by_done.get(True, (0, 0))[1], acked, stored_acked)


_PIECE = 8
"""One piece is this fraction of the history's bytes."""


def settle(connection: sqlite3.Connection, counts: Counts, commit: Commit) -> Counts:
    """Record what has been acknowledged, before the new rows are inserted."""
    if not commit.settled:
        return counts
    acked, rows, size = _advance(connection, counts.acked, commit)
    counts = counts._replace(acked=acked).add(rows=-rows, waiting=-size, kept=size)
    if ahead := [seq for seq in commit.settled if seq > acked]:
        found = connection.execute(
            "UPDATE spool SET settled = 1 WHERE seq IN (SELECT value FROM json_each(?)) AND NOT settled "
            f"RETURNING {SIZE}",
            (json.dumps(ahead),),
        ).fetchall()
        size = sum(row_size for (row_size,) in found)
        counts = counts.add(rows=-len(found), waiting=-size, kept=size)
    return counts


def _advance(connection: sqlite3.Connection, acked: int, commit: Commit) -> tuple[int, int, int]:
    """Return the new `acked`, and how many waiting rows it settles, and their bytes."""
    count, freed = 0, 0
    statement = f"SELECT seq, settled, {SIZE} FROM spool WHERE seq > ? ORDER BY seq"
    with closing(connection.execute(statement, (acked,))) as rows:
        for seq, settled, size in rows:
            if not settled:
                if seq not in commit.settled:
                    return acked, count, freed
                count, freed = count + 1, freed + size
            acked = seq
    for row in commit.insert:
        if row.seq not in commit.settled:
            break
        acked = row.seq
    return acked, count, freed


def shorten(connection: sqlite3.Connection, counts: Counts, max_bytes: int) -> Counts:
    """Delete the oldest part of the history if it has become too large."""
    if counts.kept <= max_bytes:
        return counts
    room, last, freed = max_bytes - max_bytes // _PIECE, 0, 0
    statement = f"SELECT seq, {SIZE} FROM spool WHERE seq <= ? OR settled ORDER BY seq"
    with closing(connection.execute(statement, (counts.acked,))) as rows:
        for seq, size in rows:
            if counts.kept - freed <= room:
                break
            last, freed = seq, freed + size
    connection.execute("DELETE FROM spool WHERE seq <= ? AND (seq <= ? OR settled)", (last, counts.acked))
    return counts.add(kept=-freed)


_DROPPED = "dropped_"
"""Prefix of a reason in the name of its counter."""


class SpoolTotals(NamedTuple):
    """Counts of rows that wait in a table, and of rows that were dropped, ever, by reason."""

    rows: int = 0
    bytes: int = 0
    dropped: Mapping[Reason, int] = {}


class SpoolTable:
    """An open database.

    `read` may be called from any thread, everything else from one. Every method may raise `sqlite3.Error`
    or `OSError`, and then nothing has changed.

    Attributes:
        counts: what lies in it.
        dropped: rows that were dropped, ever, by reason.
        last_seq: highest number that was given out, as far as this file knows; kept when it is emptied.
    """

    def __init__(self, path: Path, config: StorageConfig) -> None:
        """Open the file, create it if need be, and check it."""
        self.path, self._config = path, config
        self._reading = threading.Lock()
        self._syncs: bool | None = None
        self._writer = connect(path)
        try:
            prepare(self._writer)
            self._count()
            self._reader = connect(path)
        except BaseException:
            self._writer.close()
            raise
        sync_folder(path.parent)

    def configure(self, config: StorageConfig) -> None:
        """Apply other bounds from the next commit on."""
        self._config = config

    def _count(self) -> None:
        counters = dict(self._writer.execute("SELECT name, value FROM counter").fetchall())
        self.counts = count(self._writer, counters.get("acked", 0))
        self.dropped: dict[Reason, int] = {
            name.removeprefix(_DROPPED): value for name, value in counters.items() if name.startswith(_DROPPED)
        }
        # The counter knows of numbers that are gone: it is written only when the newest row is.
        self.last_seq = max(counters.get("seq", 0), newest(self._writer)[0])

    @property
    def totals(self) -> SpoolTotals:
        """Waiting and dropped rows, as of the last commit."""
        return SpoolTotals(self.counts.rows, self.counts.bytes, self.dropped)

    def read(self, after: int, limit: int) -> list[Stored]:
        """Return the first waiting rows above a number, in order."""
        with self._reading:
            found = self._reader.execute(
                "SELECT seq, topic, body, put_at, first_seq FROM spool "
                "WHERE seq > ? AND NOT settled ORDER BY seq LIMIT ?",
                (max(after, self.counts.acked), limit),
            ).fetchall()
        return [Stored(*row) for row in found]

    def commit(self, commit: Commit) -> None:
        """Apply a commit as a whole, and keep the bounds."""
        self._sync(commit.sync)
        with self._transaction():
            counts = self._delete(self.counts, commit.delete)
            if self._config.history_max_bytes:
                counts = self._insert(settle(self._writer, counts, commit), commit)
            else:
                counts = self._delete(self._insert(counts, commit), commit.settled)
            for track in commit.tracks:
                self._set_track(track)
            counts, trimmed = self._trim(counts)
            counts = shorten(self._writer, counts, self._config.history_max_bytes)
            dropped = _sum(commit.dropped, {"bytes": trimmed} if trimmed else {})
            counts = self._write_counters(counts, commit.given, dropped)
        self.counts, self.dropped = counts, _sum(self.dropped, dropped)
        self.last_seq = max(self.last_seq, commit.given)

    def open_tracks(self) -> list[StoredOpenTrack]:
        return [StoredOpenTrack(*row) for row in self._writer.execute("SELECT key, topic, body FROM will")]

    def _set_track(self, track: StoredOpenTrack) -> None:
        """Write one crash end. The table has no index, which would be one more page to write; it is small."""
        key, topic, body = track
        if body is None:
            self._writer.execute("DELETE FROM will WHERE key = ?", (key,))
        elif not self._writer.execute(
            "UPDATE will SET topic = ?, body = ? WHERE key = ?", (topic, body, key)
        ).rowcount:
            self._writer.execute("INSERT INTO will (key, topic, body) VALUES (?, ?, ?)", track)

    def _sync(self, durable: bool) -> None:
        if durable is not self._syncs:
            self._writer.execute(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
            self._syncs = durable

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._writer.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._writer.execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):  # SQLite may have rolled back by itself
                self._writer.execute("ROLLBACK")
            raise

    def _insert(self, counts: Counts, commit: Commit) -> Counts:
        for row in commit.insert:
            ahead = row.seq > counts.acked and row.seq in commit.settled and self._config.history_max_bytes > 0
            self._writer.execute(
                "INSERT INTO spool (seq, topic, body, put_at, acked, settled, first_seq) "
                "VALUES (?, ?, ?, ?, ?, ?, ?)",
                (row.seq, row.topic, row.body, row.put_at, counts.acked, ahead, row.first_seq),
            )
            done = ahead or row.seq <= counts.acked
            counts = counts.add(kept=size(row)) if done else counts.add(rows=1, waiting=size(row))
        return counts

    def _delete(self, counts: Counts, seqs: Collection[int]) -> Counts:
        if not seqs:
            return counts
        found = self._writer.execute(
            "DELETE FROM spool WHERE seq IN (SELECT value FROM json_each(?)) "
            f"RETURNING seq <= ? OR settled, {SIZE}",
            (json.dumps(list(seqs)), counts.acked),
        ).fetchall()
        for done, row_size in found:
            counts = counts.add(kept=-row_size) if done else counts.add(rows=-1, waiting=-row_size)
        return counts

    def _trim(self, counts: Counts) -> tuple[Counts, int]:
        """Drop the oldest waiting rows if they take too much; return how many."""
        if counts.bytes <= self._config.spool_max_bytes:
            return counts, 0
        last = dropped = 0
        statement = f"SELECT seq, {SIZE} FROM spool WHERE seq > ? AND NOT settled ORDER BY seq"
        with closing(self._writer.execute(statement, (counts.acked,))) as rows:
            for seq, row_size in rows:
                if counts.bytes <= self._config.spool_max_bytes:
                    break
                last, counts, dropped = seq, counts.add(rows=-1, waiting=-row_size), dropped + 1
        self._writer.execute("DELETE FROM spool WHERE seq > ? AND seq <= ? AND NOT settled", (counts.acked, last))
        return counts, dropped

    def _write_counters(self, counts: Counts, given: int, dropped: dict[Reason, int]) -> Counts:
        """Write the counters that the newest row does not carry."""
        last, acked = newest(self._writer)
        if last < given:
            self._counter("seq", given)
        if max(acked, counts.stored_acked) < counts.acked:
            self._counter("acked", counts.acked)
            counts = counts._replace(stored_acked=counts.acked)
        for reason, number in dropped.items():
            self._counter(_DROPPED + reason, self.dropped.get(reason, 0) + number)
        return counts

    def _counter(self, name: str, value: int) -> None:
        self._writer.execute("INSERT OR REPLACE INTO counter VALUES (?, ?)", (name, value))

    def empty_journal(self) -> None:
        """Fold the journal into the database and empty it, if possible: that frees room on a full disk."""
        with suppress(sqlite3.Error):
            self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def close(self) -> None:
        """Close; SQLite folds the journal into the database with the last connection."""
        with self._reading, suppress(sqlite3.Error):
            self._reader.close()
        with suppress(sqlite3.Error):
            self._writer.close()


def _sum(some: Mapping[Reason, int], more: Mapping[Reason, int]) -> dict[Reason, int]:
    return {reason: some.get(reason, 0) + more.get(reason, 0) for reason in (*some, *more)}


_BROKEN = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
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
        while found := self._query(f"{_SELECT} WHERE seq > ? ORDER BY seq LIMIT {_CHUNK}", seq):
            yield from found
            seq = found[-1].stored.seq

    def backwards(self) -> Iterator[HistoryEntry]:
        """Yield all messages, the newest first.

        Raises:
            StorageError: the database is missing, damaged, or may not be read.
        """
        seq = 1 << 62
        while found := self._query(f"{_SELECT} WHERE seq < ? ORDER BY seq DESC LIMIT {_CHUNK}", seq):
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


def is_corrupt(error: Exception) -> bool:
    """Return True if an error says that the file is damaged, not merely unusable for now."""
    return isinstance(error, sqlite3.Error) and (getattr(error, "sqlite_errorcode", 0) & 0xFF) in _BROKEN


def recover_rows(path: Path, highest: int) -> list[Stored]:
    """Return the waiting rows of a corrupt database, up to the first that cannot be read.

    The counter and the newest readable row say how far rows have been acknowledged. Acknowledged rows that
    neither knows of are sent again.

    Args:
        path: of the database.
        highest: rows with a number above it are garbage.
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


def recover_open_tracks(path: Path) -> list[StoredOpenTrack]:
    """Return the crash ends of a corrupt database, up to the first that cannot be read."""
    tracks: list[StoredOpenTrack] = []
    with suppress(sqlite3.Error), closing(sqlite3.connect(path, timeout=2.0)) as connection:
        rows = connection.execute("SELECT key, topic, body FROM will")
        tracks.extend(StoredOpenTrack(*row) for row in rows if [*map(type, row)] == [str, str, bytes])
    return tracks


def _is_sound(row: tuple[object, ...], last: int, highest: int) -> bool:
    seq, *rest = row
    return isinstance(seq, int) and last < seq <= highest and [*map(type, rest)] == [str, bytes, float, int, int]
