"""Files of `/proc` and `/sys`: short, made by the kernel, and often absent."""

from __future__ import annotations

from pathlib import Path


def read_text(path: Path) -> str:
    """A whole file without what surrounds its text; empty where it is not there or cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip("\0 \n\t")
    except OSError:
        return ""


def can_be_read(path: Path) -> bool:
    """Whether a file can be read to its end, be it empty."""
    try:
        path.read_bytes()
    except OSError:
        return False
    return True


def read_number(path: Path, base: int = 10) -> int | None:
    """The number that is all of a file; None where there is none.

    Args:
        path: the file.
        base: of its digits.
    """
    try:
        return int(read_text(path), base)
    except ValueError:
        return None
