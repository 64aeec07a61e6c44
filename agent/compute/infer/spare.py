"""Memory that a model may take while it is tried. Sources: proc_meminfo(5), cgroup-v2 (memory.max)."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

_LEAST = 128 * 2**20
"""Bytes that every model may take: small ones need some 60 MB with the stacks of their threads."""


def spare_bytes(root: Path = Path("/")) -> int:
    """Half of the memory that is available now, or of the limit of this process's cgroup if that is lower.

    Args:
        root: of the file system.

    Returns:
        Bytes, at least `_LEAST`.
    """
    return max(_LEAST, min(_available(root), *_cgroup_limits(root)) // 2)


def _available(root: Path) -> int:
    """Memory that could be had without swapping; all that the board has where the kernel does not tell, bytes."""
    for line in _read(root / "proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _cgroup_limits(root: Path) -> list[int]:
    """Limits of the cgroup and of those around it, bytes; one that limits nothing comes first."""
    top, limits = root / "sys/fs/cgroup", [1 << 62]
    lines = _read(root / "proc/self/cgroup").splitlines()
    own = next((line.removeprefix("0::/") for line in lines if line.startswith("0::/")), "")
    inside = [folder for folder in (top / own, *(top / own).parents) if folder.is_relative_to(top)]
    texts = (_read(folder / "memory.max").strip() for folder in inside)
    return limits + [int(text) for text in texts if text.isascii() and text.isdigit()]


def _read(path: Path) -> str:
    with suppress(OSError, ValueError):
        return path.read_text(encoding="ascii")
    return ""
