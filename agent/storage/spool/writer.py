"""The spool's writer: the thread that owns the disk, and decides what is written when and what may be sent.

What the spool and it have in common is used with `lock` held. What the writer alone does, it does without.
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
from agent.storage.spool.pending import LINGER_S, Commit, PendingRows, Reason
from agent.storage.spool.table import Counted

# Events that go without having been delivered: told once when it begins, and once when it is over.

log = logging.getLogger(__name__)

_QUIET_S = 600.0
"""Nothing dropped for so long: it is over."""
_WORDS: dict[Reason, str] = {
    "bytes": "it is full (spool_max_bytes): the oldest events are dropped for each new one",
    "age": "events have waited for longer than spool_max_age_s and are dropped",
}


class DropLog:
    """The log's side of it, by the counts as they stand."""

    def __init__(self, known: Mapping[Reason, int]) -> None:
        """Begin with what runs before have dropped."""
        self._known = dict(known)
        self._before: dict[Reason, int] = {}
        self._since: dict[Reason, float] = {}
        self._last: dict[Reason, float] = {}

    def look(self, counts: Mapping[Reason, int], *, final: bool = False) -> None:
        """Tell what has begun or is over.

        Args:
            counts: of drops, ever.
            final: there will be no other look.
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


# Something that is called from a thread that must not end with it.


class Hook:
    """At most one function. May be exchanged by any thread."""

    def __init__(self) -> None:
        self._function: Callable[[], None] | None = None

    def set(self, function: Callable[[], None] | None) -> None:
        """Call this one from now on, or none."""
        self._function = function

    def call(self) -> None:
        """Call it. That it fails is told and does no harm."""
        if (function := self._function) is not None:
            try:
                function()
            except Exception:
                log.exception("spool: the hook failed")


# The timetable of the spool's writer: when it writes, tries again, and looks for what has become too old.

_RETRY_S = 5.0
"""Between two attempts to write to a disk that failed."""
_LOOK_S = 60.0
"""Between two looks for rows that have become too old."""


class WriteSchedule:
    """All times are s of the monotonic clock. Its owner does the locking.

    Attributes:
        retry_at: when a disk that failed is tried again.
    """

    def __init__(self) -> None:
        self.retry_at = self._wakes_at = self._wrote_at = 0.0
        self._look_at = time.monotonic() + _LOOK_S

    def pause(self, due_at: float) -> float:
        """Seconds to sleep now; 0 or less: none.

        Args:
            due_at: when there is something to write; ∞: nothing is known yet.
        """
        now = time.monotonic()
        pause_s = min(self._look_at, due_at) - now
        if now < self._wrote_at + LINGER_S:
            pause_s = min(pause_s, LINGER_S)  # what comes now and is patient need not wake us
        self._wakes_at = now + pause_s
        return pause_s

    def is_late_for(self, due_at: float) -> bool:
        """Whether the writer sleeps for so long that it has to be woken for what is due then."""
        return due_at < self._wakes_at - LINGER_S

    def look(self) -> bool:
        """Whether it is time to look for what is too old; then the next look is a while from now."""
        now = time.monotonic()
        if now < self._look_at:
            return False
        self._look_at = now + _LOOK_S
        return True

    def look_now(self) -> None:
        """It is time to look, whenever the last look was."""
        self._look_at = time.monotonic()

    def wrote(self, *, done: bool) -> None:
        """A write has been tried just now."""
        self._wrote_at = time.monotonic()
        if not done:
            self.retry_at = self._wrote_at + _RETRY_S


_CLOSE_S = 10.0
"""For the last write; a disk that hangs longer does not hold up the daemon's end."""


class Writer:
    """Runs from `start` to `stop`.

    Attributes:
        config: in use.
        lock: of all that is not the writer's own.
        done: is told after each write.
        backlog: what the disk does not know yet.
        disk: None: everything stays in memory.
        timetable: see there.
        hook: called when there is more to send.
        on_disk: what waits there.
        committed: up to this number everything has been written.
        wanted: up to this number everything is to be written now.
        executed: how many events the last process left as its wills, as far as they are known.
    """

    def __init__(self, config: StorageConfig, disk: SpoolDisk | None, given: int) -> None:
        """Nothing is written before `start`.

        Args:
            config: bounds and durability.
            disk: open.
            given: highest number that was given out.
        """
        self.config, self.disk, self.backlog = config, disk, PendingRows(config, given)
        self.lock = threading.Lock()
        self._work, self.done = threading.Condition(self.lock), threading.Condition(self.lock)
        self.timetable, self.hook = WriteSchedule(), Hook()
        self._trouble: Exception | None = None
        self._move: Literal["", "detach", "attach"] = ""
        self._next: StorageConfig | None = None
        self._closing = False
        self._announced = self.committed = self.wanted = given
        self.on_disk = disk.counted if disk else Counted()
        self._drops = DropLog(self.dropped)
        self.executed = 0
        self._thread = threading.Thread(target=self._run, name="spool-writer", daemon=True)

    def start(self) -> None:
        """Begin with what the last process left."""
        self._take_left()
        self._thread.start()

    def stop(self) -> bool:
        """Write what is left, and end; whether that came to an end."""
        with self.lock:
            self._closing = True
            self.wake()
        self._thread.join(_CLOSE_S)
        return not self._thread.is_alive()

    def wake(self) -> None:
        """There is something to do, with the lock held."""
        self._work.notify()

    def report(self, trouble: Exception) -> None:
        """What the disk said to somebody who read."""
        with self.lock:
            self._trouble = trouble
            self.wake()

    def move(self, how: Literal["detach", "attach"]) -> None:
        """See `Spool.detach` and `Spool.attach`."""
        with self.lock:
            self._move = how
            self.wake()

    def configure(self, config: StorageConfig) -> None:
        """See `Spool.configure`."""
        with self.lock:
            self._next = config
            self.wake()

    @property
    def dropped(self) -> dict[Reason, int]:
        """Events that were dropped, ever, by reason."""
        return dict(Counter(self.on_disk.dropped) + self.backlog.dropped)

    @property
    def in_memory(self) -> bool:
        """Whether nothing can be written now."""
        return self.disk is None or self.disk.failing

    @property
    def ready(self) -> int:
        """Up to this number events may be sent."""
        # What could be sent once can be sent: also while a disk that is back takes what lay in memory.
        return self.backlog.given if self.in_memory else max(self._announced, self.backlog.ready)

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
        with self.lock:
            while not self._has_news and (pause_s := self.timetable.pause(self._due_at)) > 0:
                self._work.wait(pause_s)
            config, self._next = self._next, None
            move, self._move = self._move, ""
        if move:
            self._carry_out(move)
        if config is not None:
            self._take_up(config)
        with self.lock:
            closing, trouble, self._trouble = self._closing, self._trouble, None
            batch = self._batch(looked=self._look(), final=closing)
        if self.disk is not None:
            self.disk.claim(self.backlog.given)
            if trouble is not None:
                self.disk.lost(trouble)
            elif batch is not None:
                self._write(self.disk, batch)
            self._take_left()
            if self.disk.failing:
                self._revoke_wills(self.disk)
        self._announce()
        return not closing

    def _carry_out(self, move: Literal["detach", "attach"]) -> None:
        if (disk := self.disk) is None:
            return
        if move == "detach":
            disk.detach()
        elif disk.attach(self.backlog.given):
            with self.lock:
                self.timetable.retry_at = 0.0  # what has come meanwhile is written now
                self.on_disk = disk.counted
            self.hook.call()  # whoever has looked for rows meanwhile may have found none

    def _revoke_wills(self, disk: SpoolDisk) -> None:
        """A process that is killed while the disk fails must not have ended again what it has ended."""
        with self.lock:
            overtaken = self.backlog.is_overtaken
        if overtaken:
            disk.revoke_wills()

    def _take_up(self, config: StorageConfig) -> None:
        """The disk first: numbers that only memory knows are reserved there before they are given out."""
        if self.disk is not None:
            self.disk.configure(config, self.backlog.given)
        with self.lock:
            self.config = config
            self.backlog.configure(config)
            self.timetable.look_now()

    @property
    def _has_news(self) -> bool:
        """Whether there is something to do at once."""
        return bool(self._closing or self._trouble or self._next or self._move) or self._announced < self.ready

    @property
    def _due_at(self) -> float:
        """When to write, s of the monotonic clock."""
        if self.disk is None:
            return math.inf
        if self.disk.failing:
            return self.timetable.retry_at
        return -math.inf if self.committed < self.wanted else self.backlog.due_at

    def _look(self) -> bool:
        """From time to time, drop what is too old; whether it was time."""
        if not self.timetable.look():
            return False
        self.backlog.expire(time.time() - self.config.spool_max_age_s)
        return True

    def _batch(self, *, looked: bool, final: bool) -> Commit | None:
        """What to write now, if anything is due and the disk is to be tried."""
        if (disk := self.disk) is None:
            return None
        is_due = final or (looked and not disk.failing) or time.monotonic() >= self._due_at
        return self.backlog.take(final=final) if is_due else None

    def _write(self, disk: SpoolDisk, batch: Commit) -> None:
        done = disk.write(batch)
        with self.lock:
            self.timetable.wrote(done=done)
            self.backlog.committed(batch, done=done)
            self.on_disk = disk.counted
            if done:
                self.committed = batch.given
            self.done.notify_all()

    def _take_left(self) -> None:
        """What the disk gave back: rows out of a corrupt file, and wills of the process before this one."""
        if self.disk is None:
            return
        with self.lock:
            self.on_disk = self.disk.counted
            rows, wills = self.disk.left()
            self.backlog.restore(rows)
            self.executed += self.backlog.adopt_crash_ends(wills, void=self.disk.void)

    def _announce(self) -> None:
        with self.lock:
            ready, announced, dropped = self.ready, self._announced, self.dropped
            self._announced = ready
        self._drops.look(dropped, final=self._closing)
        if ready > announced:
            self.hook.call()
