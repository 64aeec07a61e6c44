"""How much memory a board has. Source: https://docs.kernel.org/filesystems/proc.html#meminfo."""

from __future__ import annotations

from pathlib import Path

from msgspec import Struct

from agent.health.files import read_text


class Memory(Struct, frozen=True):
    """All in MB (2^20 bytes); 0 where it is not known.

    Attributes:
        total_mb: in all. available_mb: that could be had now.
        swap_mb: swap in all. swap_free_mb: of it, not in use.
    """

    total_mb: int = 0
    available_mb: int = 0
    swap_mb: int = 0
    swap_free_mb: int = 0


def read_memory(root: Path = Path("/")) -> Memory:
    """The memory now.

    Args:
        root: of the file system.
    """
    kib = _table(read_text(root / "proc/meminfo"))
    names = ("MemTotal", "MemAvailable", "SwapTotal", "SwapFree")
    return Memory(*(kib.get(name, 0) // 1024 for name in names))


def _table(text: str) -> dict[str, int]:
    """`Name: 123 kB` by line."""
    found = {}
    for line in text.splitlines():
        name, _, value = line.partition(":")
        number = value.split()[:1]
        if number and number[0].isascii() and number[0].isdigit():
            found[name] = int(number[0])
    return found
