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
import math
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

from agent.config import Kind, StorageConfig
from agent.messages import Stored, Will
from agent.storage.backlog import Backlog
from agent.storage.batch import Batch, Reason
from agent.storage.disk import Disk
from agent.storage.drops import Drops
from agent.storage.hook import Hook
from agent.storage.stats import SpoolStats
from agent.storage.table import Counted
from agent.storage.timetable import Timetable
from agent.storage.watermark import number_from_clock

log = logging.getLogger(__name__)

_CLOSE_S = 10.0
"""For the last write; a disk that hangs longer does not hold up the daemon's end."""


class Spool:
    """Bounded, ordered, numbered. Every method may be called from any thread and none raises for the disk.

    Attributes:
        executed: how many events the last process left as its wills, as far as they are known.
    """

    def __init__(self, folder: Path, config: StorageConfig) -> None:
        """Open the spool of a folder that nobody else uses.

        Args:
            folder: existing; see `agent.storage.durable`.
            config: bounds and durability.
        """
        self._config = config
        self._lock = threading.Lock()
        self._work, self._done = threading.Condition(self._lock), threading.Condition(self._lock)
        self._timetable = Timetable()
        self._hook = Hook()
        self._trouble: Exception | None = None
        self._next: StorageConfig | None = None
        self._closing = False
        self._disk = None if config.spooled == {"memory"} else Disk(folder / "spool.db", config)
        given = (self._disk.next_seq() if self._disk else number_from_clock()) - 1
        if self._disk is not None:
            self._disk.claim(given)
        self._backlog = Backlog(config, given)
        self._announced = self._committed = self._wanted = given
        self._on_disk = self._disk.counted if self._disk else Counted()
        self._drops = Drops(self._dropped())
        self.executed = 0
        self._take_left()
        self._thread = threading.Thread(target=self._run, name="spool-writer", daemon=True)
        self._thread.start()

    def put(self, topic: str, body: bytes, will: Will | None = None, kind: Kind = "events") -> None:
        """Take an event; returns at once. It can be peeked when it is as safe as its kind is to be."""
        with self._lock:
            self._backlog.add(topic, body, will, kind)
            self._work.notify()

    def takes(self, kind: Kind) -> bool:
        """Whether messages of a kind go through here; else they are sent at QoS 0."""
        return kind != "detections" or self._config.of(kind) != "memory"

    def peek(self, after_seq: int, limit: int) -> list[Stored]:
        """Events above a number that may be sent and are not settled, in order, at most `limit`."""
        with self._lock:
            ready, done = self._ready, self._backlog.settled | self._backlog.deleted
            held = self._backlog.memory.after(after_seq, limit) + self._backlog.held.after(after_seq, limit, done)
        rows: dict[int, Stored] = {}
        try:
            rows = {row.seq: row for row in self._disk.read(after_seq, limit, done)} if self._disk else {}
        except (sqlite3.Error, OSError) as error:
            with self._lock:
                self._trouble = error
                self._work.notify()
        rows.update((row.seq, row) for row in held)
        return [rows[seq] for seq in sorted(rows)[:limit] if seq <= ready]

    def settle(self, seqs: Iterable[int]) -> None:
        """Events have been acknowledged. Unknown numbers do not matter."""
        with self._lock:
            for seq in seqs:
                self._backlog.settle(seq)
            if self._timetable.is_late_for(self._backlog.due_at):
                self._work.notify()

    def drop(self, seq: int) -> None:
        """An event can never be sent: it goes, and is counted."""
        with self._lock:
            self._backlog.drop(seq, "unsendable")

    def configure(self, config: StorageConfig) -> None:
        """Go on with other bounds and another durability, and keep to them at once.

        Args:
            config: the folder counts for nothing, and durability must be `memory` for everything if and only if
                it was so: see `agent.restart`.
        """
        with self._lock:
            self._next = config
            self._work.notify()

    def on_stored(self, hook: Callable[[], None] | None) -> None:
        """Call `hook` whenever there is more to peek, in place of the one before. It must be quick."""
        self._hook.set(hook)

    def flush(self, timeout_s: float) -> bool:
        """Write also those puts that wait for company, and wait until they lie on the disk; whether they do.

        Returns at once while the disk fails: nothing can be told then.
        """
        with self._lock:
            self._wanted = given = self._backlog.given
            self._work.notify()
            self._done.wait_for(lambda: self._committed >= given or self._in_memory, timeout_s)
            return self._disk is None or self._committed >= given

    def stats(self) -> SpoolStats:
        """State now."""
        with self._lock:
            waiting = max(0, self._on_disk.rows + self._backlog.more)
            size = self._on_disk.bytes + self._backlog.bytes if waiting else 0
            by = self._dropped()
            return SpoolStats(waiting, size, sum(by.values()), "memory" if self._in_memory else "disk", by)

    def _dropped(self) -> dict[Reason, int]:
        return dict(Counter(self._on_disk.dropped) + self._backlog.dropped)

    def close(self) -> None:
        """Commit what is left and close. Says what could not be kept."""
        with self._lock:
            self._closing = True
            self._work.notify()
        self._thread.join(_CLOSE_S)
        if self._disk is not None and not self._thread.is_alive():
            if self._disk.failing and not self._backlog.wills.any_open and not self._backlog.held:
                self._disk.revoke_wills()
            self._disk.close()
        if lost := len(self._backlog.held) + len(self._backlog.memory):
            log.error("spool: %d events lay in memory only and go with it", lost)

    @property
    def _in_memory(self) -> bool:
        return self._disk is None or self._disk.failing

    @property
    def _ready(self) -> int:
        # What could be sent once can be sent: also while a disk that is back takes what lay in memory.
        return self._backlog.given if self._in_memory else max(self._announced, self._backlog.ready)

    def _run(self) -> None:
        going_on = True
        while going_on:
            try:
                going_on = self._turn()
            except Exception:
                log.exception("spool: a defect in Vedette; going on")
                time.sleep(1.0)

    def _turn(self) -> bool:
        """Wait for work and do it; whether there will be more."""
        with self._lock:
            while not self._has_news and (pause_s := self._timetable.pause(self._due_at)) > 0:
                self._work.wait(pause_s)
            config, self._next = self._next, None
        if config is not None:
            self._take_up(config)
        with self._lock:
            closing, trouble, self._trouble = self._closing, self._trouble, None
            batch = self._batch(looked=self._look(), final=closing)
        if self._disk is not None:
            self._disk.claim(self._backlog.given)
            if trouble is not None:
                self._disk.lost(trouble)
            elif batch is not None:
                self._write(self._disk, batch)
            self._take_left()
        self._announce()
        return not closing

    def _take_up(self, config: StorageConfig) -> None:
        """The disk first: numbers that only memory knows are reserved there before they are given out."""
        if self._disk is not None:
            self._disk.configure(config, self._backlog.given)
        with self._lock:
            self._config = config
            self._backlog.configure(config)
            self._timetable.look_now()

    @property
    def _has_news(self) -> bool:
        """Whether there is something to do at once."""
        return bool(self._closing or self._trouble or self._next) or self._announced < self._ready

    @property
    def _due_at(self) -> float:
        """When to write, s of the monotonic clock."""
        if self._disk is None:
            return math.inf
        if self._disk.failing:
            return self._timetable.retry_at
        return -math.inf if self._committed < self._wanted else self._backlog.due_at

    def _look(self) -> bool:
        """From time to time, drop what is too old; whether it was time."""
        if not self._timetable.look():
            return False
        self._backlog.expire(time.time() - self._config.spool_max_age_s)
        return True

    def _batch(self, *, looked: bool, final: bool) -> Batch | None:
        """What to write now, if anything is due and the disk is to be tried."""
        if (disk := self._disk) is None:
            return None
        is_due = final or (looked and not disk.failing) or time.monotonic() >= self._due_at
        return self._backlog.take(final=final) if is_due else None

    def _write(self, disk: Disk, batch: Batch) -> None:
        done = disk.write(batch)
        with self._lock:
            self._timetable.wrote(done=done)
            self._backlog.wrote(batch, done=done)
            self._on_disk = disk.counted
            if done:
                self._committed = batch.given
            self._done.notify_all()

    def _take_left(self) -> None:
        """What the disk gave back: rows out of a corrupt file, and wills of the process before this one."""
        if self._disk is None:
            return
        with self._lock:
            self._on_disk = self._disk.counted
            rows, wills = self._disk.left()
            self._backlog.restore(rows)
            self.executed += self._backlog.inherit(wills, void=self._disk.void)

    def _announce(self) -> None:
        with self._lock:
            ready, announced, dropped = self._ready, self._announced, self._dropped()
            self._announced = ready
        self._drops.look(dropped, final=self._closing)
        if ready > announced:
            self._hook.call()
