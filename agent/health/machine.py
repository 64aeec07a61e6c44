"""Readings of the board and of this process, from `/proc` and `/sys`. None where a board does not tell."""

from __future__ import annotations

import os
import resource
from pathlib import Path

from agent.health.thermal import THERMAL, read_zones


def resident_mb() -> float:
    """Resident memory of this process, MB (2^20 bytes).

    Raises:
        OSError: it cannot be read, as when this process may open no more files.
    """
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0


def temperature_c(zones: Path = Path("/") / THERMAL) -> float | None:
    """Hottest thermal zone, °C.

    Raises:
        OSError: as above.
    """
    return next((zone.temperature_c for zone in read_zones(zones)), None)


class Busy:
    """How busy others keep the processor, from now on."""

    def __init__(self, stat: Path = Path("/proc/stat")) -> None:
        """Begin to count.

        Args:
            stat: the kernel's, see `man 5 proc_stat`.
        """
        self._stat = stat
        self._began, self._children = self._ticks(), _of_children()

    def others(self) -> float:
        """Share of all processors that others than ended children of this process have used, 0..1."""
        busy, all_ = (now - then for now, then in zip(self._ticks(), self._began, strict=True))
        own = (_of_children() - self._children) * os.sysconf("SC_CLK_TCK")
        return min(1.0, max(0.0, (busy - own) / all_)) if all_ > 0 else 0.0

    def _ticks(self) -> tuple[int, int]:
        """Of work, and of everything."""
        try:
            line = self._stat.read_text(encoding="ascii").partition("\n")[0]
            ticks = [int(part) for part in line.split()[1:9]]
        except (OSError, ValueError):
            return 0, 0
        idle = sum(ticks[3:5])
        return sum(ticks) - idle, sum(ticks)


def _of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
