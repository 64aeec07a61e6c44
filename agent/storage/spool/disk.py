"""The spool's files on a disk that may be full, read-only, damaged or gone, and the numbers that were given out.

An outage of the disk is logged once when it begins and once when it ends. What can be read of a corrupt database
is kept, and the file is set aside for people to look at.
"""

from __future__ import annotations

import logging
import os
import random
import sqlite3
import threading
import time
from collections.abc import Callable, Container
from contextlib import suppress
from pathlib import Path

from agent.config import StorageConfig
from agent.errors import StorageError
from agent.storage.files import CLOCK_SET, SAFE, STATE_MODE, read_regular
from agent.storage.spool.pending import Commit, StoredOpenTrack
from agent.storage.spool.table import FILES, Counts, SpoolTable, is_corrupt
from agent.text import plural
from agent.types import Stored

log = logging.getLogger(__name__)

BLOCK = 10_000
"""Numbers that one write reserves, and the largest gap that a repair makes."""
_YEAR_S = 31_536_000.0
_FORMAT = "%020d %s\n"
_STATES = ("disk", "lost", "void")
_LENGTH = len(_FORMAT % (0, "disk"))
_REPAIR_AGAIN_S = 60.0
"""A second corruption within this time is the disk's fault, and another file would not help, s."""
_STILL_OPEN = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_BUSY)
"""After these errors the connection stays usable for reading. A full disk could not open another."""


def number_from_clock() -> int:
    """Return the time in µs: a number above every count of events that a device has made.

    A clock that is not synchronised shows the same after each start. Then the number is a random time of the year
    after `CLOCK_SET`, and a run may begin below the one before, see `agent.comms.consumer`.
    """
    now = time.time()
    return int((now if now > CLOCK_SET else CLOCK_SET + random.uniform(0.0, _YEAR_S)) * 1e6)


class Watermark:
    """High-water mark: the highest number that may have been given out, in a small file beside the database.

    A sound database knows the next number, and no gap arises. If the database is corrupt or gone, or if numbers
    were given out while it could not be written, the next number is one above this mark. So no number is used
    twice; the gap that may arise is a possible loss to subscribers. The mark is raised before such numbers are
    given out. If it cannot be written, the numbers come from the clock, as in a folder without a mark.

    The file has a fixed length and is overwritten in place, which works on a full disk. Methods that write raise
    an OSError if the disk refuses.

    Attributes:
        value: no number above it has been given out, as far as known.
        known: False if the file is missing or damaged.
        trusted: True if the database knew every number that was given out when the mark was written.
        stale: True if it did not, and the crash ends in it are of tracks that have ended.
    """

    def __init__(self, path: Path) -> None:
        """Read the file; a missing or damaged one counts as 0."""
        self.path = path
        self.value, self.trusted, self.known, self.stale = 0, True, False, False
        try:
            number, state = read_regular(path, _LENGTH).decode("ascii").split()
            if number.isdecimal() and state in _STATES:
                self.value, self.trusted, self.known = int(number), state == "disk", True
                self.stale = state == "void"
        except (OSError, ValueError, StorageError):
            pass

    @property
    def is_new(self) -> bool:
        """True if the file says that no number has been given out."""
        return self.known and not self.value

    def after(self) -> int:
        """Return a number above every one given out before; without a readable file it comes from the clock."""
        return self.value + 1 if self.known else number_from_clock()

    def reserve(self, seq: int) -> None:
        """Write the mark if numbers up to `seq` and some more are not below it."""
        if self._is_near(seq):
            self._write(seq + BLOCK, self.trusted, stale=self.stale)

    def claim(self, seq: int) -> None:
        """Reserve numbers that the database will not know."""
        if self._is_near(seq) or self.trusted:
            self._write(seq + BLOCK if self._is_near(seq) else self.value, False, stale=self.stale)

    def trust(self, trusted: bool) -> None:
        """Record whether the database knows every number from here on."""
        if trusted != self.trusted or self.stale:
            self._write(self.value, trusted)

    def mark_stale(self) -> None:
        """Record that the database is behind, and that the tracks with crash ends in it have ended."""
        self._write(self.value, False, stale=True)

    def forget(self) -> None:
        """Write the file with the next numbers: it was deleted or replaced."""
        self.known = False

    def _is_near(self, seq: int) -> bool:
        return seq > self.value - BLOCK // 2 or not self.known

    def _write(self, value: int, trusted: bool, *, stale: bool = False) -> None:
        text = (_FORMAT % (value, "disk" if trusted else "void" if stale else "lost")).encode("ascii")
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK | SAFE, STATE_MODE)
        try:
            os.pwrite(descriptor, text, 0)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        self.value, self.trusted, self.known, self.stale = value, trusted, True, stale


class SpoolDisk:
    """Writes rows while the disk allows it. Only one thread may call it, except for `read` and `is_gone`.

    Attributes:
        failing: True while rows cannot be written.
        stale: True if the crash ends of the previous process must not be put: it ended well, and could not delete
            them.
        counts: what the table holds, as of the last time that it could be read.
    """

    def __init__(self, path: Path, config: StorageConfig) -> None:
        self.path, self._config = path, config
        self._knows_all = config.durability == "event"  # no number is sent before it lies on the disk
        self.failing, self._recovered, self._given = False, list[Stored](), 0
        self._inherited: list[StoredOpenTrack] | None = None
        self._moved: Commit | None = None  # out of another file, for the next one that is opened
        self.stale = False
        self._opened: tuple[tuple[Path, int, int], ...] = ()
        self.counts = Counts()
        self._since, self._repaired_at, self._reopened = 0.0, float("-inf"), False
        self._table: SpoolTable | None = None
        self._swap = threading.Lock()
        self._mark = Watermark(path.with_suffix(".seq"))
        try:
            self._open()
        except (sqlite3.Error, OSError) as error:
            self.handle_error(error)

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
        return self._note(lambda: self._mark.claim(seq))

    def _note(self, write: Callable[[], None]) -> bool:
        """Write the mark, unless its folder is gone or the disk refuses; return True if that was done."""
        if self.is_gone:
            return False
        try:
            write()
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
        try:
            table = self._table or self._open()
            if self._reopened:  # the commit that failed may yet have reached the disk: then these rows are in it
                commit = commit._replace(delete={*commit.delete, *(row.seq for row in commit.insert)})
            if commit.given and not self.is_gone:  # a spool that was never used leaves no mark
                self._mark.reserve(commit.given)
            table.commit(commit)
        except (sqlite3.Error, OSError) as error:
            self.handle_error(error)
            return False
        self._reopened = False
        self.counts = table.counts
        # If this fails, the next start only skips some sequence numbers.
        self._note(lambda: self._mark.trust(self._knows_all or commit.final))
        if self.failing:
            self.failing = False
            seconds, events = time.monotonic() - self._since, plural(len(commit.insert), "event")
            log.info("spool %s: back on the disk after %.0f s with %s", self.path, seconds, events)
        return True

    def _open(self) -> SpoolTable:
        table = SpoolTable(self.path, self._config)
        if self._moved is not None:
            try:
                table.commit(self._moved)
            except BaseException:
                table.close()
                raise
            self._moved = None
        self._table = table
        self._opened = tuple(_file_ids(self.path, self.path.with_name(f"{self.path.name}-wal")))
        self.counts = table.counts
        self._reopened = True
        if self._inherited is None:  # the first that could be opened: all of these are of the previous process
            self._inherited, self.stale = table.open_tracks(), self._mark.stale
        return table

    @property
    def is_gone(self) -> bool:
        """True if the open files have been deleted or replaced. Any thread may read it.

        SQLite writes to deleted files without an error, and that is lost with the process.
        """
        return any(entry not in _file_ids(entry[0]) for entry in self._opened)

    def move(self, given: int) -> None:
        """Write the content of deleted files into new ones, and use those.

        Files of the same names that another program has put there are set aside. Where the disk refuses, rows are
        in memory until it takes them.
        """
        self._mark.forget()
        if (table := self._table) is None or not self.is_gone:
            return
        rows, tracks = list[Stored](), list[StoredOpenTrack]()
        try:
            rows, tracks = table.read(0, -1), table.open_tracks()
        except sqlite3.Error as error:
            log.error("spool %s: %d events are lost with its disk: %s", self.path, self.counts.rows, error)
        with self._swap:  # no reader may find newer rows before these
            self._table = None  # not `close`: until the new files are open, the old ones are gone
            table.close()  # before they are opened: SQLite deletes a journal by its name
            self._moved = Commit(rows, (), (), given, table.counts.dropped, tracks)
            try:
                if any(os.path.lexists(f"{self.path}{suffix}") for suffix in FILES):
                    from agent.storage.spool.recovery import quarantine

                    name = quarantine(self.path, "replaced").name
                    log.warning("spool %s: another file was in its place; it is set aside as %s", self.path, name)
                self._mark.reserve(given)
                self._open()
                return
            except (sqlite3.Error, OSError, ImportError) as error:
                self._moved, self._recovered, why = self._moved._replace(insert=()), rows, error
                self.counts = self.counts._replace(rows=0, bytes=0)
        self.handle_error(why)

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
            log.error(
                "spool %s: %s: events are kept in memory until it can be written; make room, or look at the disk",
                self.path,
                getattr(error, "strerror", None) or error,
            )

    def _is_writable_again(self, error: Exception) -> bool:
        """Return True for a connection that was opened on a read-only disk, which takes writes by now."""
        is_read_only = getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_READONLY
        return is_read_only and os.access(self.path, os.W_OK)

    def _repair(self, error: Exception) -> bool:
        """Set the file aside and start a new one; return False if that failed."""
        if time.monotonic() - self._repaired_at < _REPAIR_AGAIN_S:
            return False
        try:
            from agent.storage.spool.recovery import quarantine, recover
        except (ImportError, OSError):  # the disk of the code fails, too
            return False
        self._repaired_at = time.monotonic()
        self.close()
        rows, tracks = recover(self.path, self._mark.after() - 1)
        try:
            aside = quarantine(self.path)
            self._recovered += rows  # after those that an earlier failure has left
            left = self._moved or Commit((), (), (), 0)
            self._moved = left._replace(tracks=[*left.tracks, *tracks])
            self._open()
        except (sqlite3.Error, OSError):
            return False
        events = plural(len(rows), "event")
        log.error("spool %s: %s: set aside as %s; %s saved", self.path, error, aside.name, events)
        return True

    def take_recovered(self) -> tuple[list[Stored], list[StoredOpenTrack]]:
        """Return rows out of a corrupt or deleted file, and the crash ends of the previous process: each once."""
        rows, self._recovered = self._recovered, []
        tracks = self._inherited or []
        if tracks:
            self._inherited = []
        return rows, tracks

    def mark_stale(self) -> None:
        """Mark the stored crash ends as stale, because the failing disk cannot delete them."""
        if not self._mark.stale:
            self._note(self._mark.mark_stale)

    def close(self) -> None:
        table, self._table = self._table, None
        self._opened = ()
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
