"""Paths as text that everybody takes: a name on a disk is bytes, and need not be UTF-8."""

from __future__ import annotations

from pathlib import Path


def path_text(path: Path | str) -> str:
    r"""A path, or a text with paths in it, that JSON and terminals take: bytes that are no UTF-8 as `\xff`."""
    return str(path).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
