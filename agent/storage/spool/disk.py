"""The spool's rows on disk: one SQLite file in WAL mode, written so that an SD card wears little.

A commit appends the pages that it changes to a journal, which is copied into the file when it is full. Pages are
small, because most commits change a few hundred bytes. Free space in the file is used again and never given back.
Deleted rows are overwritten only where their page is written anyway.

Acknowledged rows stay as the history, for `vedette events`. They are deleted in pieces: to delete the oldest with
each new one would wear a card as much as the new ones do.

An outage of the disk is logged once when it begins and once when it ends. What can be read of a corrupt database
is kept, and the file is set aside for people to look at.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Collection, Container, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from agent.config import StorageConfig
from agent.errors import StorageError
from agent.storage.files import STATE_MODE, sync_folder
from agent.storage.spool.pending import (
    FILES,
    Commit,
    Reason,
    StoredOpenTrack,
    Watermark,
    is_corrupt,
    number_from_clock,
    size,
)
from agent.text import plural
from agent.types import Stored

log = logging.getLogger(__name__)
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
        last, acked = _newest(self._writer)
        acked = max(counters.get("acked", 0), acked)
        found = self._writer.execute(
            f"SELECT seq <= ? OR settled AS done, count(*), sum({SIZE}) FROM spool GROUP BY done", (acked,)
        )
        by_done = {bool(done): (rows, size) for done, rows, size in found}
        waiting, (_, kept) = by_done.get(False, (0, 0)), by_done.get(True, (0, 0))
        self.counts = Counts(*waiting, kept, acked, counters.get("acked", 0))
        self.dropped: dict[Reason, int] = {
            name.removeprefix(_DROPPED): value for name, value in counters.items() if name.startswith(_DROPPED)
        }
        # The counter knows of numbers that are gone: it is written only when the newest row is.
        self.last_seq = max(counters.get("seq", 0), last)

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
                counts = self._insert(_settle(self._writer, counts, commit), commit)
            else:
                counts = self._delete(self._insert(counts, commit), commit.settled)
            for track in commit.tracks:
                self._set_track(track)
            counts, trimmed = self._trim(counts)
            counts = self._shorten(counts)
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

    def _write_counters(self, counts: Counts, given: int, dropped: dict[Reason, int]) -> Counts:
        """Write the counters that the newest row does not carry."""
        last, acked = _newest(self._writer)
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


_REPAIR_AGAIN_S = 60.0
"""A second corruption within this time is the disk's fault, and another file would not help, s."""
_STILL_OPEN = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_BUSY)
"""After these errors the connection stays usable for reading. A full disk could not open another."""


class SpoolDisk:
    """Writes rows while the disk allows it. Only one thread may call it, except for `read`.

    Attributes:
        failing: True while rows cannot be written.
        detached: True while readable rows are in a deleted file, to which nothing is written.
        stale: True if the crash ends of the previous process must not be put: it ended well, and could not delete
            them.
        counted: what waits, as of the last time that it could be read.
    """

    def __init__(self, path: Path, config: StorageConfig) -> None:
        self.path = path
        self._set(config)
        self.failing, self._recovered, self._given = False, list[Stored](), 0
        self._inherited: list[StoredOpenTrack] | None = None
        self.stale = self.detached = False
        self._barred = False  # after `detach`: nothing is written, and no number is claimed
        self._refused = ""  # why `attach` failed the last time
        self._opened: tuple[tuple[Path, int, int], ...] = ()
        self.totals = SpoolTotals()
        self._since, self._repaired_at, self._reopened = 0.0, float("-inf"), False
        self._table: SpoolTable | None = None
        self._swap = threading.Lock()
        self._mark = Watermark(path.with_suffix(".seq"))
        try:
            self._open()
        except (sqlite3.Error, OSError) as error:
            self.handle_error(error)

    def _set(self, config: StorageConfig) -> None:
        self._config = config
        self._knows_all = config.durability == "event"  # no number is sent before it lies on the disk

    def configure(self, config: StorageConfig, given: int) -> None:
        """Apply other bounds and another durability from the next write on."""
        self._set(config)
        if self._table is not None:
            self._table.configure(config)
        self.claim(given)

    def next_seq(self) -> int:
        """Return the first number that has not been given out; see `Watermark` for gaps."""
        known = self._table.last_seq if self._table else 0
        if (known or self._mark.is_new) and self._mark.trusted and not self.failing:
            return known + 1
        if known or self._mark.known or self.failing or self._repaired_at > 0:
            seq = max(known + 1, self._mark.after())
            if not self._is_claimed(seq):  # the next run would begin with it, too
                seq = max(seq, number_from_clock())
            log.info(
                "spool %s: the numbers of this run begin at %d, above all that may have been used before",
                self.path,
                seq,
            )
            return seq
        return number_from_clock()  # a new card may be in the place of one that has counted up to anything

    def claim(self, seq: int) -> None:
        """Reserve numbers up to this one and some above it, where they may be sent before the disk knows them."""
        self._given = max(self._given, seq)
        if self.failing or not self._knows_all:
            self._is_claimed(seq)

    def _is_claimed(self, seq: int) -> bool:
        if self._barred:
            return False
        try:
            self._mark.claim(seq)
        except OSError:
            return False
        return True

    def read(self, after: int, limit: int, leave_out: Container[int]) -> list[Stored]:
        """Return the first rows above a number, in order; none while the table is closed.

        Raises:
            sqlite3.Error: they cannot be read.
        """
        rows: list[Stored] = []
        with self._swap, suppress(sqlite3.ProgrammingError):  # closed meanwhile
            while (table := self._table) is not None and len(rows) < limit:
                found = table.read(after, limit)
                rows += (row for row in found if row.seq not in leave_out)
                if len(found) < limit:
                    break
                after = found[-1].seq
        return rows

    def write(self, commit: Commit) -> bool:
        """Commit to the table; return False if that failed."""
        if self.detached or self._barred:
            return False
        try:
            table = self._table or self._open()
            if self._reopened:  # the commit that failed may yet have reached the disk: then these rows are in it
                commit = commit._replace(delete={*commit.delete, *(row.seq for row in commit.insert)})
            if commit.given:  # a spool that was never used leaves no mark
                self._mark.reserve(commit.given)
            table.commit(commit)
        except (sqlite3.Error, OSError) as error:
            self.handle_error(error)
            return False
        self._reopened = False
        self.totals = table.totals
        self._record_success(commit)
        return True

    def _open(self, moved: Commit | None = None) -> SpoolTable:
        self._table = table = SpoolTable(self.path, self._config)
        if moved is not None:  # out of another file
            table.commit(moved)
        self._opened = tuple(_file_ids(self.path, self.path.with_name(f"{self.path.name}-wal")))
        self.totals = table.totals
        self._reopened = True
        if self._inherited is None:  # the first that could be opened: all of these are of the previous process
            self._inherited, self.stale = table.open_tracks(), self._mark.stale
        return table

    @property
    def is_gone(self) -> bool:
        """True if the open files have been deleted or replaced. Any thread may read it.

        SQLite writes to deleted files without an error, and that is lost with the process.
        """
        return self.detached or any(entry not in _file_ids(entry[0]) for entry in self._opened)

    def detach(self) -> None:
        """Keep new rows in memory until `attach`: the files are gone, and no others can be made."""
        self._barred = True
        self._keep_in_memory()

    def _keep_in_memory(self) -> None:
        self.detached = self._table is not None
        if not self.failing:
            self.failing, self._since = True, time.monotonic()

    def attach(self, given: int) -> bool:
        """Write the content of the deleted files into new ones, and use those.

        Files of the same names that another program has put there are set aside.

        Returns:
            False if that failed and was logged; it may be tried again.
        """
        self._barred = False
        try:
            # First: where this fails, nothing has been set aside, and the next try sets no new file aside.
            self._mark.renew(given)
            if self._table is not None and self.is_gone:
                if any(os.path.lexists(f"{self.path}{suffix}") for suffix in FILES):
                    from agent.storage.spool.recovery import quarantine

                    aside = quarantine(self.path, "replaced")
                    log.warning(
                        "spool %s: another file was in its place; it is set aside as %s", self.path, aside.name
                    )
                self._move_rows(self._table, given)
        except (sqlite3.Error, OSError, StorageError, ImportError) as error:
            self._keep_in_memory()
            if str(error) != self._refused:
                self._log_failure(error)
            self._refused = str(error)
            return False
        self.detached, self._refused = False, ""
        return True

    def _move_rows(self, table: SpoolTable, given: int) -> None:
        """Write what waits in a deleted file into a new one; if it cannot be read any more, log what is lost."""
        rows, tracks = list[Stored](), list[StoredOpenTrack]()
        try:
            rows, tracks = table.read(0, -1), table.open_tracks()
        except sqlite3.Error as error:
            log.error("spool %s: %d events are lost with its disk: %s", self.path, table.totals.rows, error)
        with self._swap:  # no reader may find newer rows before these
            self.close()  # before the new one is opened: SQLite deletes a journal by its name
            try:
                self._open(Commit(rows, (), (), given, table.dropped, tracks))
            except BaseException:
                self._recovered = rows
                raise

    def _log_failure(self, error: Exception) -> None:
        log.error(
            "spool %s: %s: events are kept in memory until it can be written%s",
            self.path,
            getattr(error, "strerror", None) or error,
            "" if isinstance(error, StorageError) else "; make room, or look at the disk",
        )

    def handle_error(self, error: Exception) -> None:
        """Handle an error: repair a corrupt file, or fail until a write succeeds."""
        if is_corrupt(error) and self._repair(error):
            return
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code not in _STILL_OPEN or self._is_writable_again(error):
            self.close()
            with suppress(sqlite3.Error, OSError):  # rows on the disk should still be read, and go first
                self._open()
        elif code == sqlite3.SQLITE_FULL and self._table is not None:
            self._table.empty_journal()
        # Before a number is sent that the disk does not know.
        if self._given:  # else `next_seq` does
            self._is_claimed(self._given)
        if not self.failing:
            self.failing, self._since = True, time.monotonic()
            self._log_failure(error)

    def _is_writable_again(self, error: Exception) -> bool:
        """Return True for a connection that was opened on a read-only disk, which takes writes by now."""
        is_read_only = getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_READONLY
        return is_read_only and os.access(self.path, os.W_OK)

    def _repair(self, error: Exception) -> bool:
        """Set the file aside and start a new one; return False if that failed."""
        if time.monotonic() - self._repaired_at < _REPAIR_AGAIN_S:
            return False
        try:
            from agent.storage.spool.recovery import quarantine, recover_open_tracks, recover_rows
        except (ImportError, OSError):  # the disk of the code fails, too
            return False
        self._repaired_at = time.monotonic()
        self.close()
        rows, tracks = recover_rows(self.path, self._mark.after() - 1), recover_open_tracks(self.path)
        try:
            aside = quarantine(self.path)
            self._recovered = rows
            self._open(Commit((), (), (), 0, tracks=tracks))
        except (sqlite3.Error, OSError):
            return False
        events = plural(len(rows), "event")
        log.error("spool %s: %s: set aside as %s; %s saved", self.path, error, aside.name, events)
        return True

    def take_recovered(self) -> tuple[list[Stored], list[StoredOpenTrack]]:
        """Return rows out of a corrupt file, and the crash ends of the previous process: each once."""
        rows, self._recovered = self._recovered, []
        tracks = self._inherited or []
        if tracks:
            self._inherited = []
        return rows, tracks

    def mark_stale(self) -> None:
        """Mark the stored crash ends as stale, because the failing disk cannot delete them."""
        if not self._mark.stale and not self._barred:
            with suppress(OSError):
                self._mark.mark_stale()

    def _record_success(self, commit: Commit) -> None:
        # If this write fails, the next start only skips some sequence numbers.
        with suppress(OSError):
            self._mark.trust(self._knows_all or commit.final)
        if self.failing:
            self.failing = False
            seconds = time.monotonic() - self._since
            events = plural(len(commit.insert), "event")
            log.info("spool %s: back on the disk after %.0f s with %s", self.path, seconds, events)

    def close(self) -> None:
        table, self._table = self._table, None
        self._opened, self.detached = (), False
        if table is not None:
            table.close()


def _file_ids(*paths: Path) -> list[tuple[Path, int, int]]:
    """Return path, device and inode of those files that exist."""
    found = []
    for path in paths:
        with suppress(OSError):
            there = path.stat()
            found.append((path, there.st_dev, there.st_ino))
    return found
