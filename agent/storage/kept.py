"""The history: rows of the spool's table that stay when they have been acknowledged, for `vedette events`.

They go in pieces: to delete the oldest with each new one would wear a card as much as the new ones do.
"""

from __future__ import annotations

import json
import sqlite3
import time
from contextlib import closing

from agent.config import StorageConfig
from agent.storage.batch import Batch
from agent.storage.database import SIZE
from agent.storage.tally import Tally
from agent.storage.watermark import CLOCK_SET

_PIECE = 8
"""Of its bytes, one in so many goes at once, or its age, or less:"""
_PIECE_S = 3600.0


def settle(connection: sqlite3.Connection, tally: Tally, batch: Batch) -> Tally:
    """Note what has been acknowledged, before the new rows are inserted."""
    if not batch.settled:
        return tally
    acked, rows, size = _advance(connection, tally.acked, batch)
    tally = tally._replace(acked=acked).waits(-rows, -size).keeps(size)
    if ahead := [seq for seq in batch.settled if seq > acked]:
        found = connection.execute(
            "UPDATE spool SET settled = 1 WHERE seq IN (SELECT value FROM json_each(?)) AND NOT settled "
            f"RETURNING {SIZE}",
            (json.dumps(ahead),),
        ).fetchall()
        size = sum(row_size for (row_size,) in found)
        tally = tally.waits(-len(found), -size).keeps(size)
    return tally


def _advance(connection: sqlite3.Connection, acked: int, batch: Batch) -> tuple[int, int, int]:
    """How far everything is acknowledged now; and how many rows that waited until now are so, and their bytes."""
    count, freed = 0, 0
    statement = f"SELECT seq, settled, {SIZE} FROM spool WHERE seq > ? ORDER BY seq"
    with closing(connection.execute(statement, (acked,))) as rows:
        for seq, settled, size in rows:
            if not settled:
                if seq not in batch.settled:
                    return acked, count, freed
                count, freed = count + 1, freed + size
            acked = seq
    for row in batch.insert:
        if row.seq not in batch.settled:
            break
        acked = row.seq
    return acked, count, freed


def shorten(connection: sqlite3.Connection, tally: Tally, config: StorageConfig) -> Tally:
    """Delete the oldest of the history if it has become too large or too old."""
    room = config.history_max_bytes
    too_old = time.time() - config.history_max_age_s
    if tally.kept <= room and not _has_older(connection, tally.acked, too_old, config):
        return tally
    if tally.kept > room:
        room -= room // _PIECE
    last, freed = 0, 0
    statement = f"SELECT seq, put_at, {SIZE} FROM spool WHERE seq <= ? OR settled ORDER BY seq"
    with closing(connection.execute(statement, (tally.acked,))) as rows:
        for seq, put_at, size in rows:
            if tally.kept - freed <= room and not CLOCK_SET < put_at < too_old:
                break
            last, freed = seq, freed + size
    connection.execute("DELETE FROM spool WHERE seq <= ? AND (seq <= ? OR settled)", (last, tally.acked))
    return tally.keeps(-freed)


def _has_older(connection: sqlite3.Connection, acked: int, too_old: float, config: StorageConfig) -> bool:
    """Whether the oldest row is older than what may be kept, by more than a piece.

    A row that was stamped before the clock was set has no known age.
    """
    found = connection.execute(
        "SELECT put_at FROM spool WHERE seq <= ? ORDER BY seq LIMIT 1", (acked,)
    ).fetchone()
    piece_s = min(_PIECE_S, config.history_max_age_s / _PIECE)
    return found is not None and bool(CLOCK_SET < found[0] < too_old - piece_s)
