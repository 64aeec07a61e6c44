"""Whether the runtime can see the processors. XNNPACK is left out without a word when it cannot.

It knows them by https://github.com/pytorch/cpuinfo, which reads these files (there src/linux and src/arm/linux).
"""

from __future__ import annotations

import platform
from pathlib import Path

from agent.health.files import can_be_read, read_text

_COUNTED = ("sys/devices/system/cpu/possible", "sys/devices/system/cpu/present")
"""Either will do."""
_DESCRIBED = "proc/cpuinfo"
"""Empty will do: what a processor can do is known without it, and only kernels tuned for one are not taken."""
ADVICE = (
    "let vedette read /sys and /proc/cpuinfo: take InaccessiblePaths=, TemporaryFileSystem= and RootDirectory="
    " that hide them, and ProcSubset=pid, out of its unit"
)


def unreadable(root: Path = Path("/"), arch: str = platform.machine()) -> list[str]:
    """Paths without which the runtime does not know the processors, and which cannot be read, or are empty lists.

    Args:
        root: of the file system.
        arch: as `uname -m` has it; others than ARM tell by an instruction how many processors there are.
    """
    needed = _COUNTED if arch.startswith(("aarch", "arm")) else ()
    absent = [name for name in needed if not read_text(root / name)]
    absent = absent if len(absent) == len(_COUNTED) else []
    return [f"/{name}" for name in (*absent, *([] if can_be_read(root / _DESCRIBED) else [_DESCRIBED]))]
