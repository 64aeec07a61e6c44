"""The spool's writer: the thread that owns the disk and decides what is written when and what may be sent.

State that the spool shares with it is used with `lock` held.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Literal

from agent.config.device import StorageConfig
from agent.storage.spool.disk import SpoolDisk
from agent.storage.spool.pending import LINGER_S, MAX_AGE_S, Commit, PendingRows, Reason

log = logging.getLogger(__name__)

_CLOSE_S = 10.0
"""Time for the last write; a disk that hangs longer does not hold up the daemon's end."""
_RETRY_S = 5.0
"""Time between two attempts to write to a disk that failed, s."""
_EXPIRE_S = 60.0
"""Time between two searches for rows that have become too old, s."""
_QUIET_S = 600.0
"""Time without a drop after which an outage of dropping is over, s."""
_WORDS: dict[Reason, str] = {
    "bytes": "it is full (spool_max_bytes): the oldest events are dropped for each new one",
    "age": "events have waited for more than 7 days and are dropped",
}


class DropLog:
    """Logs dropped events once when dropping starts and once when it ends."""

    def __init__(self, known: Mapping[Reason, int]) -> None:
        """Start with the counts of previous runs."""
        self._known = dict(known)
        self._before: dict[Reason, int] = {}
        self._since: dict[Reason, float] = {}
        self._last: dict[Reason, float] = {}

    def update(self, counts: Mapping[Reason, int], *, final: bool = False) -> None:
        """Log what has started or ended.

        Args:
            counts: of drops, ever.
            final: no other update follows.
        """
        now = time.monotonic()
        for reason, words in _WORDS.items():
            count, known = counts.get(reason, 0), self._known.get(reason, 0)
            if count > known:
                self._known[reason], self._last[reason] = count, now
                if reason not in self._since:
                    self._since[reason], self._before[reason] = now, known
                    log.warning("spool: %s", words)
            if reason in self._since and (final or now - self._last[reason] > _QUIET_S):
                seconds = self._last[reason] - self._since.pop(reason)
                log.warning(
                    "spool: %d events were dropped in %.0f s (%s)", count - self._before[reason], seconds, reason
                )


class WriteSchedule:
    """When the writer writes, retries and expires rows. Times are s of the monotonic clock.

    Attributes:
        retry_at: when a disk that failed is tried again.
    """

    def __init__(self) -> None:
        self.retry_at = self._wakes_at = self._wrote_at = 0.0
        self._expire_at = time.monotonic() + _EXPIRE_S

    def pause(self, due_at: float) -> float:
        """Return the seconds to sleep now; 0 or less: none.

        Args:
            due_at: when there is something to write; ∞: nothing is known yet.
        """
        now = time.monotonic()
        pause_s = min(self._expire_at, due_at) - now
        if now < self._wrote_at + LINGER_S:
            pause_s = min(pause_s, LINGER_S)  # what comes now and may linger need not wake the writer
        self._wakes_at = now + pause_s
        return pause_s

    def is_late_for(self, due_at: float) -> bool:
        """Return True if the writer has to be woken for what is due then."""
        return due_at < self._wakes_at - LINGER_S

    def start_expiry(self) -> bool:
        """Return True if it is time to expire rows; the next time is a while from now."""
        now = time.monotonic()
        if now < self._expire_at:
            return False
        self._expire_at = now + _EXPIRE_S
        return True

    def expire_soon(self) -> None:
        """Make the next `start_expiry` return True."""
        self._expire_at = time.monotonic()

    def record_write(self, *, done: bool) -> None:
        """Record that a write has been tried just now."""
        self._wrote_at = time.monotonic()
        if not done:
            self.retry_at = self._wrote_at + _RETRY_S


class Writer:
    """Runs from `start` to `stop`.

    Attributes:
        config: in use.
        lock: of all that is not the writer's own.
        done: notified after each write.
        pending: what the disk does not know yet.
        disk: that it writes to.
        schedule: when to write.
        on_stored: called when there is more to send; it must be quick.
        on_disk: what waits there.
        committed: up to this number everything has been written.
        wanted: up to this number everything is to be written now.
        crash_ends: how many events the previous process has left as crash ends, as far as known.
    """

    def __init__(self, config: StorageConfig, disk: SpoolDisk, given: int) -> None:
        """Prepare; nothing is written before `start`.

        Args:
            config: bounds and durability.
            disk: open.
            given: highest number that was given out.
        """
        self.config, self.disk, self.pending = config, disk, PendingRows(config, given)
        self.lock = threading.Lock()
        self._work, self.done = threading.Condition(self.lock), threading.Condition(self.lock)
        self.schedule = WriteSchedule()
        self.on_stored: Callable[[], None] | None = None
        self._trouble: Exception | None = None
        self._move: Literal["", "detach", "attach"] = ""
        self._next: StorageConfig | None = None
        self._closing = False
        self._announced = self.committed = self.wanted = given
        self.on_disk = disk.counted
        self._drops = DropLog(self.dropped)
        self.crash_ends = 0
        self._thread = threading.Thread(target=self._run, name="spool-writer", daemon=True)

    def start(self) -> None:
        """Adopt what the previous process left, and start the thread."""
        self._adopt_recovered()
        self._thread.start()

    def stop(self) -> bool:
        """Write what is left and end the thread; return False if it hangs."""
        with self.lock:
            self._closing = True
            self.wake()
        self._thread.join(_CLOSE_S)
        return not self._thread.is_alive()

    def wake(self) -> None:
        """Wake the thread. Call it with the lock held."""
        self._work.notify()

    def report(self, trouble: Exception) -> None:
        """Hand over an error that a reader has met."""
        with self.lock:
            self._trouble = trouble
            self.wake()

    def move(self, how: Literal["detach", "attach"]) -> None:
        """Detach from the disk or attach to it, see `Spool.detach` and `Spool.attach`."""
        with self.lock:
            self._move = how
            self.wake()

    def configure(self, config: StorageConfig) -> None:
        """Apply other bounds and another durability."""
        with self.lock:
            self._next = config
            self.wake()

    @property
    def dropped(self) -> dict[Reason, int]:
        """Events that were dropped, ever, by reason."""
        return dict(Counter(self.on_disk.dropped) + self.pending.dropped)

    @property
    def ready(self) -> int:
        """Highest number up to which events may be sent."""
        # What could be sent once stays so, also while a disk that is back takes the rows from memory.
        return self.pending.given if self.disk.failing else max(self._announced, self.pending.ready)

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
        with self.lock:
            while not self._has_news and (pause_s := self.schedule.pause(self._due_at)) > 0:
                self._work.wait(pause_s)
            config, self._next = self._next, None
            move, self._move = self._move, ""
        if move:
            self._carry_out(move)
        if config is not None:
            self._apply(config)
        with self.lock:
            closing, trouble, self._trouble = self._closing, self._trouble, None
            commit = self._start_commit(expired=self._expire(), final=closing)
        self.disk.claim(self.pending.given)
        if trouble is not None:
            self.disk.handle_error(trouble)
        elif commit is not None:
            self._write(commit)
        self._adopt_recovered()
        if self.disk.failing:
            self._mark_stale()
        self._announce()
        return not closing

    def _carry_out(self, move: Literal["detach", "attach"]) -> None:
        if move == "detach":
            self.disk.detach()
        elif self.disk.attach(self.pending.given):
            with self.lock:
                self.schedule.retry_at = 0.0  # what has come meanwhile is written now
                self.on_disk = self.disk.counted
            self._call_on_stored()  # a reader may have found no rows meanwhile

    def _mark_stale(self) -> None:
        """Mark crash ends as stale where a kill would repeat ends: the failing disk cannot delete them."""
        with self.lock:
            stale = self.pending.crash_ends_are_stale
        if stale:
            self.disk.mark_stale()

    def _apply(self, config: StorageConfig) -> None:
        """The disk first: numbers that only memory knows are reserved there before they are given out."""
        self.disk.configure(config, self.pending.given)
        with self.lock:
            self.config = config
            self.pending.configure(config)
            self.schedule.expire_soon()

    @property
    def _has_news(self) -> bool:
        return bool(self._closing or self._trouble or self._next or self._move) or self._announced < self.ready

    @property
    def _due_at(self) -> float:
        """When to write, s of the monotonic clock."""
        if self.disk.failing:
            return self.schedule.retry_at
        return -math.inf if self.committed < self.wanted else self.pending.due_at

    def _expire(self) -> bool:
        """Drop what is too old; return False if it was not time."""
        if not self.schedule.start_expiry():
            return False
        self.pending.expire(time.time() - MAX_AGE_S)
        return True

    def _start_commit(self, *, expired: bool, final: bool) -> Commit | None:
        """Return what to write now, or None while nothing is due."""
        is_due = final or (expired and not self.disk.failing) or time.monotonic() >= self._due_at
        return self.pending.start_commit(final=final) if is_due else None

    def _write(self, commit: Commit) -> None:
        done = self.disk.write(commit)
        with self.lock:
            self.schedule.record_write(done=done)
            self.pending.finish_commit(commit, done=done)
            self.on_disk = self.disk.counted
            if done:
                self.committed = commit.given
            self.done.notify_all()

    def _adopt_recovered(self) -> None:
        """Take back rows out of a corrupt file, and put the crash ends of the previous process."""
        with self.lock:
            self.on_disk = self.disk.counted
            rows, tracks = self.disk.take_recovered()
            self.pending.restore(rows)
            self.crash_ends += self.pending.adopt_crash_ends(tracks, stale=self.disk.stale)

    def _announce(self) -> None:
        with self.lock:
            ready, announced, dropped = self.ready, self._announced, self.dropped
            self._announced = ready
        self._drops.update(dropped, final=self._closing)
        if ready > announced:
            self._call_on_stored()

    def _call_on_stored(self) -> None:
        if (function := self.on_stored) is not None:
            try:
                function()
            except Exception:
                log.exception("spool: a listener for new events failed")
