"""How log records become lines of text."""

from __future__ import annotations

import logging
import os
import sys
from contextlib import suppress
from datetime import UTC, datetime

from agent.plaintext import plain
from agent.text import local_time

_LINE = "%(levelname)s %(message)s"
_PRIORITIES = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))
"""Levels with the journal's numbers, see sd-daemon(3); whatever is below them is 7."""


class PlainFormatter(logging.Formatter):
    """Formats records as printable text: one line for the message, whatever it holds.

    Tracebacks keep their lines. These are indented, so that no exception's text can look like another record.
    """

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the name is logging's
        """Format the line itself."""
        return plain(super().formatMessage(record))

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: N802
        """Format the time of a record."""
        return local_time(datetime.fromtimestamp(record.created, UTC))

    def format(self, record: logging.LogRecord) -> str:
        """Format the record, with its traceback if it has one."""
        return plain(super().format(record), keep="\n").replace("\n", "\n  ")


class JournalFormatter(PlainFormatter):
    """Formats records for systemd's journal: each line begins with its priority, such as `<4>`."""

    def format(self, record: logging.LogRecord) -> str:
        """Format the record, with its traceback if it has one."""
        number = next((number for level, number in _PRIORITIES if record.levelno >= level), 7)
        return f"<{number}>" + super().format(record).replace("\n", f"\n<{number}>")


def stderr_formatter() -> logging.Formatter:
    """Return the formatter for stderr: with the time of each record, unless the journal adds that."""
    return JournalFormatter(_LINE) if _journal_reads() else PlainFormatter(f"%(asctime)s {_LINE}")


def _journal_reads() -> bool:
    """Return whether stderr is the stream to the journal that systemd has named, see systemd.exec(5)."""
    with suppress(OSError, ValueError, AttributeError):
        found = os.fstat(sys.stderr.fileno())
        return os.environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"
    return False
