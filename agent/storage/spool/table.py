"""The spool's rows on disk: one SQLite file in WAL mode. Rules about when to write are the spool's."""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from agent.config import StorageConfig
from agent.messages import Stored
from agent.storage import kept
from agent.storage.batch import Batch, Reason, size
from agent.storage.database import SIZE, connect, make_file, prepare
from agent.storage.durable import sync_folder
from agent.storage.tally import Tally, count, newest
from agent.storage.watermark import CLOCK_SET
from agent.storage.wills import LeftWill

_DROPPED = "dropped_"
"""Before a reason, in the name of its counter."""


class Counted(NamedTuple):
    """What waits in a table, and what it has dropped, ever, by reason."""

    rows: int = 0
    bytes: int = 0
    dropped: Mapping[Reason, int] = {}


class Table:
    """An open database.

    `read` may be called from any thread, everything else from one. Every method may raise `sqlite3.Error`
    or `OSError`, and then nothing has changed.

    Attributes:
        tally: what lies in it.
        dropped: rows that were dropped, ever, by reason.
        last_seq: highest number that was given out, as far as this file knows; kept when it is emptied.
    """

    def __init__(self, path: Path, config: StorageConfig) -> None:
        """Open, create if need be, and check.

        Args:
            path: of the file, in an existing folder.
            config: bounds.
        """
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
        """Keep to other bounds from the next commit on."""
        self._config = config

    def _count(self) -> None:
        counters = dict(self._writer.execute("SELECT name, value FROM counter").fetchall())
        self.tally = count(self._writer, counters.get("acked", 0))
        self.dropped: dict[Reason, int] = {
            name.removeprefix(_DROPPED): value for name, value in counters.items() if name.startswith(_DROPPED)
        }
        # The counter knows of numbers that are gone: it is written only when the newest row is.
        self.last_seq = max(counters.get("seq", 0), newest(self._writer)[0])

    @property
    def counted(self) -> Counted:
        """As of the last commit."""
        return Counted(self.tally.rows, self.tally.bytes, self.dropped)

    def read(self, after: int, limit: int) -> list[Stored]:
        """The first rows above a number that wait, in order."""
        with self._reading:
            found = self._reader.execute(
                "SELECT seq, topic, body, put_at, first_seq FROM spool "
                "WHERE seq > ? AND NOT settled ORDER BY seq LIMIT ?",
                (max(after, self.tally.acked), limit),
            ).fetchall()
        return [Stored(*row) for row in found]

    def commit(self, batch: Batch) -> None:
        """Change everything or nothing, and keep the bounds."""
        self._sync(batch.sync)
        with self._transaction():
            tally = self._delete(self.tally, batch.delete)
            if self._config.history_max_bytes:
                tally = self._insert(kept.settle(self._writer, tally, batch), batch)
            else:
                tally = self._delete(self._insert(tally, batch), batch.settled)
            for will in batch.wills:
                self._will(will)
            tally, trimmed = self._trim(tally)
            tally = kept.shorten(self._writer, tally, self._config)
            dropped = _sum(batch.dropped, trimmed)
            tally = self._note(tally, batch.given, dropped)
        self.tally, self.dropped = tally, _sum(self.dropped, dropped)
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
        """They are few, and searched one by one: an index would be one more page to write."""
        key, topic, body = will
        if body is None:
            self._writer.execute("DELETE FROM will WHERE key = ?", (key,))
        elif not self._writer.execute(
            "UPDATE will SET topic = ?, body = ? WHERE key = ?", (topic, body, key)
        ).rowcount:
            self._writer.execute("INSERT INTO will (key, topic, body) VALUES (?, ?, ?)", will)

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

    def _insert(self, tally: Tally, batch: Batch) -> Tally:
        for row in batch.insert:
            ahead = row.seq > tally.acked and row.seq in batch.settled and self._config.history_max_bytes > 0
            self._writer.execute(
                "INSERT INTO spool (seq, topic, body, put_at, acked, settled, first_seq) "
                "VALUES (?, ?, ?, ?, ?, ?, ?)",
                (row.seq, row.topic, row.body, row.put_at, tally.acked, ahead, row.first_seq),
            )
            done = ahead or row.seq <= tally.acked
            tally = tally.keeps(size(row)) if done else tally.waits(1, size(row))
        return tally

    def _delete(self, tally: Tally, seqs: Collection[int]) -> Tally:
        if not seqs:
            return tally
        found = self._writer.execute(
            "DELETE FROM spool WHERE seq IN (SELECT value FROM json_each(?)) "
            f"RETURNING seq <= ? OR settled, {SIZE}",
            (json.dumps(list(seqs)), tally.acked),
        ).fetchall()
        for done, row_size in found:
            tally = tally.keeps(-row_size) if done else tally.waits(-1, -row_size)
        return tally

    def _trim(self, tally: Tally) -> tuple[Tally, dict[Reason, int]]:
        """Drop the oldest rows that wait and are too old or too many; and how many by reason.

        A row that was stamped before the clock was set has no known age.
        """
        oldest, last, dropped = time.time() - self._config.spool_max_age_s, 0, dict[Reason, int]()
        statement = f"SELECT seq, put_at, {SIZE} FROM spool WHERE seq > ? AND NOT settled ORDER BY seq"
        with closing(self._writer.execute(statement, (tally.acked,))) as rows:
            for seq, put_at, row_size in rows:
                too_old = CLOCK_SET < put_at < oldest
                if tally.bytes <= self._config.spool_max_bytes and not too_old:
                    break
                reason: Reason = "age" if too_old else "bytes"
                last, tally = seq, tally.waits(-1, -row_size)
                dropped[reason] = dropped.get(reason, 0) + 1
        if dropped:
            self._writer.execute(
                "DELETE FROM spool WHERE seq > ? AND seq <= ? AND NOT settled", (tally.acked, last)
            )
        return tally, dropped

    def _note(self, tally: Tally, given: int, dropped: dict[Reason, int]) -> Tally:
        """Write the counters that say what the newest row does not."""
        last, acked = newest(self._writer)
        if last < given:
            self._counter("seq", given)
        if max(acked, tally.noted) < tally.acked:
            self._counter("acked", tally.acked)
            tally = tally._replace(noted=tally.acked)
        for reason, number in dropped.items():
            self._counter(_DROPPED + reason, self.dropped.get(reason, 0) + number)
        return tally

    def _counter(self, name: str, value: int) -> None:
        self._writer.execute("INSERT OR REPLACE INTO counter VALUES (?, ?)", (name, value))

    def fold(self) -> None:
        """Fold the journal into the database and empty it, if that is possible: it gives room on a full disk."""
        with suppress(sqlite3.Error):
            self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def copy_to(self, path: Path) -> None:
        """Write everything into a new file, also where this table's own file has lost its name."""
        make_file(path)
        with closing(sqlite3.connect(path, timeout=2.0)) as copy:
            self._writer.backup(copy)

    def check_readable(self) -> None:
        """Read every row; raises like the others where the file cannot be read any more."""
        self._writer.execute("SELECT sum(length(body)) FROM spool").fetchone()

    def close(self) -> None:
        """Close; the last one to close folds the journal into the database."""
        with self._reading, suppress(sqlite3.Error):
            self._reader.close()
        with suppress(sqlite3.Error):
            self._writer.close()


def _sum(some: Mapping[Reason, int], more: Mapping[Reason, int]) -> dict[Reason, int]:
    return {reason: some.get(reason, 0) + more.get(reason, 0) for reason in (*some, *more)}
