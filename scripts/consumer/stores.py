"""Where events are kept: SQLite, or PostgreSQL. Each event once, by its id, however often it is delivered."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from typing import Any, Protocol

from numbering import sifted, walk
from rows import EventRow, Gap, RejectedRow

SCHEMA = (
    """CREATE TABLE IF NOT EXISTS events (
        id TEXT PRIMARY KEY, device TEXT NOT NULL, stream TEXT NOT NULL, seq BIGINT NOT NULL, kind TEXT NOT NULL,
        label TEXT NOT NULL, track TEXT NOT NULL, captured_at TEXT NOT NULL,
        received_at DOUBLE PRECISION NOT NULL, body TEXT NOT NULL)""",
    "CREATE INDEX IF NOT EXISTS events_by_seq ON events (device, seq)",
    """CREATE TABLE IF NOT EXISTS marks (device TEXT PRIMARY KEY, seq BIGINT NOT NULL)""",
    """CREATE TABLE IF NOT EXISTS gaps (
        device TEXT NOT NULL, first BIGINT NOT NULL, last BIGINT NOT NULL, noticed_at DOUBLE PRECISION NOT NULL,
        PRIMARY KEY (device, first))""",
    """CREATE TABLE IF NOT EXISTS runs (
        device TEXT NOT NULL, first BIGINT NOT NULL, PRIMARY KEY (device, first))""",
    """CREATE TABLE IF NOT EXISTS latest (device TEXT PRIMARY KEY, first BIGINT NOT NULL)""",
    """CREATE TABLE IF NOT EXISTS jumps (
        device TEXT NOT NULL, first BIGINT NOT NULL, last BIGINT NOT NULL, noticed_at DOUBLE PRECISION NOT NULL,
        PRIMARY KEY (device, first))""",
    """CREATE TABLE IF NOT EXISTS rejected (
        topic TEXT NOT NULL, why TEXT NOT NULL, received_at DOUBLE PRECISION NOT NULL, body TEXT NOT NULL)""",
)
"""Understood by both. `marks`: up to which number a device's events were looked at for gaps. `runs`: the numbers
with which its runs began. `latest`: the one of the newest event, which begins below others where the device has
got a new card and its clock was wrong. `gaps`: what was lost; `jumps`: what was never given out, or went with its
memory."""

SQLITE, POSTGRES = "sqlite:", ("postgresql://", "postgres://")
"""Prefixes of the URI of a store."""

_EVENT = "INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO NOTHING"
_REJECTED = "INSERT INTO rejected VALUES (?, ?, ?, ?)"
_MARK = "INSERT INTO marks VALUES (?, ?) ON CONFLICT (device) DO UPDATE SET seq = excluded.seq"
_GAP = "INSERT INTO gaps VALUES (?, ?, ?, ?) ON CONFLICT (device, first) DO NOTHING"
_JUMP = "INSERT INTO jumps VALUES (?, ?, ?, ?) ON CONFLICT (device, first) DO NOTHING"
_LATEST = "INSERT INTO latest VALUES (?, ?) ON CONFLICT (device) DO UPDATE SET first = excluded.first"
_ANEW = "UPDATE marks SET seq = ? WHERE device = ? AND seq >= ?"
_ABOVE = (
    "SELECT min(runs.first) FROM runs JOIN latest ON latest.device = runs.device "
    "WHERE runs.device = ? AND runs.first > latest.first"
)
_RUN = "INSERT INTO runs VALUES (?, ?) ON CONFLICT (device, first) DO NOTHING"

_NO_SEQ = 2**63 - 1


class Store(Protocol):
    """A place for events. All may raise `Unavailable`; then nothing was kept, and it may be tried again."""

    def keep(self, events: Sequence[EventRow], rejected: Sequence[RejectedRow]) -> int:
        """Keep these, on the disk when it returns; gives how many were new."""

    def sift(self, events: Sequence[EventRow]) -> tuple[list[EventRow], list[RejectedRow]]:
        """Events whose numbers can be, in their order, and those that are absurdly far ahead of what was kept."""
        ...

    def find_gaps(self, device: str, before: float, now: float) -> list[Gap]:
        """Gaps that were not told of yet and are not younger than `before`, Unix s; keeps them as told."""

    def close(self) -> None:
        """Let go of it."""


class Unavailable(Exception):  # noqa: N818  # a state that passes, more than an error
    """The store cannot be used now."""


class SqlStore:
    """Common part of both stores: a connection by Python's database API."""

    def __init__(self, connection: Any, mark: str, errors: type[Exception]) -> None:
        """Make the tables.

        Args:
            connection: open, with transactions begun by themselves.
            mark: how a parameter is written, `?` or `%s`.
            errors: what the library raises.
        """
        self._connection, self._mark, self._errors = connection, mark, errors
        self._do(lambda cursor: [cursor.execute(line) for line in SCHEMA])

    def keep(self, events: Sequence[EventRow], rejected: Sequence[RejectedRow]) -> int:
        def insert(cursor: Any) -> int:
            new = 0
            latest: dict[str, int] = {}
            for row in events:
                cursor.execute(self._sql(_EVENT), row[:-1])
                new += cursor.rowcount
                if cursor.rowcount and row.first_seq:
                    latest[row.device] = row.first_seq
            for device, first in sorted({(row.device, row.first_seq) for row in events if row.first_seq}):
                cursor.execute(self._sql(_RUN), (device, first))
                if cursor.rowcount:  # what a run is below others, it is counted from its beginning
                    cursor.execute(self._sql(_ANEW), (first - 1, device, first))
            for run in latest.items():
                cursor.execute(self._sql(_LATEST), run)
            for refused in rejected:
                cursor.execute(self._sql(_REJECTED), refused)
            return new

        return int(self._do(insert))

    def sift(self, events: Sequence[EventRow]) -> tuple[list[EventRow], list[RejectedRow]]:
        def look(cursor: Any) -> dict[str, int]:
            newest: dict[str, int] = {}
            query = "SELECT max(seq) FROM events WHERE device = ?"
            for device in sorted({event.device for event in events}):
                cursor.execute(self._sql(query), (device,))
                if (seq := cursor.fetchone()[0]) is not None:
                    newest[device] = seq
            return newest

        return sifted(events, self._do(look))

    def find_gaps(self, device: str, before: float, now: float) -> list[Gap]:
        def look(cursor: Any) -> list[Gap]:
            mark = self._mark_of(cursor, device)
            cursor.execute(self._sql(_ABOVE), (device,))
            above = cursor.fetchone()[0] or _NO_SEQ
            query = "SELECT seq, received_at FROM events WHERE device = ? AND seq > ? AND seq < ? ORDER BY seq"
            cursor.execute(self._sql(query), (device, mark, above))
            rows = cursor.fetchall()
            cursor.execute(self._sql("SELECT first FROM runs WHERE device = ? AND first > ?"), (device, mark))
            reached, gaps = walk(device, mark, rows, before, [first for (first,) in cursor.fetchall()])
            for gap in gaps:
                cursor.execute(self._sql(_JUMP if gap.restart else _GAP), (*gap[:3], now))
            if reached > mark:
                cursor.execute(self._sql(_MARK), (device, reached))
            return gaps

        found: list[Gap] = self._do(look)
        return found

    def _mark_of(self, cursor: Any, device: str) -> int:
        """The number up to which was looked; before the first event that there is, when nobody has looked."""
        cursor.execute(self._sql("SELECT seq FROM marks WHERE device = ?"), (device,))
        if (row := cursor.fetchone()) is None:
            cursor.execute(self._sql("SELECT min(seq) - 1 FROM events WHERE device = ?"), (device,))
            row = cursor.fetchone()
        return int(row[0] or 0)

    def close(self) -> None:
        self._connection.close()

    def _sql(self, text: str) -> str:
        return text.replace("?", self._mark)

    def _do(self, what: Any) -> Any:
        """One transaction."""
        try:
            with self._connection, closing(self._connection.cursor()) as cursor:
                return what(cursor)
        except self._errors as error:
            raise Unavailable(f"{type(error).__name__}: {error}") from error


def open_sqlite(path: str) -> SqlStore:
    """A file of SQLite.

    Raises:
        Unavailable: it cannot be used.
    """
    try:
        connection = sqlite3.connect(path, timeout=10.0)
        # The log is written through to the disk at each commit: only then is an event acknowledged.
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
    except sqlite3.Error as error:
        raise Unavailable(f"{path}: {error}") from error
    return SqlStore(connection, "?", sqlite3.Error)


class PostgresStore(SqlStore):
    """Psycopg's connection closes at the end of its `with`: a transaction has one of its own."""

    def _do(self, what: Any) -> Any:
        try:
            with self._connection.transaction(), self._connection.cursor() as cursor:
                return what(cursor)
        except self._errors as error:
            raise Unavailable(f"{type(error).__name__}: {error}") from error


def open_postgres(where: str) -> SqlStore:
    """A database of PostgreSQL; the password comes from `~/.pgpass` or $PGPASSFILE, never from a command line.

    Raises:
        Unavailable: it cannot be reached, or psycopg is not installed.
    """
    try:
        import psycopg
    except ImportError:
        raise Unavailable("PostgreSQL needs the package psycopg: pip install 'psycopg[binary]'") from None
    try:
        connection = psycopg.connect(where, autocommit=True, connect_timeout=10)
    except psycopg.Error as error:
        raise Unavailable(f"{where}: {error}") from error
    return PostgresStore(connection, "%s", psycopg.Error)


def open_store(where: str) -> SqlStore:
    """A store that is there, see `check_store`.

    Raises:
        Unavailable: it cannot be used now.
    """
    if where.startswith(SQLITE):
        return open_sqlite(where.removeprefix(SQLITE))
    return open_postgres(where)


def check_store(where: str) -> str:
    """Return the URI if it is `sqlite:FILE` or `postgresql://…`.

    Raises:
        ValueError: it is neither.
    """
    if where.startswith(POSTGRES) or (where.startswith(SQLITE) and where != SQLITE):
        return where
    raise ValueError(f"unknown store {where!r}: write sqlite:FILE or postgresql://USER@HOST/DATABASE")
