"""The spool's disk: its table and what stands in its way. Says once when it is lost and once when it is back."""

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
"""Bytes that opening a spool takes, and some more."""


def describe_error(error: Exception, folder: Path) -> str:
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


# A corrupt spool: what can be read of it is kept, and the file is set aside for people to look at.

_BROKEN = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
FILES = ("", "-wal", "-shm")
"""What SQLite appends to the name of a database."""
_KEPT = 2
"""Corrupt databases kept; a dying card must not fill itself with them."""


def is_corrupt(error: Exception) -> bool:
    """Whether an error says that the file is damaged, and not merely that it cannot be used now."""
    return isinstance(error, sqlite3.Error) and (getattr(error, "sqlite_errorcode", 0) & 0xFF) in _BROKEN


def recover_rows(path: Path, highest: int) -> list[Stored]:
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


def salvage_wills(path: Path) -> list[StoredOpenTrack]:
    """The wills of a corrupt database up to the first that cannot be read."""
    wills: list[StoredOpenTrack] = []
    with suppress(sqlite3.Error), closing(sqlite3.connect(path, timeout=2.0)) as connection:
        rows = connection.execute("SELECT key, topic, body FROM will")
        wills.extend(StoredOpenTrack(*row) for row in rows if [*map(type, row)] == [str, str, bytes])
    return wills


def _is_sound(row: tuple[object, ...], last: int, highest: int) -> bool:
    seq, *rest = row
    return isinstance(seq, int) and last < seq <= highest and [*map(type, rest)] == [str, bytes, float, int, int]


def quarantine(path: Path, why: Literal["corrupt", "replaced"] = "corrupt") -> Path:
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


log = logging.getLogger(__name__)

_REPAIR_AGAIN_S = 60.0
"""A second corruption so soon after the first is the disk's fault: a third file would not help."""
_STILL_OPEN = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_BUSY)
"""After these the connection is good, and what is on the disk can be read. A full disk cannot open another."""


class SpoolDisk:
    """Writes rows as long as it can. Only one thread may call it, except for `read`.

    Attributes:
        failing: whether rows cannot be written now.
        detached: rows that can be read lie in a file that has no name any more, and nothing is written to it.
        void: wills of the process before are not to be executed: it ended well, and could only not delete them.
        counted: as of the last time that it could be read.
    """

    def __init__(self, path: Path, config: StorageConfig) -> None:
        self.path = path
        self._set(config)
        self.failing, self._salvaged, self._given = False, list[Stored](), 0
        self._inherited: list[StoredOpenTrack] | None = None
        self.void = self.detached = False
        self._barred = False  # the folder is not ours: nothing is written there, and no number is claimed
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
            self.lost(error)

    def _set(self, config: StorageConfig) -> None:
        self._config = config
        self._knows_all = config.spooled == {"event"}  # no number is sent before it lies on the disk

    def configure(self, config: StorageConfig, given: int) -> None:
        """Keep to other bounds from the next write on, and to another durability.

        Args:
            config: the bounds.
            given: highest number that was given out.
        """
        self._set(config)
        if self._table is not None:
            self._table.configure(config)
        self.claim(given)

    def next_seq(self) -> int:
        """The first number that has not been given out. See `Watermark` for when it leaves a gap."""
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
        """Numbers up to this one, and some above it, may be given out that only memory knows."""
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
        """The first rows above a number, in order; none while the table is closed.

        Raises:
            sqlite3.Error: they cannot be read.
        """
        rows: list[Stored] = []
        with self._swap, suppress(sqlite3.ProgrammingError):  # closed between two looks
            while (table := self._table) is not None and len(rows) < limit:
                found = table.read(after, limit)
                rows += (row for row in found if row.seq not in leave_out)
                if len(found) < limit:
                    break
                after = found[-1].seq
        return rows

    def write(self, batch: Commit) -> bool:
        """See `SpoolTable.commit`. Whether it is done; it never raises."""
        if self.detached or self._barred:
            return False
        try:
            table = self._table or self._open()
            if self._reopened:  # the commit that failed may yet have reached the disk: then these rows are in it
                batch = batch._replace(delete={*batch.delete, *(row.seq for row in batch.insert)})
            if batch.given:  # a spool that was never used leaves no mark
                self._mark.reserve(batch.given)
            table.commit(batch)
        except (sqlite3.Error, OSError) as error:
            self.lost(error)
            return False
        self._reopened = False
        self.counted = table.counted
        self._back(batch)
        return True

    def _open(self, saved: Sequence[StoredOpenTrack] = ()) -> SpoolTable:
        self._table = table = SpoolTable(self.path, self._config)
        if saved:
            table.restore(saved)
        self._opened = tuple(_identified(self.path, self.path.with_name(f"{self.path.name}-wal")))
        self.counted = table.counted
        self._reopened = True
        if self._inherited is None:  # the first one that could be opened: none of these wills is our own
            self._inherited, self.void = table.wills(), self._mark.void
        return table

    @property
    def is_gone(self) -> bool:
        """True if the files that are open have been deleted or replaced. Any thread may ask.

        SQLite goes on writing to them without an error, and what it writes is lost with the process.
        """
        return self.detached or any(entry not in _identified(entry[0]) for entry in self._opened)

    def detach(self) -> None:
        """Keep new rows in memory until `attach`: the files are gone, and there is no folder for others."""
        self._barred = True
        self._keep_in_memory()

    def _keep_in_memory(self) -> None:
        self.detached = self._table is not None
        if not self.failing:
            self.failing, self._since = True, time.monotonic()

    def attach(self, given: int) -> bool:
        """Write what the files held that are gone into new ones, and go on there.

        Files of the same names that somebody else has put there are set aside.

        Args:
            given: highest number that was given out.

        Returns:
            False: that failed, and was told; it may be tried again.
        """
        self._barred = False
        try:
            # First: where this fails, nothing has been set aside, and no file of ours is set aside the next time.
            self._mark.renew(given)
            if self._table is not None and self.is_gone:
                if any(os.path.lexists(f"{self.path}{suffix}") for suffix in FILES):
                    aside = quarantine(self.path, "replaced")
                    log.warning("spool %s: what lay in its place is set aside as %s", self.path, aside.name)
                self._copy(self._table)
                with self._swap:  # nobody is to find newer rows before these
                    self.close()  # before the new one is opened: SQLite deletes a journal by its name
                    self._open()
        except (sqlite3.Error, OSError, StorageError) as error:
            self._keep_in_memory()
            if str(error) != self._refused:
                self._tell(error)
            self._refused = str(error)
            return False
        self.detached, self._refused = False, ""
        return True

    def _copy(self, table: SpoolTable) -> None:
        """Copy a table to its path; if its own file cannot be read any more, say what is lost with it."""
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

    def _tell(self, error: Exception) -> None:
        log.error(
            "spool %s: %s: events are kept in memory until it can be written%s",
            self.path,
            describe_error(error, self.path.parent),
            "" if isinstance(error, StorageError) else "; make room, or look at the disk",
        )

    def lost(self, error: Exception) -> None:
        """Take note of an error: repair what can be repaired, or fail until a write succeeds."""
        if is_corrupt(error) and self._repair(error):
            return
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code not in _STILL_OPEN:
            self.close()
            with suppress(sqlite3.Error, OSError):  # what lies there should still be read, and goes first
                self._open()
        elif code == sqlite3.SQLITE_FULL and self._table is not None:
            self._table.fold()
        # Before a number is given out that only memory knows.
        if self._given:  # else `next_seq` does
            self._is_claimed(self._given)
        if not self.failing:
            self.failing, self._since = True, time.monotonic()
            self._tell(error)

    def _repair(self, error: Exception) -> bool:
        """Set the file aside and start a new one; whether that worked."""
        if time.monotonic() - self._repaired_at < _REPAIR_AGAIN_S:
            return False
        self._repaired_at = time.monotonic()
        self.close()
        rows, wills = recover_rows(self.path, self._mark.after() - 1), salvage_wills(self.path)
        try:
            aside = quarantine(self.path)
            self._salvaged = rows
            self._open(wills)
        except (sqlite3.Error, OSError):
            return False
        events = plural(len(rows), "event")
        log.error("spool %s: %s: set aside as %s; %s saved", self.path, error, aside.name, events)
        return True

    def left(self) -> tuple[list[Stored], list[StoredOpenTrack]]:
        """Rows out of a corrupt file, and wills of the process before: each once."""
        rows, self._salvaged = self._salvaged, []
        wills = self._inherited or []
        if wills:
            self._inherited = []
        return rows, wills

    def revoke_wills(self) -> None:
        """What the wills there would say has been said, and they cannot be withdrawn: none is to be executed."""
        if not self._mark.void and not self._barred:
            with suppress(OSError):
                self._mark.revoke_wills()

    def _back(self, batch: Commit) -> None:
        # Were it not noted now, the next start would leave a gap in the numbers, and no more.
        with suppress(OSError):
            self._mark.trust(self._knows_all or batch.final)
        if self.failing:
            self.failing = False
            seconds = time.monotonic() - self._since
            events = plural(len(batch.insert), "event")
            log.info("spool %s: back on the disk after %.0f s with %s", self.path, seconds, events)

    def close(self) -> None:
        """Close the table, if it is open."""
        table, self._table = self._table, None
        self._opened, self.detached = (), False
        if table is not None:
            table.close()


def _identified(*paths: Path) -> list[tuple[Path, int, int]]:
    """Device and number of those files that are there."""
    found = []
    for path in paths:
        with suppress(OSError):
            there = path.stat()
            found.append((path, there.st_dev, there.st_ino))
    return found
