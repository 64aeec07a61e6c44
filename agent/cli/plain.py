"""Text of strangers, made safe for a terminal."""

from __future__ import annotations


def plain(text: str, *, keep: str = "") -> str:
    """With a question mark for every control character: none of them shall command the terminal.

    Args:
        text: of a message or a file.
        keep: control characters that may stay.
    """
    return "".join(letter if letter.isprintable() or letter in keep else "?" for letter in text)
