"""Files of `/proc` and `/sys`: short, made by the kernel, and often absent."""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Callable
from pathlib import Path

from msgspec import Struct


def read_text(path: Path) -> str:
    """A whole file without what surrounds its text; empty where it is not there or cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip("\0 \n\t")
    except OSError:
        return ""


def can_be_read(path: Path) -> bool:
    """Return True if a file can be read to its end; an empty file counts."""
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


# Whether the clock is right: TLS refuses certificates by a wrong one, and a Pi forgets it without power.
#
# Sources: https://man7.org/linux/man-pages/man2/adjtimex.2.html, and systemd-timesyncd.service(8) for its file.

_TIME_ERROR = 5
"""State (TIME_ERROR) that adjtimex returns while no time source has synchronised the clock."""
_TIMEX = 512
"""Bytes, more than any `struct timex` has: all zero asks, and changes nothing."""


class Clock(Struct, frozen=True):
    """The clock.

    Attributes:
        synchronised: with a time server or the like; None: the kernel does not tell.
        keeps: whether a clock of the hardware goes on without power.
    """

    synchronised: bool | None
    keeps: bool


def ask_kernel() -> int:
    """State of the kernel's clock, as adjtimex returns it; negative: it may not be asked."""
    try:
        return int(ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(_TIMEX)))
    except (OSError, AttributeError):
        return -1


def read_clock(root: Path = Path("/"), ask: Callable[[], int] = ask_kernel) -> Clock:
    """The clock now.

    Args:
        root: of the file system.
        ask: see `ask_kernel`.
    """
    keeps = any(root.glob("sys/class/rtc/rtc*"))
    if (root / "run/systemd/timesync/synchronized").exists():
        return Clock(True, keeps)
    state = ask()
    return Clock(None if state < 0 else state != _TIME_ERROR, keeps)


# How much room a folder has, and whether it can be written to.


class DiskUsage(Struct, frozen=True):
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


def read_disk(folder: Path) -> DiskUsage | None:
    """The file system of a folder; None where not even `/` tells.

    Args:
        folder: a full path; it need not be there.
    """
    for at in (folder, *folder.parents):
        try:
            found = os.statvfs(at)
        except OSError:
            continue
        return DiskUsage(
            at,
            found.f_blocks * found.f_frsize >> 20,
            found.f_bavail * found.f_frsize >> 20,
            found.f_favail if found.f_files else None,
            bool(found.f_flag & os.ST_RDONLY),
        )
    return None


# How fast the processors run now, and how fast they may.
#
# Source: https://docs.kernel.org/admin-guide/pm/cpufreq.html#policy-interface-in-sysfs

CPUFREQ = Path("sys/devices/system/cpu/cpufreq")
"""Below the root of the file system."""

_FILES = ("scaling_cur_freq", "scaling_max_freq", "cpuinfo_max_freq")
"""In kHz."""


class Frequency(Struct, frozen=True):
    """Frequencies of a group of processors that share one clock, MHz; 0 where the driver does not tell.

    Attributes:
        processors: their numbers, such as `0 1 2 3`.
        now_mhz: that the kernel has asked for.
        allowed_mhz: the highest that is allowed now. most_mhz: the highest that the hardware can do.
        governor: who picks it, such as `ondemand`.
    """

    processors: str
    now_mhz: int
    allowed_mhz: int
    most_mhz: int
    governor: str


def read_frequencies(folder: Path) -> list[Frequency]:
    """Read the frequencies of every group of processors; empty where the kernel does not scale them.

    Args:
        folder: `/sys/devices/system/cpu/cpufreq`.
    """
    return [_read(policy) for policy in sorted(folder.glob("policy*"))]


def _read(policy: Path) -> Frequency:
    now, allowed, most = ((read_number(policy / name) or 0) // 1000 for name in _FILES)
    processors = read_text(policy / "related_cpus") or policy.name
    return Frequency(processors, now, allowed, most, read_text(policy / "scaling_governor"))


# How much memory a board has. Source: https://docs.kernel.org/filesystems/proc.html#meminfo.


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


# Whether the runtime can see the processors. XNNPACK is left out without a word when it cannot.
#
# It knows them by https://github.com/pytorch/cpuinfo, which reads these files (there src/linux and
# src/arm/linux).

_COUNTED = ("sys/devices/system/cpu/possible", "sys/devices/system/cpu/present")
"""Either will do."""
_DESCRIBED = "proc/cpuinfo"
"""Empty will do: what a processor can do is known without it, and only kernels tuned for one are not taken."""
ADVICE = (
    "let vedette read /sys and /proc/cpuinfo: take InaccessiblePaths=, TemporaryFileSystem= and RootDirectory="
    " that hide them, and ProcSubset=pid, out of its unit"
)


def cpu_info_unreadable(root: Path = Path("/"), arch: str = platform.machine()) -> list[str]:
    """Paths without which the runtime does not know the processors, and which cannot be read, or are empty lists.

    Args:
        root: of the file system.
        arch: as `uname -m` has it; others than ARM tell by an instruction how many processors there are.
    """
    needed = _COUNTED if arch.startswith(("aarch", "arm")) else ()
    absent = [name for name in needed if not read_text(root / name)]
    absent = absent if len(absent) == len(_COUNTED) else []
    return [f"/{name}" for name in (*absent, *([] if can_be_read(root / _DESCRIBED) else [_DESCRIBED]))]
