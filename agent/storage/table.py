"""The spool's rows on disk: one SQLite file in WAL mode. Rules about when to write are the spool's."""

from __future__ import annotations

import json
import os
import sqlite3
import threading
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from agent.config import StorageConfig
from agent.messages import Stored
from agent.storage.durable import sync_folder
from agent.storage.watermark import CLOCK_SET
from agent.storage.wills import LeftWill

_SCHEMA = """
CREATE TABLE IF NOT EXISTS spool (
    seq INTEGER PRIMARY KEY, topic TEXT NOT NULL, body BLOB NOT NULL, put_at REAL NOT NULL
);
CREATE TABLE IF NOT EXISTS will (key TEXT PRIMARY KEY, topic TEXT NOT NULL, body BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS counter (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
INSERT OR IGNORE INTO counter VALUES ('dropped', 0), ('seq', 0);
"""
_JOURNAL_PAGES, _LEAST_PAGES, _PAGE = 256, 16, 4096
"""1 MiB, or less where there is little room: the journal must not be what fills a small partition."""
_SIZE = "length(body) + length(CAST(topic AS BLOB))"


def size(row: Stored) -> int:
    """Bytes that a row counts for."""
    return len(row.body) + len(row.topic.encode())


def _journal_pages(folder: Path) -> int:
    """A sixteenth of the partition, within bounds."""
    found = os.statvfs(folder)
    return min(_JOURNAL_PAGES, max(_LEAST_PAGES, found.f_blocks * found.f_frsize // _PAGE // 16))


class Batch(NamedTuple):
    """What one commit changes.

    Attributes:
        insert: new rows, in order.
        delete: numbers to delete; unknown ones do not matter.
        given: highest number given out so far; the newest of `insert`, or above.
        dropped: rows that the caller has dropped itself, to be counted.
        wills: to replace those of the same keys.
    """

    insert: Sequence[Stored]
    delete: Collection[int]
    given: int
    dropped: int = 0
    wills: Sequence[LeftWill] = ()


class Table:
    """An open database.

    `read` may be called from any thread, everything else from one. Every method may raise `sqlite3.Error`
    or `OSError`, and then nothing has changed.

    Attributes:
        rows, bytes: what lies in it.
        dropped: rows that were dropped for the bounds, ever.
        last_seq: highest number that was given out, as far as this file knows; kept when it is emptied.
    """

    def __init__(self, path: Path, config: StorageConfig) -> None:
        """Open, create if need be, and check.

        Args:
            path: of the file, in an existing folder.
            config: bounds and durability.
        """
        self.path, self._config = path, config
        self._reading = threading.Lock()
        self._syncs: bool | None = None
        self._writer = self._connect()
        try:
            self._check_and_count()
            self._reader = self._connect()
        except BaseException:
            self._writer.close()
            raise
        sync_folder(path.parent)

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, timeout=2.0, isolation_level=None, check_same_thread=False)
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            pages = _journal_pages(self.path.parent)
            connection.execute(f"PRAGMA wal_autocheckpoint={pages}")
            connection.execute(f"PRAGMA journal_size_limit={pages * _PAGE}")
        except BaseException:
            connection.close()
            raise
        return connection

    def _check_and_count(self) -> None:
        (verdict,) = self._writer.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            error = sqlite3.DatabaseError(verdict)
            error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
            raise error
        self._writer.executescript(_SCHEMA)
        (self.rows, self.bytes) = self._one(f"SELECT count(*), ifnull(sum({_SIZE}), 0) FROM spool")
        (self.dropped,) = self._one("SELECT value FROM counter WHERE name = 'dropped'")
        # The counter knows of numbers that are gone: it is written only when the newest row is.
        (counted,) = self._one("SELECT value FROM counter WHERE name = 'seq'")
        self.last_seq = max(counted, self._newest())

    def _newest(self) -> int:
        (seq,) = self._one("SELECT ifnull(max(seq), 0) FROM spool")
        return seq

    def _one(self, statement: str, *arguments: object) -> tuple[int, ...]:
        row: tuple[int, ...] = self._writer.execute(statement, arguments).fetchone()
        return row

    def read(self, after: int, limit: int) -> list[Stored]:
        """The first rows above a number, in order."""
        with self._reading:
            found = self._reader.execute(
                "SELECT seq, topic, body, put_at FROM spool WHERE seq > ? ORDER BY seq LIMIT ?", (after, limit)
            ).fetchall()
        return [Stored(*row) for row in found]

    def commit(self, batch: Batch) -> None:
        """Change everything or nothing, and keep the bounds."""
        # A deletion that a power cut undoes only means that a message is sent twice.
        self._sync(self._config.durability == "event" and bool(batch.insert or batch.wills))
        rows, held = self.rows, self.bytes
        with self._transaction():
            count, freed = self._delete(batch.delete)
            self._writer.executemany(
                "INSERT INTO spool VALUES (?, ?, ?, ?)",
                ((r.seq, r.topic, r.body, r.put_at) for r in batch.insert),
            )
            for will in batch.wills:
                self._will(will)
            rows, held = rows + len(batch.insert) - count, held + sum(map(size, batch.insert)) - freed
            count, freed = self._trim(held)
            dropped = batch.dropped + count
            self._count(dropped, batch.given)
        self.rows, self.bytes, self.dropped = rows - count, held - freed, self.dropped + dropped
        self.last_seq = max(self.last_seq, batch.given)

    def wills(self) -> list[LeftWill]:
        """Every will."""
        return [LeftWill(*row) for row in self._writer.execute("SELECT key, topic, body FROM will")]

    def restore(self, wills: Iterable[LeftWill]) -> None:
        """Put wills back that were saved out of another file."""
        with self._transaction():
            for will in wills:
                self._will(will)

    def _will(self, will: LeftWill) -> None:
        if will.body is None:
            self._writer.execute("DELETE FROM will WHERE key = ?", (will.key,))
        else:
            self._writer.execute("INSERT OR REPLACE INTO will VALUES (?, ?, ?)", will)

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

    def _delete(self, seqs: Collection[int]) -> tuple[int, int]:
        """Delete rows; gives how many there were, and their bytes."""
        if not seqs:
            return 0, 0
        statement = f"DELETE FROM spool WHERE seq IN (SELECT value FROM json_each(?)) RETURNING {_SIZE}"
        freed = self._writer.execute(statement, (json.dumps(list(seqs)),)).fetchall()
        return len(freed), sum(row_bytes for (row_bytes,) in freed)

    def _count(self, dropped: int, given: int) -> None:
        if dropped:
            self._writer.execute("UPDATE counter SET value = value + ? WHERE name = 'dropped'", (dropped,))
        if self._newest() < given:
            self._writer.execute("UPDATE counter SET value = ? WHERE name = 'seq'", (given,))

    def _trim(self, held: int) -> tuple[int, int]:
        """Drop the oldest rows that are too old or too many; gives how many, and their bytes.

        A row that was stamped before the clock was set has no known age.
        """
        oldest, last, count, freed = time.time() - self._config.spool_max_age_s, 0, 0, 0
        statement = f"SELECT seq, put_at, {_SIZE} FROM spool ORDER BY seq"
        with closing(self._writer.execute(statement)) as rows:
            for seq, put_at, row_bytes in rows:
                if held - freed <= self._config.spool_max_bytes and not CLOCK_SET < put_at < oldest:
                    break
                last, count, freed = seq, count + 1, freed + row_bytes
        if count:
            self._writer.execute("DELETE FROM spool WHERE seq <= ?", (last,))
        return count, freed

    def fold(self) -> None:
        """Fold the journal into the database and empty it, if that is possible: it gives room on a full disk."""
        with suppress(sqlite3.Error):
            self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def close(self) -> None:
        """Close; the last one to close folds the journal into the database."""
        with self._reading, suppress(sqlite3.Error):
            self._reader.close()
        with suppress(sqlite3.Error):
            self._writer.close()
