"""The spool: events on their way out lie on the disk until the broker has them. Puts cost microseconds.

A put hands its event over to the thread `spool-writer`, which commits whatever has come together in one
transaction. While the disk cannot be written the events lie in memory, in the same order and under the same
numbers, and go to the disk when it is back.

A put may bring a will with it: what is to be said if the process dies before it says so itself. The next process
puts what the last one's wills say, as its first events.

Delivery is at least once: an acknowledged event whose deletion a power cut undid is sent again, with the same
id and the same number. A gap in the numbers is a loss, or the trace of a repair (see `watermark`).
"""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from agent.config import StorageConfig
from agent.messages import Stored, Will
from agent.storage.backlog import Backlog
from agent.storage.deletions import LINGER_S
from agent.storage.disk import Disk
from agent.storage.stats import SpoolStats
from agent.storage.table import Batch
from agent.storage.watermark import number_from_clock

log = logging.getLogger(__name__)

_RETRY_S = 5.0
"""Between two attempts to write to a disk that failed."""
_LOOK_S = 60.0
"""Between two looks for rows that have become too old."""
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
        self._look_at = time.monotonic() + _LOOK_S
        self._retry_at = self._wakes_at = self._wrote_at = 0.0
        self._hook: Callable[[], None] | None = None
        self._trouble: Exception | None = None
        self._closing = False
        self._disk = None if config.durability == "memory" else Disk(folder / "spool.db", config)
        given = (self._disk.next_seq() if self._disk else number_from_clock()) - 1
        self._backlog = Backlog(config.spool_max_bytes, given, has_disk=self._disk is not None)
        self._announced = self._committed = given
        self.executed = 0
        self._take_left()
        self._thread = threading.Thread(target=self._run, name="spool-writer", daemon=True)
        self._thread.start()

    def put(self, topic: str, body: bytes, will: Will | None = None) -> None:
        """Take an event; returns at once. It can be peeked when it is committed, and its will holds then."""
        with self._lock:
            self._backlog.add(topic, body, will)
            self._work.notify()

    def peek(self, after_seq: int, limit: int) -> list[Stored]:
        """Committed events above a number that are not settled, in order, at most `limit`."""
        with self._lock:
            held = self._backlog.held.after(after_seq, limit) if self._in_memory else []
            settled = self._backlog.deletions.all()
        rows: dict[int, Stored] = {}
        try:
            rows = {row.seq: row for row in self._disk.read(after_seq, limit, settled)} if self._disk else {}
        except (sqlite3.Error, OSError) as error:
            with self._lock:
                self._trouble = error
                self._work.notify()
        rows.update((row.seq, row) for row in held)
        return [rows[seq] for seq in sorted(rows)[:limit]]

    def settle(self, seqs: Iterable[int]) -> None:
        """Forget events that have been acknowledged. Unknown numbers do not matter."""
        with self._lock:
            for seq in seqs:
                self._backlog.settle(seq)
            if self._backlog.deletions.due_at < self._wakes_at - LINGER_S:
                self._work.notify()

    def on_stored(self, hook: Callable[[], None] | None) -> None:
        """Call `hook` whenever there is more to peek, in place of the one before. It must be quick."""
        self._hook = hook

    def flush(self, timeout_s: float) -> bool:
        """Wait until every put so far is as durable as configured; whether it is.

        Returns at once while the disk fails: nothing can be told then.
        """
        with self._lock:
            given = self._backlog.given
            self._done.wait_for(lambda: self._committed >= given or self._in_memory, timeout_s)
            return self._disk is None or self._committed >= given

    def stats(self) -> SpoolStats:
        """State now."""
        with self._lock:
            disk, backlog = self._disk, self._backlog
            rows, size, dropped = (disk.rows, disk.bytes, disk.dropped) if disk else (0, 0, 0)
            waiting = max(0, rows - len(backlog.deletions)) + len(backlog.held)
            size = size + backlog.held.bytes if waiting else 0
            return SpoolStats(waiting, size, dropped + backlog.dropped, "memory" if self._in_memory else "disk")

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
        if self._backlog.held:
            log.error("spool: %d events lay in memory only and go with it", len(self._backlog.held))

    @property
    def _in_memory(self) -> bool:
        return self._disk is None or self._disk.failing

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
            while (pause_s := self._pause()) > 0:
                self._wakes_at = time.monotonic() + pause_s
                self._work.wait(pause_s)
            closing, trouble, self._trouble = self._closing, self._trouble, None
            self._expire()
            batch = self._batch()
        if self._disk is not None:
            if trouble is not None:
                self._disk.lost(trouble)
            elif batch is not None:
                self._wrote(batch, self._disk.write(batch))
            self._take_left()
        self._announce()
        return not closing

    def _pause(self) -> float:
        """Seconds until there is something to do."""
        now = time.monotonic()
        if (
            self._closing
            or self._trouble is not None
            or (self._in_memory and self._announced < self._backlog.given)
        ):
            return 0.0
        pause_s = self._look_at - now
        if now < self._wrote_at + LINGER_S:
            pause_s = min(pause_s, LINGER_S)  # deletions that come now need not wake us
        if self._disk is not None:
            if self._disk.failing:
                pause_s = min(pause_s, self._retry_at - now)
            elif self._backlog.held or self._backlog.wills:
                return 0.0
            else:
                pause_s = min(pause_s, self._backlog.deletions.due_at - now)
        return pause_s

    def _expire(self) -> None:
        now = time.monotonic()
        if now >= self._look_at:
            self._look_at = now + _LOOK_S
            oldest = time.time() - self._config.spool_max_age_s
            self._backlog.expire(oldest)

    def _batch(self) -> Batch | None:
        """What to write now, if the disk is to be tried."""
        if self._disk is None:
            return None
        if self._disk.failing and time.monotonic() < self._retry_at and not self._closing:
            return None
        return self._backlog.take()

    def _wrote(self, batch: Batch, done: bool) -> None:
        with self._lock:
            self._wrote_at = time.monotonic()
            self._backlog.wrote(batch, done=done)
            if done:
                self._committed = batch.given
            else:
                self._retry_at = time.monotonic() + _RETRY_S
            self._done.notify_all()

    def _take_left(self) -> None:
        """What the disk gave back: rows out of a corrupt file, and wills of the process before this one."""
        if self._disk is None or not (self._disk.salvaged or self._disk.inherited):
            return
        with self._lock:
            rows, self._disk.salvaged = self._disk.salvaged, []
            self._backlog.restore(rows)
            wills, self._disk.inherited = self._disk.inherited or [], []
            for key, topic, body in wills:
                if self._disk.void or body is None:
                    self._backlog.wills.set(topic, Will(key, None))
                else:
                    self._backlog.add(topic, body, Will(key, None))
                    self.executed += 1

    def _announce(self) -> None:
        with self._lock:
            ready = self._backlog.given if self._in_memory else self._committed
            hook = self._hook if ready > self._announced else None
            self._announced = ready
        if hook is not None:
            try:
                hook()
            except Exception:
                log.exception("spool: the hook failed")
