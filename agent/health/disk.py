"""How much room a folder has, and whether it can be written to."""

from __future__ import annotations

import os
from pathlib import Path

from msgspec import Struct


class Disk(Struct, frozen=True):
    """The file system that a folder lies in, or would lie in.

    Attributes:
        at: the folder, or the nearest above it that is there and may be seen.
        total_mb: size, MB (2^20 bytes). free_mb: that a user may still fill.
        files_left: how many more files there may be; None: as many as fit.
        read_only: it is mounted so, as the kernel does when an SD card fails.
    """

    at: Path
    total_mb: int
    free_mb: int
    files_left: int | None
    read_only: bool


def read_disk(folder: Path) -> Disk | None:
    """The file system of a folder; None where not even `/` tells.

    Args:
        folder: a full path; it need not be there.
    """
    for at in (folder, *folder.parents):
        try:
            found = os.statvfs(at)
        except OSError:
            continue
        return Disk(
            at,
            found.f_blocks * found.f_frsize >> 20,
            found.f_bavail * found.f_frsize >> 20,
            found.f_favail if found.f_files else None,
            bool(found.f_flag & os.ST_RDONLY),
        )
    return None
