"""How log records become lines of text."""

from __future__ import annotations

import logging

from agent.plaintext import plain


class PlainFormatter(logging.Formatter):
    """Formats records as printable text: one line for the message, whatever it holds.

    Tracebacks keep their lines. These are indented, so that no exception's text can look like another record.
    """

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the name is logging's
        """Format the line itself."""
        return plain(super().formatMessage(record))

    def format(self, record: logging.LogRecord) -> str:
        """Format the record, with its traceback if it has one."""
        return plain(super().format(record), keep="\n").replace("\n", "\n  ")
