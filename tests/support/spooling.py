"""A spool with something in it, and what can be asked of it."""

from __future__ import annotations

import logging
import sqlite3
from pathlib import Path

import pytest

from agent.config import StorageConfig
from agent.storage.spool.spool import Spool

TOPIC = "vedette/porch/front/events"
_USUAL = 5.0
IMPATIENT = 0.1


def filled(folder: Path, count: int, config: StorageConfig | None = None, retry_s: float = _USUAL) -> Spool:
    """With so many events, on the disk."""
    opened = Spool(folder, config or StorageConfig(), retry_s)
    for number in range(count):
        opened.put(TOPIC, b"%d" % number)
    assert opened.flush(60.0)
    return opened


def numbers(opened: Spool, after: int = 0, limit: int = 10_000) -> list[int]:
    return [row.seq for row in opened.peek(after, limit)]


def bodies(opened: Spool) -> list[bytes]:
    return [row.body for row in opened.peek(0, 100)]


def reopened(opened: Spool, folder: Path, config: StorageConfig | None = None) -> Spool:
    """As after a restart."""
    opened.close()
    return Spool(folder, config or StorageConfig())


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the logged warnings and errors."""
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]


def corruption() -> sqlite3.DatabaseError:
    """Return the error that SQLite raises for a damaged page."""
    error = sqlite3.DatabaseError("database disk image is malformed")
    error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
    return error
