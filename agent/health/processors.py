"""Whether the runtime can see the processors. On ARM, XNNPACK is left out without a word when it cannot.

It counts them with https://github.com/pytorch/cpuinfo, which reads these files (src/arm/linux/init.c there).
"""

from __future__ import annotations

import platform
from pathlib import Path

from agent.health.files import read_text

_COUNTED = ("sys/devices/system/cpu/possible", "sys/devices/system/cpu/present")
"""Either will do."""
_DESCRIBED = "proc/cpuinfo"
ADVICE = (
    "let vedette read /sys and /proc/cpuinfo: take InaccessiblePaths=, TemporaryFileSystem= and RootDirectory="
    " that hide them, and ProcSubset=pid, out of its unit"
)


def on_arm(arch: str = platform.machine()) -> bool:
    """Whether this is an ARM processor.

    Args:
        arch: as `uname -m` has it.
    """
    return arch.startswith(("aarch", "arm"))


def unreadable(root: Path = Path("/")) -> list[str]:
    """Paths without which the runtime does not know the processors, and which are empty or cannot be read.

    Args:
        root: of the file system.
    """
    absent = [name for name in _COUNTED if not read_text(root / name)]
    absent = absent if len(absent) == len(_COUNTED) else []
    return [f"/{name}" for name in (*absent, *([] if read_text(root / _DESCRIBED) else [_DESCRIBED]))]
