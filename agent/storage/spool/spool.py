"""The spool: keeps events on the disk until the broker has acknowledged them. A put takes microseconds.

The thread `spool-writer` commits all waiting events in one transaction. With durability `event`, an event is
synced before it may be sent; on a slow disk it may wait a little, so that more events share one sync. With
`batch`, it may be sent at once and is committed some seconds later, without a sync. Events are sent in the order
of their numbers. While the disk cannot be written, events stay in memory under their numbers; they are written
when the disk works again.

A put may carry a crash end: the `end` event of its track, which the next process publishes if this one dies while
the track is open.

Delivery is at least once: an acknowledgement is written with the next commit, or up to ten seconds later. After a
power cut or a crash before that, the event is sent again, with the same id and number. A gap in the numbers is a
loss, or the trace of a repair (see `agent.storage.spool.disk.Watermark`).
"""

from __future__ import annotations

import logging
import math
import sqlite3
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import Literal

from msgspec import Struct

from agent import spans
from agent.config import StorageConfig
from agent.storage.spool.disk import SpoolDisk
from agent.storage.spool.pending import LINGER_S, Commit, PendingRows, Reason
from agent.types import OpenTrack, Stored

log = logging.getLogger(__name__)


class SpoolStats(Struct, frozen=True):
    """State of the spool.

    Attributes:
        waiting: events not yet acknowledged.
        bytes: that they take, topics and bodies.
        dropped: events that were dropped undelivered, ever; kept over restarts.
        on: where new events go; `memory` while the disk fails.
        dropped_by: dropped events by reason.
    """

    waiting: int
    bytes: int
    dropped: int
    on: Literal["disk", "memory"]
    dropped_by: dict[Reason, int] = {}


_CLOSE_S = 10.0
"""For the last write, s; a disk that hangs longer does not hold up the daemon's end."""
_RETRY_S = 5.0
"""Between two attempts to write to a disk that failed, s."""
_QUIET_S = 600.0
"""Without a drop, after which an outage of dropping is over, s."""
_LATELY_S, _LATELY = 5.0, 100
"""Age, s, and number of the commits whose times count as those of now."""


class DiskLoad(Struct, frozen=True, gc=False):
    """How busy the disk of the state folder and of clips is.

    Attributes:
        commit_ms: 95th percentile of the newest commits of events to the disk, ms; None: there was none lately.
        waiting_s: how much longer than wanted the oldest event has waited to be committed, s.
        clips_behind_s: how much longer than usual the oldest picture has waited to be written into a clip, s.
    """

    commit_ms: float | None = None
    waiting_s: float = 0.0
    clips_behind_s: float = 0.0


class Spool:
    """Bounded, ordered, numbered queue. Any thread may call every method; none raises for the disk.

    Attributes:
        crash_ends: how many `end` events of the previous process were put because it died, as far as known.
    """

    def __init__(self, folder: Path, config: StorageConfig, retry_s: float = _RETRY_S) -> None:
        """Open the spool of a folder, adopt what the previous process left, and start the writer.

        Args:
            folder: existing, and owned by this process; see `agent.storage.state`.
            config: bounds and durability.
            retry_s: between two attempts to write to a disk that failed, s.
        """
        self._retry_s = retry_s
        self._disk = disk = SpoolDisk(folder / "spool.db", config)
        given = disk.next_seq() - 1
        disk.claim(given)
        self._pending = PendingRows(config, given)
        self._lock = threading.Lock()
        self._work, self._done = threading.Condition(self._lock), threading.Condition(self._lock)
        self._on_stored: Callable[[], None] | None = None
        # Requests of other threads to the writer.
        self._trouble: Exception | None = None
        self._moves = self._closing = False
        # Numbers up to which events were announced as ready to be sent, are committed, and are to be committed.
        self._announced = self._committed = self._wanted = given
        # Times are s of the monotonic clock.
        self._retry_at = self._wakes_at = self._wrote_at = 0.0
        self._commits: deque[tuple[float, float]] = deque(maxlen=_LATELY)  # when one ended, and its length, s
        self._on_disk = disk.counts
        self._logged_drops = self._dropped.get("bytes", 0)
        self._dropping: tuple[int, float, float] | None = None  # count before, beginning, newest drop
        self.crash_ends = 0
        self._adopt_recovered()
        self._thread = threading.Thread(target=self._run, name="spool-writer", daemon=True)
        self._thread.start()

    @property
    def first_seq(self) -> int:
        """The first number that this run of the daemon gives out."""
        return self._pending.first

    def put(self, topic: str, body: bytes, track: OpenTrack | None = None) -> None:
        """Add an event; return at once. It can be peeked when it is as safe as configured.

        Args:
            topic: MQTT topic of the event.
            body: JSON, see `Stored`.
            track: the crash end of its track, or that the track has ended.
        """
        with self._lock:
            self._pending.put(topic, body, track)
            self._work.notify()

    def peek(self, after_seq: int, limit: int) -> list[Stored]:
        """Return at most `limit` events above a number that may be sent and are not settled, in order."""
        with self._lock:
            ready, done = self._ready, self._pending.settled | self._pending.deleted
            waiting = (row for row in self._pending.rows.values() if row.seq > after_seq and row.seq not in done)
            held = list(islice(waiting, limit))
        rows: dict[int, Stored] = {}
        try:
            rows = {row.seq: row for row in self._disk.read(after_seq, limit, done)}
        except (sqlite3.Error, OSError) as error:
            with self._lock:
                self._trouble = error
                self._work.notify()
        rows.update((row.seq, row) for row in held)
        return [rows[seq] for seq in sorted(rows)[:limit] if seq <= ready]

    def settle(self, seqs: Iterable[int]) -> None:
        """Record that events have been acknowledged. Unknown numbers are ignored."""
        with self._lock:
            for seq in seqs:
                self._pending.settle(seq)
            if self._pending.due_at < self._wakes_at - LINGER_S:
                self._work.notify()

    def drop(self, seq: int) -> None:
        """Drop an event that can never be sent, and count it."""
        with self._lock:
            self._pending.drop(seq)

    def set_sync_interval(self, seconds: float) -> None:
        """Let an event of durability `event` wait so long before it is synced and sent, s; 0: not at all.

        More events share one sync then. At most `LINGER_S` is used.
        """
        seconds = min(LINGER_S, max(0.0, seconds))
        with self._lock:
            if seconds != self._pending.sync_interval_s:
                self._pending.set_sync_interval(seconds)
                self._work.notify()

    @property
    def is_gone(self) -> bool:
        """True if its files have been deleted or replaced: they are lost with the process, see `move`."""
        return self._disk.is_gone

    def move(self) -> None:
        """Write everything anew into the folder, which must exist; return at once.

        `is_gone` is False when that is done. Where the disk refuses, events stay in memory until it takes them.
        """
        with self._lock:
            self._moves = True
            self._work.notify()

    def on_stored(self, function: Callable[[], None] | None) -> None:
        """Call `function` whenever there is more to peek, in place of the one before. It must be quick."""
        self._on_stored = function

    def flush(self, timeout_s: float) -> bool:
        """Write all events now and wait until they are on the disk; return False after the timeout.

        Return False at once while the disk fails.
        """
        with self._lock:
            self._wanted = given = self._pending.given
            self._work.notify()
            self._done.wait_for(lambda: self._committed >= given or self._disk.failing, timeout_s)
            return self._committed >= given

    def stats(self) -> SpoolStats:
        is_gone = self._disk.is_gone  # looks at the disk, which may hang: without the lock
        with self._lock:
            waiting = max(0, self._on_disk.rows + self._pending.row_delta)
            size = self._on_disk.bytes + self._pending.bytes if waiting else 0
            by, is_lost = self._dropped, self._disk.failing or is_gone
            return SpoolStats(waiting, size, sum(by.values()), "memory" if is_lost else "disk", by)

    def load(self) -> DiskLoad:
        """Return how long commits take lately, and how late the oldest event is; clips are not in it.

        An event is late that lies in memory for longer than its durability and the sync interval want, unless the
        disk fails: that is no load, see `stats`.
        """
        now = time.monotonic()
        with self._lock:
            lately = sorted(seconds for ended, seconds in self._commits if ended > now - _LATELY_S)
            late_s = 0.0 if self._disk.failing else self._pending.late_s(now)
        commit_ms = round(lately[(len(lately) * 19 - 1) // 20] * 1e3, 3) if lately else None
        return DiskLoad(commit_ms, round(late_s, 3))

    def close(self) -> None:
        """Commit what is left and close. Log how many events could not be kept."""
        disk = self._disk
        with self._lock:
            self._closing = True
            self._work.notify()
        self._thread.join(_CLOSE_S)
        gone = self._on_disk.rows if disk.is_gone else 0
        if not self._thread.is_alive():  # else the disk hangs
            if disk.failing and not self._pending.any_open and not self._pending.rows:
                disk.mark_stale()
            disk.close()
        if lost := gone + len(self._pending.rows):
            log.error("spool: %d events were in memory only and are lost", lost)

    @property
    def _dropped(self) -> dict[Reason, int]:
        return dict(Counter(self._on_disk.dropped) + self._pending.dropped)

    @property
    def _ready(self) -> int:
        # What could be sent once stays so, also while a disk that is back takes the rows from memory.
        return self._pending.given if self._disk.failing else max(self._announced, self._pending.ready)

    @property
    def _has_news(self) -> bool:
        return bool(self._closing or self._trouble or self._moves) or self._announced < self._ready

    @property
    def _due_at(self) -> float:
        """When to write; ∞: nothing is pending."""
        if self._disk.failing:
            return self._retry_at
        return -math.inf if self._committed < self._wanted else self._pending.due_at

    def _run(self) -> None:
        going_on = True
        while going_on:
            try:
                going_on = self._turn()
            except Exception:
                log.exception("spool: internal error (please report); going on")
                time.sleep(1.0)

    def _turn(self) -> bool:
        """Wait for work and do it; return False when closing."""
        with self._lock:
            while not self._has_news and (pause_s := self._pause()) > 0:
                if not self._work.wait(pause_s):
                    break
            moves, self._moves = self._moves, False
            trouble, self._trouble = self._trouble, None
        if moves:
            self._move_files()
        if trouble is not None:
            self._disk.handle_error(trouble)
            self._adopt_recovered()  # older rows go first
        with self._lock:
            closing = self._closing
            is_due = closing or time.monotonic() >= self._due_at
            commit = self._pending.start_commit(final=closing) if is_due else None
        self._disk.claim(self._pending.given)
        if commit is not None:
            self._write(commit)
        self._adopt_recovered()
        if self._disk.failing:
            with self._lock:
                stale = self._pending.crash_ends_are_stale
            if stale:  # a kill would repeat ends: the failing disk cannot delete them
                self._disk.mark_stale()
        self._announce()
        return not closing

    def _pause(self) -> float:
        """Return the seconds to sleep now; 0 or less: none."""
        now = time.monotonic()
        pause_s = min(self._due_at - now, _QUIET_S)
        if now < self._wrote_at + LINGER_S:
            pause_s = min(pause_s, LINGER_S)  # what comes now and may linger need not wake the writer
        self._wakes_at = now + pause_s
        return pause_s

    def _move_files(self) -> None:
        self._disk.move(self._pending.given)
        with self._lock:
            self._retry_at = 0.0  # what has come meanwhile is written now
        self._adopt_recovered()
        self._call_on_stored()  # a reader may have found no rows meanwhile

    def _write(self, commit: Commit) -> None:
        began = time.monotonic()
        with spans.span("commit"):
            done = self._disk.write(commit)
        with self._lock:
            self._wrote_at = time.monotonic()
            if done and commit.insert:
                self._commits.append((self._wrote_at, self._wrote_at - began))
            if done:
                self._committed = commit.given
            else:
                self._retry_at = self._wrote_at + self._retry_s
            self._pending.finish_commit(commit, done=done)
            self._on_disk = self._disk.counts
            self._done.notify_all()

    def _adopt_recovered(self) -> None:
        """Take back rows out of a corrupt file, and put the crash ends of the previous process."""
        with self._lock:
            self._on_disk = self._disk.counts
            rows, tracks = self._disk.take_recovered()
            self._pending.restore(rows)
            self.crash_ends += self._pending.adopt_crash_ends(tracks, stale=self._disk.stale)

    def _announce(self) -> None:
        with self._lock:
            ready, announced, dropped = self._ready, self._announced, self._dropped.get("bytes", 0)
            self._announced = ready
        self._log_drops(dropped)
        if ready > announced:
            self._call_on_stored()

    def _call_on_stored(self) -> None:
        if (function := self._on_stored) is not None:
            try:
                function()
            except Exception:
                log.exception("spool: a listener for new events failed")

    def _log_drops(self, dropped: int) -> None:
        """Log dropped events once when dropping starts and once when it ends."""
        now = time.monotonic()
        if dropped > self._logged_drops:
            if self._dropping is None:
                log.warning("spool: it is full (spool_max_bytes): the oldest events are dropped for each new one")
            before, since, _ = self._dropping or (self._logged_drops, now, now)
            self._logged_drops, self._dropping = dropped, (before, since, now)
        if self._dropping is not None:
            before, since, last = self._dropping
            if self._closing or now - last > _QUIET_S:
                self._dropping = None
                log.warning("spool: %d events were dropped in %.0f s", dropped - before, last - since)
