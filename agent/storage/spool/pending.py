"""What the disk does not know yet: new rows, settled ones and wills. Numbers are given out here."""

from __future__ import annotations

import math
import time
from bisect import bisect_right
from collections import Counter, OrderedDict
from collections.abc import Collection, Container, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Literal, NamedTuple

from agent.config.device import Kind, StorageConfig
from agent.storage.spool.watermark import CLOCK_SET
from agent.types import Stored, Will

# Wills on their way to the disk: what the next process is to say if this one dies before it says so itself.


class StoredOpenTrack(NamedTuple):
    """A will on its way to the disk or there: the key of `Will`, topic and body of the event; None: withdrawn."""

    key: str
    topic: str
    body: bytes | None


class OpenTracks:
    """Those that the disk does not know yet. Its owner does the locking.

    They do not go with their events: one may be acknowledged before the disk can be written, and what it does to
    a will stays to be done.
    """

    def __init__(self) -> None:
        self._due: dict[str, StoredOpenTrack] = {}
        self._open: set[str] = set()
        self._on_disk: set[str] = set()

    def __len__(self) -> int:
        return len(self._due)

    @property
    def any_open(self) -> bool:
        """Whether this process has made a will and not withdrawn it."""
        return bool(self._open)

    def is_open(self, key: str) -> bool:
        """Whether this process has made a will of that key and not withdrawn it."""
        return key in self._open

    @property
    def are_overtaken(self) -> bool:
        """Whether there are some on the disk, and all of them are to be withdrawn there."""
        due = (self._due.get(key) for key in self._on_disk)
        return bool(self._on_disk) and all(will is not None and will.body is None for will in due)

    def inherit(self, will: StoredOpenTrack) -> None:
        """Withdraw one that the last process has left on the disk."""
        self._on_disk.add(will.key)
        self.set(will.topic, Will(will.key, None))

    def set(self, topic: str, will: Will) -> None:
        """Make a will, or withdraw it."""
        self._due[will.key] = StoredOpenTrack(will.key, topic, will.body)
        (self._open.discard if will.body is None else self._open.add)(will.key)

    def all(self) -> list[StoredOpenTrack]:
        """What is to be written."""
        return list(self._due.values())

    def written(self, wills: Iterable[StoredOpenTrack]) -> None:
        """The disk knows these; what has been set since stays."""
        for will in wills:
            (self._on_disk.discard if will.body is None else self._on_disk.add)(will.key)
            if self._due.get(will.key) is will:
                del self._due[will.key]


Reason = Literal["bytes", "age", "memory", "unsendable"]
"""Why an event was dropped: for the bounds of the spool, by bytes or age; it lay in memory only when the daemon
stopped; or no broker could take it."""


class Commit(NamedTuple):
    """What one commit changes.

    Attributes:
        insert: new rows, in order.
        settled: numbers that have been acknowledged, those of new rows among them; unknown ones do not matter.
        delete: numbers of rows that go, for whatever other reason; unknown ones do not matter.
        given: highest number given out so far; the newest of `insert`, or above.
        dropped: rows that the caller has dropped itself, to be counted.
        wills: to replace those of the same keys.
        sync: whether it must survive a power cut.
        final: nothing comes after it.
    """

    insert: Sequence[Stored]
    settled: Collection[int]
    delete: Collection[int]
    given: int
    dropped: Mapping[Reason, int] = {}
    wills: Sequence[StoredOpenTrack] = ()
    sync: bool = True
    final: bool = False


def size(row: Stored) -> int:
    """Bytes that a row counts for."""
    return len(row.body) + len(row.topic.encode())


# Rows in memory: on their way to the disk, or instead of it. Bounded like the spool on the disk.

_SPARE = 1000
"""Numbers of rows that are gone may stay in the index, at most so many more than there are rows."""


class MemoryRows:
    """Rows by number, in order. Its owner does the locking.

    Attributes:
        bytes: that they count for.
    """

    def __init__(self, max_bytes: int) -> None:
        self.bytes = 0
        self._max_bytes = max_bytes
        self._rows: OrderedDict[int, Stored] = OrderedDict()
        self._index: list[int] = []

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Stored]:
        return iter(self._rows.values())

    def __contains__(self, seq: int) -> bool:
        return seq in self._rows

    def add(self, row: Stored) -> list[int]:
        """Add the newest row; gives the numbers of those that it pushed out."""
        if len(self._index) > 2 * len(self._rows) + _SPARE:
            self._index = list(self._rows)
        self._rows[row.seq] = row
        self._index.append(row.seq)
        self.bytes += size(row)
        return self._shed()

    def bound(self, max_bytes: int) -> list[int]:
        """Hold so many bytes at most from now on; gives the numbers of those that go for it."""
        self._max_bytes = max_bytes
        return self._shed()

    def _shed(self) -> list[int]:
        shed: list[int] = []
        while self.bytes > self._max_bytes:
            shed.append(self._drop_oldest())
        return shed

    def expire(self, oldest: float) -> list[int]:
        """Drop rows that were put before a Unix time, s; gives their numbers.

        A row that was stamped before the clock was set has no known age.
        """
        shed: list[int] = []
        while self._rows and CLOCK_SET < next(iter(self._rows.values())).put_at < oldest:
            shed.append(self._drop_oldest())
        return shed

    def _drop_oldest(self) -> int:
        seq, row = self._rows.popitem(last=False)
        self.bytes -= size(row)
        return seq

    def remove(self, seq: int) -> bool:
        """Take a row out; whether it was there."""
        row = self._rows.pop(seq, None)
        if row is not None:
            self.bytes -= size(row)
        return row is not None

    def restore(self, rows: Iterable[Stored]) -> None:
        """Put older rows in before the others."""
        older = {row.seq: row for row in rows if row.seq not in self._rows}
        self._rows = OrderedDict(sorted({**older, **self._rows}.items()))
        self._index = list(self._rows)
        self.bytes += sum(map(size, older.values()))

    def all(self) -> list[Stored]:
        """Every row."""
        return list(self._rows.values())

    def after(self, seq: int, limit: int, leave_out: Container[int] = ()) -> list[Stored]:
        """The first rows above a number, without some."""
        first = bisect_right(self._index, seq)
        later = map(self._index.__getitem__, range(first, len(self._index)))
        wanted = (number for number in later if number in self._rows and number not in leave_out)
        return list(islice(map(self._rows.__getitem__, wanted), limit))


LINGER_S = 5.0
"""What is patient waits for company so long, or until something comes that is not: each commit wears the card."""
_MANY = 1000
"""So many things do not wait."""


class PendingRows:
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
        self.held, self.memory = MemoryRows(config.spool_max_bytes), MemoryRows(config.spool_max_bytes)
        self.settled, self.deleted, self.wills = set[int](), set[int](), OpenTracks()
        self._config, self._has_disk = config, config.spooled != {"memory"}
        self._writing, self._since = 0, math.inf
        self._urgent = self._urgent_writing = 0  # the first number that waits for a sync; of those being written

    def configure(self, config: StorageConfig) -> None:
        """Go on with other bounds and another durability; whether there is a disk stays."""
        self._config = config
        self._shed(self.held.bound(config.spool_max_bytes), "bytes")
        self.dropped["bytes"] += len(self.memory.bound(config.spool_max_bytes))

    def put(self, topic: str, body: bytes, will: Will | None, kind: Kind = "events") -> None:
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

    def adopt_crash_ends(self, wills: Iterable[StoredOpenTrack], *, void: bool) -> int:
        """Put what the last process wanted to be said, unless that is void; gives how much it is."""
        said = 0
        for will in wills:
            self.wills.inherit(will)
            if will.body is not None and not void:
                self.put(will.topic, will.body, None)
                said += 1
        return said

    @property
    def is_overtaken(self) -> bool:
        """Whether what the wills on the disk would say has been said, and been acknowledged with all the rest."""
        return self.wills.are_overtaken and all(row.seq in self.settled for row in self.held)

    def take(self, *, final: bool = False) -> Commit:
        """Everything that goes to the disk, to be written; `wrote` must follow.

        Args:
            final: nothing comes after it: what lies in memory only is lost.
        """
        if final and self._has_disk:
            self.dropped["memory"] += len(self.memory)
        self._writing, self._since = self.given, math.inf
        self._urgent, self._urgent_writing = 0, self._urgent
        return Commit(
            self.held.all(),
            self.settled.copy(),
            self.deleted.copy(),
            self.given,
            dict(+self.dropped),
            self.wills.all(),
            bool(self._urgent_writing),
            final,
        )

    def committed(self, batch: Commit, *, done: bool) -> None:
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
