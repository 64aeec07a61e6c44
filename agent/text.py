"""Text for people: times, counts, printable text from outside, and log records.

Cameras, brokers, devices, models and file names may hold control characters. A terminal obeys escape codes, a log
takes a line break for a new record, and some marks change the direction of reading. The text of every
`VedetteError` and every log record goes through `plain` as well.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agent.types import Attribute

TIME_WIDTH = 25
"""Characters of a time as `local_time` writes it."""


def local_time(at: datetime) -> str:
    """Return a time in the zone of this machine, with its offset from UTC: `2026-11-27 10:02:03+01:00`."""
    with suppress(OverflowError, ValueError, OSError):  # the years 1 and 9999 may have no local time
        at = at.astimezone()
    return at.isoformat(" ", "seconds")


def plural(count: float, singular: str, plural: str = "") -> str:
    """Return a count with its noun: `1 device`, `2 devices`, `0.5 epochs`.

    Args:
        count: a float is told with three digits.
        singular: of the noun.
        plural: default: `singular` with an s.
    """
    told = f"{count:{'.0f' if count >= 100 else '.3g'}}" if isinstance(count, float) else str(count)
    return f"{told} {singular if told == '1' else plural or f'{singular}s'}"


_NUMBERS_SHOWN = 3


def attribute_texts(attributes: Mapping[str, Attribute]) -> list[tuple[str, str]]:
    """Return names and values of a track's attributes; of long vectors only what they are called."""
    return [
        (
            name,
            " ".join([one.value, *(f"{value:.4g}" for value in one.values if len(one.values) <= _NUMBERS_SHOWN)]),
        )
        for name, one in attributes.items()
    ]


_NAMED = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
_BYTE = range(0xDC80, 0xDD00)
"""Surrogates that stand for bytes of a file name that is not UTF-8 (PEP 383)."""
_BLANK = frozenset("\u115f\u1160\u2800\u3164\uffa0")
"""Invisible letters that Python calls printable: fillers of Hangul, and Braille without a dot."""
_LOGIN = re.compile(r"(:/(?:/|(?=[^/:\n]*:)))(?:(?!: |; )[^\n])*(?=@)")
"""User name and password in a quoted address; as a path it has one slash instead of two. `: ` and `; ` end it."""


def is_plain(text: str) -> bool:
    """Return True if `plain` leaves the text as it is."""
    return text.isprintable() and (text.isascii() or _BLANK.isdisjoint(text))


def plain(text: str, *, keep: str = "") -> str:
    r"""Return the text with each character that is not printable written as an escape, such as `\x1b`.

    Not printable are control characters, separators of lines and paragraphs, marks that change the direction of
    writing or have no width, surrogates, and invisible letters. Variation selectors, as after an emoji, stay.

    Args:
        text: from outside.
        keep: characters that stay as they are, such as a line break.
    """
    if is_plain(text):
        return text
    return "".join(char if is_plain(char) or char in keep else _escaped(char) for char in text)


def without_logins(text: str) -> str:
    """Return a message with `***` in place of user names and passwords in addresses, as in `rtsp://***@cam`."""
    return _LOGIN.sub(r"\1***", text) if ":/" in text and "@" in text else text


def without_login(value: str) -> str:
    """Return one value with `***` in place of all that stands between `://` and its last `@`."""
    scheme, mark, rest = value.partition("://")
    return f"{scheme}://***@{rest.rpartition('@')[2]}" if mark and "@" in rest else value


def file_name(text: str, longest: int) -> str:
    """Return a text as part of a file name: all but ASCII letters, digits and underscores become hyphens."""
    return re.sub(r"[^A-Za-z0-9_]+", "-", text)[:longest].strip("-")


def has_variable(text: str, name: str) -> bool:
    """Return True if `$NAME` or `${NAME}` occurs in the text."""
    return f"${name}" in text or f"${{{name}}}" in text


def replace_variable(text: str, name: str, value: str) -> str:
    """Return the text with `$NAME` and `${NAME}` replaced; other variables stay."""
    return text.replace(f"${{{name}}}", value).replace(f"${name}", value)


def _escaped(char: str) -> str:
    if char in _NAMED:
        return _NAMED[char]
    code = ord(char)
    if code in _BYTE:
        code -= 0xDC00
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


_LINE = "%(levelname)s %(message)s"
_PRIORITIES = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))
"""Levels with the journal's priorities, see sd-daemon(3); lower levels are 7."""


class PlainFormatter(logging.Formatter):
    """Formats records as printable text: one line for the message, and indented lines for a traceback."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the name is logging's
        return plain(super().formatMessage(record))

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: N802
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
