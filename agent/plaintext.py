"""Text from outside made printable: cameras, brokers, devices, models and file names may hold control characters.

A terminal obeys escape codes, a log takes a line break for a new line, and marks that turn the direction of
writing make a text read otherwise than it is. The text of every `VedetteError` and every line of the log go
through `plain`, too, so that a forgotten place harms nobody.
"""

from __future__ import annotations

import re

_NAMED = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
_BYTE = range(0xDC80, 0xDD00)
"""Surrogates that stand for bytes of a file name that is not UTF-8 (PEP 383)."""
_BLANK = frozenset("\u115f\u1160\u2800\u3164\uffa0")
"""Letters that show nothing, which Python calls printable: fillers of Hangul, and Braille without a dot."""
_LOGIN = re.compile(r"(:/(?:/|(?=[^/:\n]*:)))(?:(?!: |; )[^\n])*(?=@)")
"""A user name and a password in an address that a message quotes, also as a path, which has one slash in place of
two. `: ` and `; ` end what it quotes."""


def is_plain(text: str) -> bool:
    """Return True if `plain` leaves the text as it is."""
    return text.isprintable() and (text.isascii() or _BLANK.isdisjoint(text))


def plain(text: str, *, keep: str = "") -> str:
    r"""Return the text with each character that is not printable written as an escape, such as `\x1b`.

    What is not printable: control characters, line and paragraph separators, marks that turn the direction of
    writing or have no width, halves of surrogate pairs, bytes of file names that are not UTF-8, and letters that
    show nothing. Selectors of variants, as behind an emoji, stay.

    Args:
        text: from outside, or with such text in it.
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


def _escaped(char: str) -> str:
    if char in _NAMED:
        return _NAMED[char]
    code = ord(char)
    if code in _BYTE:
        code -= 0xDC00
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
