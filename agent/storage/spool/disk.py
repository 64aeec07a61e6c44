"""The spool's disk: opens the table, detects failures and corruption, and recovers from them.

An outage is logged once when it begins and once when it ends. What can be read of a corrupt database is kept, and
the file is set aside for people to look at.
"""

from __future__ import annotations

import errno
import logging
import os
import sqlite3
import tempfile
import threading
import time
from collections.abc import Container, Iterable, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Literal

from agent.config.device import StorageConfig
from agent.errors import StorageError
from agent.storage.files import sync_folder
from agent.storage.spool.pending import Commit, StoredOpenTrack
from agent.storage.spool.table import Counted, SpoolTable
from agent.storage.spool.watermark import Watermark, number_from_clock
from agent.text import plural
from agent.types import Stored

_ERRNO = {sqlite3.SQLITE_FULL: errno.ENOSPC, sqlite3.SQLITE_READONLY: errno.EROFS}
_UNTOLD = (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN)
_ROOM = 64 * 1024
"""Bytes that opening a spool needs, and some more."""


def describe_error(error: Exception, folder: Path) -> str:
    """Describe an error in the system's words, followed by SQLite's.

    Args:
        error: of SQLite or of the system.
        folder: where it occurred; where SQLite does not tell the cause, writing a file there is tried.
    """
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    number = _errno_of_writing(folder) if code in _UNTOLD else _ERRNO.get(code)
    if number is not None:
        return f"{os.strerror(number)} ({error})"
    return getattr(error, "strerror", None) or str(error)


def _errno_of_writing(folder: Path) -> int | None:
    """Return the error number of writing a new file; None: that works."""
    try:
        with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
            left = _ROOM
            while left > 0:
                left -= file.write(bytes(left))
    except OSError as error:
        return error.errno
    return None


_BROKEN = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
FILES = ("", "-wal", "-shm")
"""Suffixes of a database's files."""
_KEPT = 2
"""How many corrupt databases are kept; a dying card must not fill up with them."""


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


def quarantine(path: Path, why: Literal["corrupt", "replaced"] = "corrupt") -> Path:
    """Rename a database that is not to be used, and delete all but the newest renamed ones.

    Args:
        path: of the database.
        why: part of its new name; `replaced`: another program has put it there.

    Returns:
        its new path.

    Raises:
        OSError: the disk refuses.
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


log = logging.getLogger(__name__)

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
        self.counted = Counted()
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
        """Apply other bounds and another durability from the next write on.

        Args:
            config: bounds and durability.
            given: highest number that was given out.
        """
        self._set(config)
        if self._table is not None:
            self._table.configure(config)
        self.claim(given)

    def next_seq(self) -> int:
        """Return the first number that has not been given out. `Watermark` tells when it leaves a gap."""
        known = self._table.last_seq if self._table else 0
        if (known or self._mark.is_new) and self._mark.trusted and not self.failing:
            return known + 1
        if known or self._mark.known or self.failing or self._repaired_at > 0:
            seq = max(known + 1, self._mark.after())
            if not self._is_claimed(seq):  # the next run would begin with it, too
                seq = max(seq, number_from_clock())
            log.info("spool %s: not every number of the last run is known: going on with %d", self.path, seq)
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
        self.counted = table.counted
        self._record_success(commit)
        return True

    def _open(self, saved: Sequence[StoredOpenTrack] = ()) -> SpoolTable:
        self._table = table = SpoolTable(self.path, self._config)
        if saved:
            table.restore(saved)
        self._opened = tuple(_file_ids(self.path, self.path.with_name(f"{self.path.name}-wal")))
        self.counted = table.counted
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

        Args:
            given: highest number that was given out.

        Returns:
            False if that failed and was logged; it may be tried again.
        """
        self._barred = False
        try:
            # First: where this fails, nothing has been set aside, and the next try sets no new file aside.
            self._mark.renew(given)
            if self._table is not None and self.is_gone:
                if any(os.path.lexists(f"{self.path}{suffix}") for suffix in FILES):
                    aside = quarantine(self.path, "replaced")
                    log.warning(
                        "spool %s: another file was in its place; it is set aside as %s", self.path, aside.name
                    )
                self._copy(self._table)
                with self._swap:  # no reader may find newer rows before these
                    self.close()  # before the new one is opened: SQLite deletes a journal by its name
                    self._open()
        except (sqlite3.Error, OSError, StorageError) as error:
            self._keep_in_memory()
            if str(error) != self._refused:
                self._log_failure(error)
            self._refused = str(error)
            return False
        self.detached, self._refused = False, ""
        return True

    def _copy(self, table: SpoolTable) -> None:
        """Copy a table to its path; if its own file cannot be read any more, log what is lost."""
        try:
            table.copy_to(self.path)
        except sqlite3.Error as error:
            self.path.unlink(missing_ok=True)
            try:
                table.check_readable()
            except sqlite3.Error:
                log.error("spool %s: %d events are lost with its disk: %s", self.path, table.counted.rows, error)
            else:
                raise

    def _log_failure(self, error: Exception) -> None:
        log.error(
            "spool %s: %s: events are kept in memory until it can be written%s",
            self.path,
            describe_error(error, self.path.parent),
            "" if isinstance(error, StorageError) else "; make room, or look at the disk",
        )

    def handle_error(self, error: Exception) -> None:
        """Handle an error: repair a corrupt file, or fail until a write succeeds."""
        if is_corrupt(error) and self._repair(error):
            return
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code not in _STILL_OPEN:
            self.close()
            with suppress(sqlite3.Error, OSError):  # rows on the disk should still be read, and go first
                self._open()
        elif code == sqlite3.SQLITE_FULL and self._table is not None:
            self._table.fold()
        # Before a number is sent that the disk does not know.
        if self._given:  # else `next_seq` does
            self._is_claimed(self._given)
        if not self.failing:
            self.failing, self._since = True, time.monotonic()
            self._log_failure(error)

    def _repair(self, error: Exception) -> bool:
        """Set the file aside and start a new one; return False if that failed."""
        if time.monotonic() - self._repaired_at < _REPAIR_AGAIN_S:
            return False
        self._repaired_at = time.monotonic()
        self.close()
        rows, tracks = recover_rows(self.path, self._mark.after() - 1), recover_open_tracks(self.path)
        try:
            aside = quarantine(self.path)
            self._recovered = rows
            self._open(tracks)
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
        """Close the table, if it is open."""
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
