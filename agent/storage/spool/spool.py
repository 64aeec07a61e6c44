"""The spool: events on their way out lie on the disk until the broker has them. Puts cost microseconds.

A put hands its event over to the thread `spool-writer`, which commits whatever has come together in one
transaction. How long an event may wait for company, and whether it may be sent before, depends on its kind: see
`agent.config.DurabilityConfig`. However that is, events are peeked in the order of their numbers. While the disk
cannot be written they lie in memory, in the same order and under the same numbers, and go to the disk when it is
back.

A put may bring a will with it: what is to be said if the process dies before it says so itself. The next process
puts what the last one's wills say, as its first events.

Delivery is at least once: that an event has been acknowledged is noted on the disk with the next commit, or up to
ten seconds later; if a power cut or a crash comes before that, it is sent again, with the same id and number.
A gap in the numbers is a loss, or the trace of a repair (see `watermark`).
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal

from msgspec import Struct

from agent.config.device import Kind, StorageConfig
from agent.storage.spool.disk import SpoolDisk
from agent.storage.spool.pending import Reason
from agent.storage.spool.watermark import number_from_clock
from agent.storage.spool.writer import Writer
from agent.types import Stored, Will


class SpoolStats(Struct, frozen=True):
    """State of the spool.

    Attributes:
        waiting: events not yet acknowledged.
        bytes: that they take, topics and bodies.
        dropped: events that went without having been delivered, ever; kept over restarts.
        on: where new events go; `disk` also where that is so for some kinds only.
        dropped_by: of those dropped, by reason.
    """

    waiting: int
    bytes: int
    dropped: int
    on: Literal["disk", "memory"]
    dropped_by: dict[Reason, int] = {}


log = logging.getLogger(__name__)


class Spool:
    """Bounded, ordered, numbered. Every method may be called from any thread and none raises for the disk."""

    def __init__(self, folder: Path, config: StorageConfig) -> None:
        """Open the spool of a folder that nobody else uses.

        Args:
            folder: existing; see `agent.storage.files`.
            config: bounds and durability.
        """
        disk = None if config.spooled == {"memory"} else SpoolDisk(folder / "spool.db", config)
        given = (disk.next_seq() if disk else number_from_clock()) - 1
        if disk is not None:
            disk.claim(given)
        self._writer = Writer(config, disk, given)
        self._lock, self._backlog = self._writer.lock, self._writer.backlog
        self._writer.start()

    @property
    def first_seq(self) -> int:
        """The first number that this run of the daemon gives out."""
        return self._backlog.first

    @property
    def executed(self) -> int:
        """How many events the last process left as its wills, as far as they are known."""
        return self._writer.executed

    def put(self, topic: str, body: bytes, will: Will | None = None, kind: Kind = "events") -> None:
        """Take an event; returns at once. It can be peeked when it is as safe as its kind is to be."""
        with self._lock:
            self._backlog.put(topic, body, will, kind)
            self._writer.wake()

    def takes(self, kind: Kind) -> bool:
        """Whether messages of a kind go through here; else they are sent at QoS 0."""
        return kind != "detections" or self._writer.config.of(kind) != "memory"

    def peek(self, after_seq: int, limit: int) -> list[Stored]:
        """Events above a number that may be sent and are not settled, in order, at most `limit`."""
        with self._lock:
            ready, done = self._writer.ready, self._backlog.settled | self._backlog.deleted
            held = self._backlog.memory.after(after_seq, limit) + self._backlog.held.after(after_seq, limit, done)
        rows: dict[int, Stored] = {}
        try:
            disk = self._writer.disk
            rows = {row.seq: row for row in disk.read(after_seq, limit, done)} if disk else {}
        except (sqlite3.Error, OSError) as error:
            self._writer.report(error)
        rows.update((row.seq, row) for row in held)
        return [rows[seq] for seq in sorted(rows)[:limit] if seq <= ready]

    def settle(self, seqs: Iterable[int]) -> None:
        """Events have been acknowledged. Unknown numbers do not matter."""
        with self._lock:
            for seq in seqs:
                self._backlog.settle(seq)
            if self._writer.timetable.is_late_for(self._backlog.due_at):
                self._writer.wake()

    def drop(self, seq: int) -> None:
        """An event can never be sent: it goes, and is counted."""
        with self._lock:
            self._backlog.drop(seq, "unsendable")

    def configure(self, config: StorageConfig) -> None:
        """Go on with other bounds and another durability, and keep to them at once.

        Args:
            config: the folder counts for nothing, and durability must be `memory` for everything if and only if
                it was so: see `agent.config.diff`.
        """
        self._writer.configure(config)

    @property
    def is_gone(self) -> bool:
        """True if its files have been deleted or replaced under it; see `attach`."""
        disk = self._writer.disk
        return disk is not None and disk.is_gone

    def detach(self) -> None:
        """Keep new events in memory from now on: its files are gone, and cannot be made again yet."""
        self._writer.move("detach")

    def attach(self) -> None:
        """Write everything anew into the folder, which must be there; returns at once.

        `is_gone` is False when that is done. Where it fails, events stay in memory, and this may be called again.
        """
        self._writer.move("attach")

    def on_stored(self, hook: Callable[[], None] | None) -> None:
        """Call `hook` whenever there is more to peek, in place of the one before. It must be quick."""
        self._writer.hook.set(hook)

    def flush(self, timeout_s: float) -> bool:
        """Write also those puts that wait for company, and wait until they lie on the disk; whether they do.

        Returns at once while the disk fails: nothing can be told then.
        """
        writer = self._writer
        with self._lock:
            writer.wanted = given = self._backlog.given
            writer.wake()
            writer.done.wait_for(lambda: writer.committed >= given or writer.in_memory, timeout_s)
            return writer.disk is None or writer.committed >= given

    def stats(self) -> SpoolStats:
        """State now."""
        with self._lock:
            on_disk, by = self._writer.on_disk, self._writer.dropped
            waiting = max(0, on_disk.rows + self._backlog.more)
            size = on_disk.bytes + self._backlog.bytes if waiting else 0
            return SpoolStats(waiting, size, sum(by.values()), "memory" if self._writer.in_memory else "disk", by)

    def close(self) -> None:
        """Commit what is left and close. Says what could not be kept."""
        disk = self._writer.disk
        nowhere = self._writer.on_disk.rows if disk is not None and disk.detached else 0
        if self._writer.stop() and disk is not None:
            if disk.failing and not self._backlog.wills.any_open and not self._backlog.held:
                disk.revoke_wills()
            disk.close()
        if lost := nowhere + len(self._backlog.held) + len(self._backlog.memory):
            log.error("spool: %d events lay in memory only and go with it", lost)
