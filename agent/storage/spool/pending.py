"""What the disk does not know yet: new rows, settled ones and wills. Numbers are given out here."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterable

from agent.config import Kind, StorageConfig
from agent.messages import Stored, Will
from agent.storage.batch import Batch, Reason
from agent.storage.held import Held
from agent.storage.wills import LeftWill, Wills

LINGER_S = 5.0
"""What is patient waits for company so long, or until something comes that is not: each commit wears the card."""
_MANY = 1000
"""So many things do not wait."""


class Backlog:
    """Taken as batches and forgotten when they are written; kept for good where there is no disk.

    Its owner does the locking.

    Attributes:
        given: highest number that was given out.
        first: the first that this run gives out.
        held: rows on their way to the disk.
        memory: rows that never go there.
        settled: numbers acknowledged, of rows on the disk or on their way.
        deleted: numbers of rows there that go for other reasons.
        wills: see there.
        dropped: rows that went and are not counted on the disk yet.
    """

    def __init__(self, config: StorageConfig, given: int) -> None:
        self.given, self.first, self.dropped = given, given + 1, Counter[Reason]()
        self.held, self.memory = Held(config.spool_max_bytes), Held(config.spool_max_bytes)
        self.settled, self.deleted, self.wills = set[int](), set[int](), Wills()
        self._config, self._has_disk = config, config.spooled != {"memory"}
        self._writing, self._since = 0, math.inf
        self._urgent = self._urgent_writing = 0  # the first number that waits for a sync; of those being written

    def configure(self, config: StorageConfig) -> None:
        """Go on with other bounds and another durability; whether there is a disk stays."""
        self._config = config
        self._shed(self.held.bound(config.spool_max_bytes), "bytes")
        self.dropped["bytes"] += len(self.memory.bound(config.spool_max_bytes))

    def add(self, topic: str, body: bytes, will: Will | None, kind: Kind = "events") -> None:
        """Take an event and its will."""
        self.given += 1
        row, durability = Stored(self.given, topic, body, time.time(), self.first), self._config.of(kind)
        if durability == "event":
            self._urgent = self._urgent or self.given
        elif self._has_disk:
            self._linger()
        if will is not None and self._has_disk and (durability != "memory" or self._withdraws(will)):
            self.wills.set(topic, will)
        if durability == "memory":
            self.dropped["bytes"] += len(self.memory.add(row))
        else:
            self._shed(self.held.add(row), "bytes")

    def _withdraws(self, will: Will) -> bool:
        return will.body is None and self.wills.is_open(will.key)

    def _linger(self) -> None:
        self._since = min(self._since, time.monotonic())

    @property
    def ready(self) -> int:
        """Up to this number everything is as safe as it must be before it is sent."""
        return (self._urgent_writing or self._urgent or self.given + 1) - 1

    @property
    def due_at(self) -> float:
        """When to write, s of the monotonic clock: ∞ while there is nothing, -∞ when it cannot wait."""
        many = len(self.held) + len(self.settled) + len(self.deleted) + len(self.wills) >= _MANY
        return -math.inf if self._urgent or many else self._since + LINGER_S

    def settle(self, seq: int) -> None:
        """An event has been acknowledged."""
        if self.memory.remove(seq) or not self._has_disk:
            return
        # What waits for its commit only to be told in the history stays where it is.
        if self._config.history_max_bytes or not self._forget(seq):
            self.settled.add(seq)
            self._linger()

    def drop(self, seq: int, reason: Reason) -> None:
        """An event goes without having been delivered."""
        self.dropped[reason] += 1
        if not self.memory.remove(seq) and self._has_disk and not self._forget(seq):
            self.deleted.add(seq)
            self._linger()

    def _forget(self, seq: int) -> bool:
        """Let go of a row unless it is on the disk or being written right now; whether it could be."""
        return seq > self._writing and self.held.remove(seq)

    def expire(self, oldest: float) -> None:
        """Drop rows that were put before a Unix time, s."""
        self._shed(self.held.expire(oldest), "age")
        self.dropped["age"] += len(self.memory.expire(oldest))

    def _shed(self, shed: Iterable[int], reason: Reason) -> None:
        for seq in shed:
            if seq in self.settled:
                self.settled.remove(seq)
            else:
                self.dropped[reason] += 1
            if seq <= self._writing:
                self.deleted.add(seq)
                self._linger()

    def restore(self, rows: Iterable[Stored]) -> None:
        """Take rows back that the disk has lost."""
        if lost := [row for row in rows if row.seq not in self.settled and row.seq not in self.deleted]:
            self.held.restore(lost)
            self._linger()

    def inherit(self, wills: Iterable[LeftWill], *, void: bool) -> int:
        """Put what the last process wanted to be said, unless that is void; gives how much it is."""
        said = 0
        for will in wills:
            self.wills.inherit(will)
            if will.body is not None and not void:
                self.add(will.topic, will.body, None)
                said += 1
        return said

    @property
    def is_overtaken(self) -> bool:
        """Whether what the wills on the disk would say has been said, and been acknowledged with all the rest."""
        return self.wills.are_overtaken and all(row.seq in self.settled for row in self.held)

    def take(self, *, final: bool = False) -> Batch:
        """Everything that goes to the disk, to be written; `wrote` must follow.

        Args:
            final: nothing comes after it: what lies in memory only is lost.
        """
        if final and self._has_disk:
            self.dropped["memory"] += len(self.memory)
        self._writing, self._since = self.given, math.inf
        self._urgent, self._urgent_writing = 0, self._urgent
        return Batch(
            self.held.all(),
            self.settled.copy(),
            self.deleted.copy(),
            self.given,
            dict(+self.dropped),
            self.wills.all(),
            bool(self._urgent_writing),
            final,
        )

    def wrote(self, batch: Batch, *, done: bool) -> None:
        """A batch has been tried; what came meanwhile stays."""
        self._writing = 0
        urgent, self._urgent_writing = self._urgent_writing, 0
        if not done:
            self._urgent = urgent or self._urgent
            self._spare()
            return
        for row in batch.insert:
            self.held.remove(row.seq)
        self.settled.difference_update(batch.settled)
        self.deleted.difference_update(batch.delete)
        self.wills.written(batch.wills)
        self.dropped.subtract(batch.dropped)

    def _spare(self) -> None:
        """While the disk fails, memory is for what has not been acknowledged."""
        for numbers in (self.settled, self.deleted):
            numbers.difference_update([seq for seq in numbers if self.held.remove(seq)])
        self._linger()

    @property
    def bytes(self) -> int:
        """Of the rows here."""
        return self.held.bytes + self.memory.bytes

    @property
    def more(self) -> int:
        """How many more wait than lie on the disk; below 0 where some there have been settled."""
        return len(self.memory) + len(self.held) - len(self.settled) - len(self.deleted)
