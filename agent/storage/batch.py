"""What one commit changes on the spool's disk."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Literal, NamedTuple

from agent.messages import Stored
from agent.storage.wills import LeftWill

Reason = Literal["bytes", "age", "memory", "unsendable"]
"""Why an event was dropped: for the bounds of the spool, by bytes or age; it lay in memory only when the daemon
stopped; or no broker could take it."""


class Batch(NamedTuple):
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
    wills: Sequence[LeftWill] = ()
    sync: bool = True
    final: bool = False


def size(row: Stored) -> int:
    """Bytes that a row counts for."""
    return len(row.body) + len(row.topic.encode())
