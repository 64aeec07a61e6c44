"""The spool: events lie on the disk until the broker has them. Puts cost microseconds.

A put hands its event to the thread `spool-writer`, which commits what has come together in one transaction.
With durability `event`, an event is synced before it may be sent; with `batch`, it may be sent at once and is
committed some seconds later, without a sync. Events are sent in the order of their numbers. While the disk
cannot be written they are kept in memory, under the same numbers, and are written when it is back.

A put may carry a crash end: the `end` event of its track, which the next process publishes if this one dies while
the track is open.

Delivery is at least once: an acknowledgement is written with the next commit, or up to ten seconds later. After a
power cut or a crash before that, the event is sent again, with the same id and number. A gap in the numbers is a
loss, or the trace of a repair (see `watermark`).
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal

from msgspec import Struct

from agent.config.device import StorageConfig
from agent.storage.spool.disk import SpoolDisk
from agent.storage.spool.pending import Reason
from agent.storage.spool.writer import Writer
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


class Spool:
    """Bounded, ordered, numbered queue. Any thread may call every method; none raises for the disk."""

    def __init__(self, folder: Path, config: StorageConfig) -> None:
        """Open the spool of a folder.

        Args:
            folder: existing, and owned by this process; see `agent.storage.files`.
            config: bounds and durability.
        """
        disk = SpoolDisk(folder / "spool.db", config)
        given = disk.next_seq() - 1
        disk.claim(given)
        self._writer = Writer(config, disk, given)
        self._lock, self._pending = self._writer.lock, self._writer.pending
        self._writer.start()

    @property
    def first_seq(self) -> int:
        """The first number that this run of the daemon gives out."""
        return self._pending.first

    @property
    def crash_ends(self) -> int:
        """How many `end` events of the previous process were put because it died, as far as known."""
        return self._writer.crash_ends

    def put(self, topic: str, body: bytes, track: OpenTrack | None = None) -> None:
        """Add an event; return at once. It can be peeked when it is as safe as configured.

        Args:
            topic: MQTT topic of the event.
            body: JSON, see `Stored`.
            track: the crash end of its track, or that the track has ended.
        """
        with self._lock:
            self._pending.put(topic, body, track)
            self._writer.wake()

    def peek(self, after_seq: int, limit: int) -> list[Stored]:
        """Return at most `limit` events above a number that may be sent and are not settled, in order."""
        with self._lock:
            ready, done = self._writer.ready, self._pending.settled | self._pending.deleted
            held = self._pending.rows.after(after_seq, limit, done)
        rows: dict[int, Stored] = {}
        try:
            rows = {row.seq: row for row in self._writer.disk.read(after_seq, limit, done)}
        except (sqlite3.Error, OSError) as error:
            self._writer.report(error)
        rows.update((row.seq, row) for row in held)
        return [rows[seq] for seq in sorted(rows)[:limit] if seq <= ready]

    def settle(self, seqs: Iterable[int]) -> None:
        """Record that events have been acknowledged. Unknown numbers are ignored."""
        with self._lock:
            for seq in seqs:
                self._pending.settle(seq)
            if self._writer.schedule.is_late_for(self._pending.due_at):
                self._writer.wake()

    def drop(self, seq: int) -> None:
        """Drop an event that can never be sent, and count it."""
        with self._lock:
            self._pending.drop(seq)

    def configure(self, config: StorageConfig) -> None:
        """Apply other bounds and another durability at once; the folder in `config` is ignored."""
        self._writer.configure(config)

    @property
    def is_gone(self) -> bool:
        """True if its files have been deleted or replaced; see `attach`."""
        return self._writer.disk.is_gone

    def detach(self) -> None:
        """Keep new events in memory from now on: the files are gone, and cannot be made again yet."""
        self._writer.move("detach")

    def attach(self) -> None:
        """Write everything anew into the folder, which must exist; return at once.

        `is_gone` is False when that is done. Where it fails, events stay in memory, and this may be called again.
        """
        self._writer.move("attach")

    def on_stored(self, function: Callable[[], None] | None) -> None:
        """Call `function` whenever there is more to peek, in place of the one before. It must be quick."""
        self._writer.on_stored = function

    def flush(self, timeout_s: float) -> bool:
        """Write all events now and wait until they are on the disk; return False after the timeout.

        Return False at once while the disk fails.
        """
        writer = self._writer
        with self._lock:
            writer.wanted = given = self._pending.given
            writer.wake()
            writer.done.wait_for(lambda: writer.committed >= given or writer.disk.failing, timeout_s)
            return writer.committed >= given

    def stats(self) -> SpoolStats:
        """Return the state now."""
        with self._lock:
            on_disk, by = self._writer.on_disk, self._writer.dropped
            waiting = max(0, on_disk.rows + self._pending.row_delta)
            size = on_disk.bytes + self._pending.rows.bytes if waiting else 0
            where: Literal["disk", "memory"] = "memory" if self._writer.disk.failing else "disk"
            return SpoolStats(waiting, size, sum(by.values()), where, by)

    def close(self) -> None:
        """Commit what is left and close. Log how many events could not be kept."""
        disk = self._writer.disk
        detached = self._writer.on_disk.rows if disk.detached else 0
        if self._writer.stop():
            if disk.failing and not self._pending.tracks.any_open and not len(self._pending.rows):
                disk.mark_stale()
            disk.close()
        if lost := detached + len(self._pending.rows):
            log.error("spool: %d events were in memory only and are lost", lost)
