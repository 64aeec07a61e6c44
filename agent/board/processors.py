"""Times of the processors, and those that this process may use: its affinity mask, the quota of its groups.

Source: https://docs.kernel.org/admin-guide/cgroup-v2.html#cpu-interface-files (`cpu.max`, `cpu.stat`). A quota
holds for all processes of a group and of those below it. systemd sets the two by `CPUAffinity=`, `AllowedCPUs=`
and `CPUQuota=`.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Collection, Iterator
from pathlib import Path

from msgspec import Struct

from agent.board.proc import read_cpu_ticks, read_text

_GROUPS = "sys/fs/cgroup"
_USAGE = "usage_usec"


class Quota(Struct, frozen=True, gc=False):
    """Processor time that the kernel gives a control group.

    Attributes:
        processors: of it per time; 0.5 is half of one processor.
        used_s: by all processes of the group since it was made, s; None: unknown.
        group: path of the group, such as `/system.slice/vedette.service`.
    """

    processors: float
    used_s: float | None = None
    group: str = ""


class Ticks(Struct, frozen=True, gc=False):
    """Time that processors have spent since the start of the board, s: in all, idle, and on this process.

    Attributes:
        usable: numbers of the processors that are counted; empty: all.
        quota: that limits this process; None: none does.
        at_s: when it was read, monotonic, s.
    """

    total: float = 0.0
    idle: float = 0.0
    own: float = 0.0
    usable: frozenset[int] = frozenset()
    quota: Quota | None = None
    at_s: float = 0.0


def read_ticks(stat: Path = Path("/proc/stat"), only: Collection[int] | None = None) -> Ticks:
    """Read the times of all processors, or of some; zeros if they cannot be read.

    Time of a hypervisor is not idle.
    """
    busy, everything = read_cpu_ticks(stat, only)
    if not everything:
        return Ticks()
    per_s = os.sysconf("SC_CLK_TCK")
    return Ticks(everything / per_s, (everything - busy) / per_s, time.process_time())


def usable_processors() -> frozenset[int]:
    """Return the numbers of the processors that the threads of this process may run on, unless set one by one."""
    return frozenset(os.sched_getaffinity(os.getpid()))


def read_quota(root: Path = Path("/")) -> Quota | None:
    """Return the tightest quota of this process's control groups; None: there is none, or it cannot be read."""
    return min(_quotas(root), key=lambda quota: quota.processors, default=None)


def _quotas(root: Path) -> Iterator[Quota]:
    """Yield the quotas of this process's group and of those above it, up to the root that this process sees."""
    for line in read_text(root / "proc/self/cgroup").splitlines():
        if not line.startswith("0::"):
            continue
        parts = [part for part in line[3:].split("/") if part not in ("", ".", "..")]
        for depth in range(len(parts), -1, -1):
            folder, group = (root / _GROUPS).joinpath(*parts[:depth]), f"/{'/'.join(parts[:depth])}"
            if (quota := _read_quota(folder)) is not None:
                yield Quota(quota, _used_s(folder), group)


def _read_quota(folder: Path) -> float | None:
    """Parse `cpu.max`: quota and period, µs, or `max` for no quota."""
    quota, _, period = read_text(folder / "cpu.max").partition(" ")
    return int(quota) / int(period) if _is_positive(quota) and _is_positive(period) else None


def _is_positive(text: str) -> bool:
    return text.isascii() and text.isdecimal() and 0 < len(text) < 16 and int(text) > 0


def _used_s(folder: Path) -> float | None:
    for line in read_text(folder / "cpu.stat").splitlines():
        name, _, value = line.partition(" ")
        if name == _USAGE and _is_positive(value):
            return int(value) / 1e6
    return None


class OtherLoad:
    """Load of the processors by other programs since this object was made."""

    def __init__(self, stat: Path = Path("/proc/stat")) -> None:
        """Start counting."""
        self._stat = stat
        self._began, self._children = self._ticks(), _of_children()

    def share(self) -> float:
        """Return the share of all processors that was used, 0..1, without ended children of this process."""
        busy, all_ = (now - then for now, then in zip(self._ticks(), self._began, strict=True))
        own = (_of_children() - self._children) * os.sysconf("SC_CLK_TCK")
        return min(1.0, max(0.0, (busy - own) / all_)) if all_ > 0 else 0.0

    def _ticks(self) -> tuple[int, int]:
        return read_cpu_ticks(self._stat)


def _of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
