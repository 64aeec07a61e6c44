"""How fast the processors run now, and how fast they may.

Source: https://docs.kernel.org/admin-guide/pm/cpufreq.html#policy-interface-in-sysfs
"""

from __future__ import annotations

from pathlib import Path

from msgspec import Struct

from agent.health.files import read_number, read_text

CPUFREQ = Path("sys/devices/system/cpu/cpufreq")
"""Below the root of the file system."""

_FILES = ("scaling_cur_freq", "scaling_max_freq", "cpuinfo_max_freq")
"""In kHz."""


class Frequency(Struct, frozen=True):
    """Of processors that run at the same frequency. MHz; 0 where the driver does not tell.

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
    """Of every group of processors; none where the kernel does not scale frequencies.

    Args:
        folder: `/sys/devices/system/cpu/cpufreq`.
    """
    return [_read(policy) for policy in sorted(folder.glob("policy*"))]


def _read(policy: Path) -> Frequency:
    now, allowed, most = ((read_number(policy / name) or 0) // 1000 for name in _FILES)
    processors = read_text(policy / "related_cpus") or policy.name
    return Frequency(processors, now, allowed, most, read_text(policy / "scaling_governor"))
