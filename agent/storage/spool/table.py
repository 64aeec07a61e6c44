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
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from agent.config import StorageConfig
from agent.storage.files import STATE_MODE, sync_folder
from agent.storage.spool.pending import Commit, Reason, StoredOpenTrack, size
from agent.types import Stored

FILES = ("", "-wal", "-shm")
"""Suffixes of a database's files."""
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
        dropped: rows that were dropped, ever, by reason.
    """

    rows: int = 0
    bytes: int = 0
    kept: int = 0
    acked: int = 0
    stored_acked: int = 0
    dropped: Mapping[Reason, int] = {}

    def add(self, *, rows: int = 0, waiting: int = 0, kept: int = 0) -> Counts:
        """Return the counts with more rows that wait, their bytes, and bytes of history."""
        return self._replace(rows=self.rows + rows, bytes=self.bytes + waiting, kept=self.kept + kept)


def _newest(connection: sqlite3.Connection) -> tuple[int, int]:
    """Return the number of the newest row and the `acked` that it carries; zeros if there is none."""
    found: tuple[int, int] | None = connection.execute(
        "SELECT seq, acked FROM spool ORDER BY seq DESC LIMIT 1"
    ).fetchone()
    return found or (0, 0)


_PIECE = 8
"""One piece is this fraction of the history's bytes."""


def _settle(connection: sqlite3.Connection, counts: Counts, commit: Commit) -> Counts:
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


_DROPPED = "dropped_"
"""Prefix of a reason in the name of its counter."""


class SpoolTable:
    """An open database.

    `read` may be called from any thread, everything else from one. Every method may raise `sqlite3.Error`
    or `OSError`, and then nothing has changed.

    Attributes:
        counts: what lies in it.
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

    def _count(self) -> None:
        counters = dict(self._writer.execute("SELECT name, value FROM counter").fetchall())
        last, acked = _newest(self._writer)
        acked = max(counters.get("acked", 0), acked)
        found = self._writer.execute(
            f"SELECT seq <= ? OR settled AS done, count(*), sum({SIZE}) FROM spool GROUP BY done", (acked,)
        )
        by_done = {bool(done): (rows, size) for done, rows, size in found}
        waiting, (_, kept) = by_done.get(False, (0, 0)), by_done.get(True, (0, 0))
        dropped = {name.removeprefix(_DROPPED): n for name, n in counters.items() if name.startswith(_DROPPED)}
        self.counts = Counts(*waiting, kept, acked, counters.get("acked", 0), dropped)
        # The counter knows of numbers that are gone: it is written only when the newest row is.
        self.last_seq = max(counters.get("seq", 0), last)

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
                counts = self._insert(_settle(self._writer, counts, commit), commit)
            else:
                counts = self._delete(self._insert(counts, commit), commit.settled)
            for track in commit.tracks:
                self._set_track(track)
            counts, trimmed = self._trim(counts)
            counts = self._shorten(counts)
            dropped = Counter[Reason]({"bytes": trimmed}) + Counter(commit.dropped)
            counts = self._write_counters(counts, commit.given, dropped)
        self.counts = counts
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
        most = self._config.spool_max_bytes
        if counts.bytes <= most:
            return counts, 0
        last, rows, freed = self._oldest("seq > ? AND NOT settled", counts.acked, counts.bytes - most)
        self._writer.execute("DELETE FROM spool WHERE seq > ? AND seq <= ? AND NOT settled", (counts.acked, last))
        return counts.add(rows=-rows, waiting=-freed), rows

    def _shorten(self, counts: Counts) -> Counts:
        """Delete the oldest part of the history if it has become too large."""
        most = self._config.history_max_bytes
        if counts.kept <= most:
            return counts
        last, _, freed = self._oldest("(seq <= ? OR settled)", counts.acked, counts.kept - most + most // _PIECE)
        self._writer.execute("DELETE FROM spool WHERE seq <= ? AND (seq <= ? OR settled)", (last, counts.acked))
        return counts.add(kept=-freed)

    def _oldest(self, which: str, acked: int, excess: int) -> tuple[int, int, int]:
        """Return the last of the oldest rows that take this excess of bytes, their number and their bytes."""
        last = rows = freed = 0
        statement = f"SELECT seq, {SIZE} FROM spool WHERE {which} ORDER BY seq"
        with closing(self._writer.execute(statement, (acked,))) as found:
            for seq, row_size in found:
                if freed >= excess:
                    break
                last, rows, freed = seq, rows + 1, freed + row_size
        return last, rows, freed

    def _write_counters(self, counts: Counts, given: int, dropped: Mapping[Reason, int]) -> Counts:
        """Write the counters that the newest row does not carry."""
        last, acked = _newest(self._writer)
        if last < given:
            self._counter("seq", given)
        if max(acked, counts.stored_acked) < counts.acked:
            self._counter("acked", counts.acked)
            counts = counts._replace(stored_acked=counts.acked)
        total = Counter(counts.dropped) + Counter(dropped)
        for reason in dropped:
            self._counter(_DROPPED + reason, total[reason])
        return counts._replace(dropped=dict(total))

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


_BROKEN = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def is_corrupt(error: Exception) -> bool:
    """Return True if an error says that the file is damaged, not merely unusable for now."""
    return isinstance(error, sqlite3.Error) and (getattr(error, "sqlite_errorcode", 0) & 0xFF) in _BROKEN
