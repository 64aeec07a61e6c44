"""State not yet on the spool's disk: new rows, acknowledged numbers, open tracks. Assigns the numbers.

`MemoryRows` bounds the rows in memory to `spool_max_bytes`. `agent.storage.spool.disk` bounds those on the disk.
"""

from __future__ import annotations

import math
import os
import random
import sqlite3
import stat
import time
from collections import Counter, OrderedDict
from collections.abc import Collection, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Literal, NamedTuple

from agent.config import StorageConfig
from agent.errors import StorageError
from agent.storage.files import CLOCK_SET, SAFE, STATE_MODE, check_kind, read_regular
from agent.types import OpenTrack, Stored

Reason = Literal["bytes", "unsendable"]
"""Why an event was dropped: the spool's bound of bytes; or no broker could take it."""
FILES = ("", "-wal", "-shm")
"""Suffixes of a database's files."""
LINGER_S = 5.0
"""How long a commit without a sync waits for more, s: each commit wears the card."""
_MANY = 1000
"""So many changes are committed at once."""


class StoredOpenTrack(NamedTuple):
    """The crash end of an open track, on its way to the disk or there.

    Attributes:
        key: of the track, see `OpenTrack`.
        topic: of the event.
        body: JSON of the event; None: the track has ended, and the entry is to be deleted.
    """

    key: str
    topic: str
    body: bytes | None


class OpenTracks:
    """Open tracks whose crash ends the disk does not know yet. The owner does the locking.

    They are kept apart from their events: an event may be acknowledged before the disk can be written.
    """

    def __init__(self) -> None:
        self._pending: dict[str, StoredOpenTrack] = {}
        self._open: set[str] = set()
        self._on_disk: set[str] = set()

    def __len__(self) -> int:
        return len(self._pending)

    @property
    def any_open(self) -> bool:
        """True if this process has opened a track and not ended it."""
        return bool(self._open)

    @property
    def all_ended(self) -> bool:
        """True if the disk holds crash ends, and all of them are to be deleted there."""
        pending = (self._pending.get(key) for key in self._on_disk)
        return bool(self._on_disk) and all(track is not None and track.body is None for track in pending)

    def adopt(self, track: StoredOpenTrack) -> None:
        """Delete a crash end that the previous process has left on the disk."""
        self._on_disk.add(track.key)
        self.set(track.topic, OpenTrack(track.key, None))

    def set(self, topic: str, track: OpenTrack) -> None:
        """Open a track, change its crash end, or end it."""
        self._pending[track.key] = StoredOpenTrack(track.key, topic, track.body)
        (self._open.discard if track.body is None else self._open.add)(track.key)

    def all(self) -> list[StoredOpenTrack]:
        return list(self._pending.values())

    def forget_written(self, tracks: Iterable[StoredOpenTrack]) -> None:
        """Forget what the disk knows now; what has been set since stays."""
        for track in tracks:
            (self._on_disk.discard if track.body is None else self._on_disk.add)(track.key)
            if self._pending.get(track.key) is track:
                del self._pending[track.key]


class Commit(NamedTuple):
    """The changes that one transaction writes.

    Attributes:
        insert: new rows, in order.
        settled: numbers that have been acknowledged, also of new rows; unknown ones are ignored.
        delete: numbers of rows to delete for other reasons; unknown ones are ignored.
        given: highest number given out so far; the newest of `insert`, or above.
        dropped: rows that the caller has dropped itself, to be counted.
        tracks: crash ends, to replace those of the same keys.
        sync: True if the commit must survive a power cut.
        final: True if no other commit follows.
    """

    insert: Sequence[Stored]
    settled: Collection[int]
    delete: Collection[int]
    given: int
    dropped: Mapping[Reason, int] = {}
    tracks: Sequence[StoredOpenTrack] = ()
    sync: bool = True
    final: bool = False


def size(row: Stored) -> int:
    """Return the bytes that a row counts for."""
    return len(row.body) + len(row.topic.encode())


class MemoryRows:
    """Rows by number, in order, bounded by bytes. The owner does the locking.

    Attributes:
        bytes: that the rows count for.
    """

    def __init__(self, max_bytes: int) -> None:
        self.bytes = 0
        self._max_bytes = max_bytes
        self._rows: OrderedDict[int, Stored] = OrderedDict()

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Stored]:
        return iter(self._rows.values())

    def add(self, row: Stored) -> list[int]:
        """Add the newest row; return the numbers of rows that were dropped for it."""
        self._rows[row.seq] = row
        self.bytes += size(row)
        return self._drop_excess()

    def set_bound(self, max_bytes: int) -> list[int]:
        """Change the bound; return the numbers of rows that were dropped for it."""
        self._max_bytes = max_bytes
        return self._drop_excess()

    def _drop_excess(self) -> list[int]:
        shed: list[int] = []
        while self.bytes > self._max_bytes:
            seq, row = self._rows.popitem(last=False)
            self.bytes -= size(row)
            shed.append(seq)
        return shed

    def remove(self, seq: int) -> bool:
        """Remove a row; return True if it was there."""
        row = self._rows.pop(seq, None)
        if row is not None:
            self.bytes -= size(row)
        return row is not None

    def restore(self, rows: Iterable[Stored]) -> None:
        """Insert older rows before the others."""
        older = {row.seq: row for row in rows if row.seq not in self._rows}
        self._rows = OrderedDict(sorted({**older, **self._rows}.items()))
        self.bytes += sum(map(size, older.values()))

    def after(self, seq: int, limit: int, leave_out: Container[int] = ()) -> list[Stored]:
        """Return the first rows above a number, except `leave_out`."""
        wanted = (row for row in self if row.seq > seq and row.seq not in leave_out)
        return list(islice(wanted, limit))


class PendingRows:
    """Changes that wait for a commit, forgotten when it is done. The owner does the locking.

    Attributes:
        given: highest number that was given out.
        first: first number that this run gives out.
        rows: on their way to the disk.
        settled: acknowledged numbers, of rows on the disk or on their way.
        deleted: numbers of rows to be deleted for other reasons.
        tracks: open tracks on their way to the disk.
        dropped: rows that were dropped and are not counted on the disk yet.
        sync_interval_s: longest wait of an event that needs a sync for others to share it, s.
    """

    def __init__(self, config: StorageConfig, given: int) -> None:
        self.given, self.first, self.dropped = given, given + 1, Counter[Reason]()
        self.rows = MemoryRows(config.spool_max_bytes)
        self.settled, self.deleted, self.tracks = set[int](), set[int](), OpenTracks()
        self._config = config
        self._writing, self._since = 0, math.inf
        self.sync_interval_s = 0.0
        # First number that waits for a sync, of what is pending and of what is being written; 0: none.
        self._urgent = self._urgent_writing = 0
        self._urgent_at = math.inf  # when to write what waits for a sync
        # When the first row of what is pending, and of what is being written, is to be on the disk.
        self._row_at = self._writing_row_at = math.inf

    def configure(self, config: StorageConfig) -> None:
        self._config = config
        self._count_shed(self.rows.set_bound(config.spool_max_bytes))

    def put(self, topic: str, body: bytes, track: OpenTrack | None) -> None:
        """Number an event and add it, with the crash end of its track."""
        self.given += 1
        now_s = time.monotonic()
        if self._config.durability == "event":
            self._row_at = min(self._row_at, now_s + self.sync_interval_s)
            if not self._urgent:
                self._urgent, self._urgent_at = self.given, now_s + self.sync_interval_s
        else:
            self._row_at = min(self._row_at, now_s + 2.0 * LINGER_S)
            self._linger()
        if track is not None:
            self.tracks.set(topic, track)
        self._count_shed(self.rows.add(Stored(self.given, topic, body, time.time(), self.first)))

    def _linger(self) -> None:
        self._since = min(self._since, time.monotonic())

    @property
    def ready(self) -> int:
        """Highest number up to which everything is as safe as it must be before it is sent."""
        return (self._urgent_writing or self._urgent or self.given + 1) - 1

    @property
    def due_at(self) -> float:
        """When to write, s of the monotonic clock; ∞: nothing is pending; -∞: at once."""
        many = len(self.rows) + len(self.settled) + len(self.deleted) + len(self.tracks) >= _MANY
        if many or (self._urgent and self._urgent_at <= time.monotonic()):
            return -math.inf
        return min(self._urgent_at, self._since + LINGER_S)

    def set_sync_interval(self, seconds: float) -> None:
        """Let events that need a sync wait so long for others, also those that wait now."""
        longer_s = seconds - self.sync_interval_s
        self._urgent_at += longer_s
        self._row_at += longer_s
        self.sync_interval_s = seconds

    def late_s(self, now_s: float) -> float:
        """How long ago the oldest row was to be on the disk, s; 0: none is late."""
        return max(0.0, now_s - min(self._row_at, self._writing_row_at))

    def settle(self, seq: int) -> None:
        """Record that an event has been acknowledged."""
        # With a history, a row that is not written yet stays, to be written for that.
        if self._config.history_max_bytes or not self._forget(seq):
            self.settled.add(seq)
            self._linger()

    def drop(self, seq: int) -> None:
        """Drop an event that no broker takes, and count it."""
        self.dropped["unsendable"] += 1
        if not self._forget(seq):
            self.deleted.add(seq)
            self._linger()

    def _forget(self, seq: int) -> bool:
        """Remove a row unless it is on the disk or being written; return True if it was removed."""
        return seq > self._writing and self.rows.remove(seq)

    def _count_shed(self, shed: Iterable[int]) -> None:
        for seq in shed:
            if seq in self.settled:
                self.settled.remove(seq)
            else:
                self.dropped["bytes"] += 1
            if seq <= self._writing:
                self.deleted.add(seq)
                self._linger()

    def restore(self, rows: Iterable[Stored]) -> None:
        """Take rows back that the disk has lost."""
        if lost := [row for row in rows if row.seq not in self.settled and row.seq not in self.deleted]:
            self.rows.restore(lost)
            self._linger()

    def adopt_crash_ends(self, tracks: Iterable[StoredOpenTrack], *, stale: bool) -> int:
        """Put the crash ends that the previous process has left, unless they are stale; return how many."""
        ended = 0
        for track in tracks:
            self.tracks.adopt(track)
            if track.body is not None and not stale:
                self.put(track.topic, track.body, None)
                ended += 1
        return ended

    @property
    def crash_ends_are_stale(self) -> bool:
        """True if every track with a crash end on the disk has ended, and every event here is acknowledged."""
        return self.tracks.all_ended and all(row.seq in self.settled for row in self.rows)

    def start_commit(self, *, final: bool = False) -> Commit:
        """Return everything that is pending, to be written; `finish_commit` must follow."""
        self._writing_row_at = min(self._row_at, time.monotonic()) if len(self.rows) else math.inf
        self._writing, self._since = self.given, math.inf
        self._urgent_at = self._row_at = math.inf
        self._urgent, self._urgent_writing = 0, self._urgent
        return Commit(
            list(self.rows),
            self.settled.copy(),
            self.deleted.copy(),
            self.given,
            dict(+self.dropped),
            self.tracks.all(),
            bool(self._urgent_writing),
            final,
        )

    def finish_commit(self, commit: Commit, *, done: bool) -> None:
        """Forget what has been written, or keep it where that failed; what came meanwhile stays."""
        self._writing = 0
        urgent, self._urgent_writing = self._urgent_writing, 0
        due_at, self._writing_row_at = self._writing_row_at, math.inf
        if not done:
            self._row_at = min(self._row_at, due_at)
            if urgent:
                self._urgent, self._urgent_at = urgent, -math.inf
            self._free_acknowledged()
            return
        for row in commit.insert:
            self.rows.remove(row.seq)
        self.settled.difference_update(commit.settled)
        self.deleted.difference_update(commit.delete)
        self.tracks.forget_written(commit.tracks)
        self.dropped.subtract(commit.dropped)

    def _free_acknowledged(self) -> None:
        """While the disk fails, keep only unacknowledged rows in memory."""
        for numbers in (self.settled, self.deleted):
            numbers.difference_update([seq for seq in numbers if self.rows.remove(seq)])
        self._linger()

    @property
    def row_delta(self) -> int:
        """Change of the number of undelivered rows by the next commit; negative: more were settled than added."""
        return len(self.rows) - len(self.settled) - len(self.deleted)


BLOCK = 10_000
"""Numbers that one write reserves, and the largest gap that a repair makes."""
_YEAR_S = 31_536_000.0
_FORMAT = "%020d %s\n"
_STATES = ("disk", "lost", "void")
_LENGTH = len(_FORMAT % (0, "disk"))


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

    def renew(self, given: int) -> None:
        """Write the file again after it was deleted or replaced; `given` is the highest number given out.

        Raises:
            StorageError: something else lies there, such as a link. OSError: the disk refuses.
        """
        with suppress(FileNotFoundError):
            check_kind(self.path.lstat(), stat.S_IFREG, self.path)
        self._write(max(self.value, given + BLOCK), self.trusted, stale=self.stale)

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


_BROKEN = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def is_corrupt(error: Exception) -> bool:
    """Return True if an error says that the file is damaged, not merely unusable for now."""
    return isinstance(error, sqlite3.Error) and (getattr(error, "sqlite_errorcode", 0) & 0xFF) in _BROKEN
