"""Rows in memory: on their way to the disk, or instead of it. Bounded like the spool on the disk."""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Container, Iterable, Iterator
from itertools import islice

from agent.messages import Stored
from agent.storage.batch import size
from agent.storage.watermark import CLOCK_SET

_SPARE = 1000
"""Numbers of rows that are gone may stay in the index, at most so many more than there are rows."""


class Held:
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
