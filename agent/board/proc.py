"""Facts from `/proc` and `/sys`: clock, disk, frequencies, memory, and whether the runtime sees the processors.

Sources: https://docs.kernel.org/filesystems/proc.html#meminfo,
https://docs.kernel.org/admin-guide/pm/cpufreq.html#policy-interface-in-sysfs,
https://man7.org/linux/man-pages/man2/adjtimex.2.html, and systemd-timesyncd.service(8) for its file.
"""

from __future__ import annotations

import ctypes
import os
import platform
import re
import threading
from collections.abc import Callable, Collection
from pathlib import Path

from msgspec import Struct

_reading: dict[int, Path] = {}
"""File that each thread reads at this moment."""


def read_text(path: Path) -> str:
    """Return the text of a file without space around it; empty if it cannot be read."""
    thread = threading.get_ident()
    _reading[thread] = path
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip("\0 \n\t")
    except OSError:
        return ""
    finally:
        del _reading[thread]


def file_in_reading(thread: int | None) -> Path | None:
    """Return the file that a thread reads with `read_text` at this moment; None: it reads none.

    Args:
        thread: its identifier; None: it has not been started.
    """
    return None if thread is None else _reading.get(thread)


def boot_id() -> str:
    """Return the boot ID of the running kernel; empty if it cannot be read."""
    return read_text(Path("/proc/sys/kernel/random/boot_id"))


def _can_be_read(path: Path) -> bool:
    """Return True if a file can be read to its end; an empty file counts."""
    try:
        path.read_bytes()
    except OSError:
        return False
    return True


_NUMBER = re.compile(r"[+-]?(0x)?[0-9a-fA-F]+")
_LARGEST = 2**63 - 1
"""Largest number that a kernel writes, and its negative: beyond it a file holds something else."""


def read_number(path: Path, base: int = 10) -> int | None:
    """Return the number that a file consists of, of at most 63 bits; None: it is none, or cannot be read."""
    text = read_text(path)
    try:
        number = int(text, base) if _NUMBER.fullmatch(text) else None
    except ValueError:
        return None
    return number if number is not None and -_LARGEST <= number <= _LARGEST else None


_TIME_ERROR = 5
"""State (TIME_ERROR) that adjtimex returns while no time source has synchronised the clock."""
_TIMEX = 512
"""Bytes, more than any `struct timex` has. All zeros query the state and change nothing."""


class Clock(Struct, frozen=True):
    """State of the clock. TLS refuses certificates by a wrong clock, and a Pi forgets the time without power.

    Attributes:
        synchronised: whether a time source has set it; None: unknown.
        keeps: whether a hardware clock continues without power.
    """

    synchronised: bool | None
    keeps: bool


def ask_kernel() -> int:
    """Return the state of the kernel's clock from adjtimex; negative: not permitted."""
    try:
        return int(ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(_TIMEX)))
    except (OSError, AttributeError):
        return -1


def read_clock(root: Path = Path("/"), ask: Callable[[], int] = ask_kernel) -> Clock:
    """Read the state of the clock."""
    keeps = any(root.glob("sys/class/rtc/rtc*"))
    if (root / "run/systemd/timesync/synchronized").exists():
        return Clock(True, keeps)
    state = ask()
    return Clock(None if state < 0 else state != _TIME_ERROR, keeps)


class DiskUsage(Struct, frozen=True):
    """The file system of a folder.

    Attributes:
        at: the folder, or the nearest existing one above it.
        total_mb, free_mb: size, and free space for users, MB (2^20 bytes).
        files_left: how many more files can be created; None: as many as fit.
        read_only: whether it is mounted read-only, as the kernel does when an SD card fails.
    """

    at: Path
    total_mb: int
    free_mb: int
    files_left: int | None
    read_only: bool


def read_disk(folder: Path) -> DiskUsage | None:
    """Return the file system of a folder, which need not exist; None if it cannot be read."""
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


def read_cpu_ticks(stat: Path = Path("/proc/stat"), only: Collection[int] | None = None) -> tuple[int, int]:
    """Return the ticks that processors spent on work, and all their ticks; zeros if they cannot be read.

    Args:
        stat: the kernel's file.
        only: numbers of the processors that count; None: all.
    """
    first, *each = [line.split() for line in read_text(stat).splitlines() if line.startswith("cpu")] or [[]]
    counted = [line for line in each if only is None or line[0] in {f"cpu{number}" for number in only}]
    try:
        # The first line has the sum of all.
        ticks = [[int(part) for part in line[1:9]] for line in ([first] if counted == each else counted)]
    except ValueError:
        return 0, 0
    everything = sum(map(sum, ticks))
    return everything - sum(sum(line[3:5]) for line in ticks), everything


CPUFREQ = Path("sys/devices/system/cpu/cpufreq")
"""Below the root of the file system."""

_FILES = ("scaling_cur_freq", "scaling_max_freq", "cpuinfo_max_freq")
"""In kHz."""


class Frequency(Struct, frozen=True):
    """Frequencies of a group of processors that share one clock, MHz; 0: unknown.

    Attributes:
        processors: their numbers, such as `0 1 2 3`.
        now_mhz: requested by the kernel.
        allowed_mhz, most_mhz: highest that is allowed now, and highest that the hardware supports.
        governor: policy that selects it, such as `ondemand`.
    """

    processors: str
    now_mhz: int
    allowed_mhz: int
    most_mhz: int
    governor: str


def read_frequencies(folder: Path) -> list[Frequency]:
    """Read the frequencies of every group of processors; empty where the kernel does not scale them."""
    return [_read(policy) for policy in sorted(folder.glob("policy*"))]


def _read(policy: Path) -> Frequency:
    now, allowed, most = ((read_number(policy / name) or 0) // 1000 for name in _FILES)
    processors = read_text(policy / "related_cpus") or policy.name
    return Frequency(processors, now, allowed, most, read_text(policy / "scaling_governor"))


class Memory(Struct, frozen=True):
    """Memory of the board, MB (2^20 bytes); 0: unknown."""

    total_mb: int = 0
    available_mb: int = 0
    swap_mb: int = 0
    swap_free_mb: int = 0


def read_memory(root: Path = Path("/")) -> Memory:
    """Read the memory from a file system with this root."""
    kib = _table(read_text(root / "proc/meminfo"))
    names = ("MemTotal", "MemAvailable", "SwapTotal", "SwapFree")
    return Memory(*(kib.get(name, 0) // 1024 for name in names))


def _table(text: str) -> dict[str, int]:
    """Parse lines such as `Name: 123 kB`."""
    found = {}
    for line in text.splitlines():
        name, _, value = line.partition(":")
        number = value.split()[:1]
        if number and number[0].isascii() and number[0].isdigit():
            found[name] = int(number[0])
    return found


_COUNTED = ("sys/devices/system/cpu/possible", "sys/devices/system/cpu/present")
"""One of the two is enough."""
_DESCRIBED = "proc/cpuinfo"
"""May be empty: then only kernels tuned for one processor are not used."""
ADVICE = (
    "let vedette read /sys and /proc/cpuinfo: take InaccessiblePaths=, TemporaryFileSystem= and RootDirectory="
    " that hide them, and ProcSubset=pid, out of its unit"
)


def cpu_info_unreadable(root: Path = Path("/"), arch: str = platform.machine()) -> list[str]:
    """List the files by which the runtime counts the processors and which cannot be read.

    Without them the runtime silently leaves XNNPACK out. Source: https://github.com/pytorch/cpuinfo, src/linux
    and src/arm/linux.

    Args:
        root: of the file system.
        arch: as by `uname -m`; only on ARM are the processors counted by files.
    """
    needed = _COUNTED if arch.startswith(("aarch", "arm")) else ()
    absent = [name for name in needed if not read_text(root / name)]
    absent = absent if len(absent) == len(_COUNTED) else []
    return [f"/{name}" for name in (*absent, *([] if _can_be_read(root / _DESCRIBED) else [_DESCRIBED]))]
