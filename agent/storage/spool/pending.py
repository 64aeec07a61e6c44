"""State not yet on the spool's disk: new rows, acknowledged numbers, open tracks. Assigns the numbers."""

from __future__ import annotations

import math
import time
from collections import Counter, OrderedDict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

from agent.config import StorageConfig
from agent.types import OpenTrack, Stored

Reason = Literal["bytes", "unsendable"]
"""Why an event was dropped: the spool's bound of bytes; or no broker could take it."""
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


class PendingRows:
    """Changes that wait for a commit, forgotten when it is done. The owner does the locking.

    Rows in memory take at most `spool_max_bytes`, as do those that wait on the disk. Crash ends are kept apart
    from their events: an event may be acknowledged before the disk can be written.

    Attributes:
        given: highest number that was given out.
        first: first number that this run gives out.
        rows: on their way to the disk, by number, in order.
        bytes: that they count for.
        settled: acknowledged numbers, of rows on the disk or on their way.
        deleted: numbers of rows to be deleted for other reasons.
        tracks: crash ends on their way to the disk, by the key of their track.
        dropped: rows that were dropped and are not counted on the disk yet.
        sync_interval_s: longest wait of an event that needs a sync for others to share it, s.
    """

    def __init__(self, config: StorageConfig, given: int) -> None:
        self.given, self.first, self.dropped = given, given + 1, Counter[Reason]()
        self.rows, self.bytes = OrderedDict[int, Stored](), 0
        self.settled, self.deleted = set[int](), set[int]()
        self.tracks = dict[str, StoredOpenTrack]()
        self._open_here, self._on_disk = set[str](), set[str]()  # keys of tracks
        self._config = config
        self._writing, self._since = 0, math.inf
        self.sync_interval_s = 0.0
        # First number that waits for a sync, of what is pending and of what is being written; 0: none.
        self._urgent = self._urgent_writing = 0
        # When the first row of what is pending, and of what is being written, is to be on the disk.
        self._row_at = self._writing_row_at = math.inf

    def put(self, topic: str, body: bytes, track: OpenTrack | None) -> None:
        """Number an event and add it, with the crash end of its track."""
        self.given += 1
        now_s = time.monotonic()
        if self._config.durability == "event":
            self._row_at = min(self._row_at, now_s + self.sync_interval_s)
            self._urgent = self._urgent or self.given
        else:
            self._row_at = min(self._row_at, now_s + 2.0 * LINGER_S)
            self._linger()
        if track is not None:
            self._set_track(topic, track.key, track.body)
        self._add(Stored(self.given, topic, body, time.time(), self.first))
        while self.bytes > self._config.spool_max_bytes:
            self._shed(next(iter(self.rows)))

    def _set_track(self, topic: str, key: str, body: bytes | None) -> None:
        """Open a track, change its crash end, or end it."""
        self.tracks[key] = StoredOpenTrack(key, topic, body)
        (self._open_here.discard if body is None else self._open_here.add)(key)

    def _add(self, row: Stored) -> None:
        self.rows[row.seq] = row
        self.bytes += size(row)

    def _remove(self, seq: int) -> bool:
        """Remove a row; return True if it was there."""
        if (row := self.rows.pop(seq, None)) is not None:
            self.bytes -= size(row)
        return row is not None

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
        urgent_at = self._row_at if self._urgent else math.inf
        if many or urgent_at <= time.monotonic():
            return -math.inf
        return min(urgent_at, self._since + LINGER_S)

    def set_sync_interval(self, seconds: float) -> None:
        """Let events that need a sync wait so long for others, also those that wait now."""
        self._row_at += seconds - self.sync_interval_s
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
        return seq > self._writing and self._remove(seq)

    def _shed(self, seq: int) -> None:
        """Drop a row, and count it unless it was acknowledged."""
        self._remove(seq)
        if seq in self.settled:
            self.settled.remove(seq)
        else:
            self.dropped["bytes"] += 1
        if seq <= self._writing:
            self.deleted.add(seq)
            self._linger()

    def restore(self, rows: Iterable[Stored]) -> None:
        """Take rows back that the disk has lost."""
        done = self.settled | self.deleted | self.rows.keys()
        if lost := [row for row in rows if row.seq not in done]:
            for row in lost:
                self._add(row)
            self.rows = OrderedDict(sorted(self.rows.items()))
            self._linger()

    def adopt_crash_ends(self, tracks: Iterable[StoredOpenTrack], *, stale: bool) -> int:
        """Put the crash ends that the previous process has left, unless they are stale; return how many."""
        ended = 0
        for track in tracks:
            self._on_disk.add(track.key)
            self._set_track(track.topic, track.key, None)
            if track.body is not None and not stale:
                self.put(track.topic, track.body, None)
                ended += 1
        return ended

    @property
    def any_open(self) -> bool:
        """True if this process has opened a track and not ended it."""
        return bool(self._open_here)

    @property
    def crash_ends_are_stale(self) -> bool:
        """True if every track with a crash end on the disk has ended, and every event here is acknowledged."""
        pending = [self.tracks.get(key) for key in self._on_disk]
        all_ended = all(track is not None and track.body is None for track in pending)
        return bool(pending) and all_ended and self.settled.issuperset(self.rows)

    def start_commit(self, *, final: bool = False) -> Commit:
        """Return everything that is pending, to be written; `finish_commit` must follow."""
        self._writing_row_at = min(self._row_at, time.monotonic()) if len(self.rows) else math.inf
        self._writing, self._since = self.given, math.inf
        self._row_at = math.inf
        self._urgent, self._urgent_writing = 0, self._urgent
        return Commit(
            list(self.rows.values()),
            self.settled.copy(),
            self.deleted.copy(),
            self.given,
            dict(+self.dropped),
            list(self.tracks.values()),
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
            self._urgent = urgent or self._urgent
            # While the disk fails, memory is for rows that are not acknowledged.
            for numbers in (self.settled, self.deleted):
                numbers.difference_update([seq for seq in numbers if self._remove(seq)])
            self._linger()
            return
        for row in commit.insert:
            self._remove(row.seq)
        self.settled.difference_update(commit.settled)
        self.deleted.difference_update(commit.delete)
        for track in commit.tracks:
            (self._on_disk.discard if track.body is None else self._on_disk.add)(track.key)
            if self.tracks.get(track.key) is track:  # else it has changed since
                del self.tracks[track.key]
        self.dropped.subtract(commit.dropped)

    @property
    def row_delta(self) -> int:
        """Change of the number of undelivered rows by the next commit; negative: more were settled than added."""
        return len(self.rows) - len(self.settled) - len(self.deleted)
