"""Text from outside made printable: cameras, brokers, devices, models and file names may hold control characters.

A terminal obeys escape codes, a log takes a line break for a new line, and marks that turn the direction of
writing make a text read otherwise than it is. The text of every `VedetteError` and every line of the log go
through `plain`, too, so that a forgotten place harms nobody.
"""

from __future__ import annotations

_NAMED = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
_BYTE = range(0xDC80, 0xDD00)
"""Surrogates that stand for bytes of a file name that is not UTF-8 (PEP 383)."""


def plain(text: str, *, keep: str = "") -> str:
    r"""Return the text with each character that is not printable written as an escape, such as `\x1b`.

    What is not printable: control characters, line and paragraph separators, marks that turn the direction of
    writing or have no width, halves of surrogate pairs, and bytes of file names that are not UTF-8.

    Args:
        text: from outside, or with such text in it.
        keep: characters that stay as they are, such as a line break.
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or char in keep else _escaped(char) for char in text)


def _escaped(char: str) -> str:
    if char in _NAMED:
        return _NAMED[char]
    code = ord(char)
    if code in _BYTE:
        code -= 0xDC00
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
