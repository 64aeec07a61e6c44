"""What the disk does not know yet: new rows, deletions and wills. Numbers are given out here."""

from __future__ import annotations

import time
from collections.abc import Iterable

from agent.messages import Stored, Will
from agent.storage.deletions import Deletions
from agent.storage.held import Held
from agent.storage.table import Batch
from agent.storage.wills import Wills


class Backlog:
    """Taken as batches and forgotten when they are written; kept for good where there is no disk.

    Its owner does the locking.

    Attributes:
        given: highest number that was given out.
        held, deletions, wills: see each.
        dropped: rows that went for the bounds and are not counted on the disk yet.
    """

    def __init__(self, max_bytes: int, given: int, *, has_disk: bool) -> None:
        self.given, self.dropped = given, 0
        self.held, self.deletions, self.wills = Held(max_bytes), Deletions(), Wills()
        self._has_disk = has_disk
        self._writing = 0

    def add(self, topic: str, body: bytes, will: Will | None) -> None:
        """Take an event and its will."""
        self.given += 1
        if will is not None and self._has_disk:
            self.wills.set(topic, will)
        if shed := self.held.add(Stored(self.given, topic, body, time.time())):
            self._drop(shed)

    def settle(self, seq: int) -> None:
        """Forget an event that has been acknowledged."""
        self._delete(seq, self.held.remove(seq))

    def expire(self, oldest: float) -> None:
        """Drop rows that were put before a Unix time, s."""
        self._drop(self.held.expire(oldest))

    def restore(self, rows: Iterable[Stored]) -> None:
        """Take rows back that the disk has lost."""
        self.held.restore(row for row in rows if row.seq not in self.deletions)

    def take(self) -> Batch:
        """Everything, to be written; `wrote` must follow."""
        self._writing = self.given
        return Batch(self.held.all(), self.deletions.all(), self._writing, self.dropped, self.wills.all())

    def wrote(self, batch: Batch, *, done: bool) -> None:
        """A batch has been tried; what came meanwhile stays."""
        self._writing = 0
        if done:
            for row in batch.insert:
                self.held.remove(row.seq)
            self.deletions.done(batch.delete)
            self.wills.written(batch.wills)
            self.dropped -= batch.dropped

    def _drop(self, shed: Iterable[int]) -> None:
        for seq in shed:
            self.dropped += 1
            self._delete(seq, True)

    def _delete(self, seq: int, was_held: bool) -> None:
        """A row that was held is on the disk only if it is being written right now."""
        if self._has_disk and (not was_held or seq <= self._writing):
            self.deletions.add(seq)
