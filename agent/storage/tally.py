"""What lies in the spool's table, counted."""

from __future__ import annotations

import sqlite3
from typing import NamedTuple

from agent.storage.database import SIZE


class Tally(NamedTuple):
    """Counts of a table, and how far it is acknowledged.

    A row has been acknowledged if its number is at most `acked`, or if it is marked as settled itself: those that
    overtook others. Each row carries the `acked` of the commit that wrote it, and the newest row's counts: so to
    note an acknowledgement costs no page of its own where events follow each other.

    Attributes:
        rows, bytes: that wait.
        kept: bytes of the history: rows that have been acknowledged.
        acked: every row up to this number has been acknowledged.
        noted: the `acked` that a counter says, for when the newest row does not.
    """

    rows: int
    bytes: int
    kept: int
    acked: int
    noted: int

    def waits(self, rows: int, size: int) -> Tally:
        """With more rows that wait, or fewer."""
        return self._replace(rows=self.rows + rows, bytes=self.bytes + size)

    def keeps(self, size: int) -> Tally:
        """With more bytes of history, or fewer."""
        return self._replace(kept=self.kept + size)


def newest(connection: sqlite3.Connection) -> tuple[int, int]:
    """Number of the newest row and the `acked` that it carries; zeros where there is none."""
    found: tuple[int, int] | None = connection.execute(
        "SELECT seq, acked FROM spool ORDER BY seq DESC LIMIT 1"
    ).fetchone()
    return found or (0, 0)


def count(connection: sqlite3.Connection, noted: int) -> Tally:
    """Count what a file holds, whose counter says `noted`."""
    acked = max(noted, newest(connection)[1])
    found = connection.execute(
        f"SELECT seq <= ? OR settled AS done, count(*), sum({SIZE}) FROM spool GROUP BY done", (acked,)
    )
    by_done = {bool(done): (rows, size) for done, rows, size in found}
    return Tally(*by_done.get(False, (0, 0)), by_done.get(True, (0, 0))[1], acked, noted)
