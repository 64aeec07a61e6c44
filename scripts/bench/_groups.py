"""Processes in groups of the kernel (cgroups), which share the processors as systemd's services do."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import common

UNIT = common.ROOT / "systemd" / "vedette.service"
DEFAULT_WEIGHT = 100
"""Weight of a service whose unit sets none."""
_SHARES = 1024
"""What version 1 of cgroups has in place of `DEFAULT_WEIGHT`."""


def unit_weight(unit: Path = UNIT) -> int:
    """The `CPUWeight=` of our unit."""
    found = re.search(r"^CPUWeight=(\d+)$", unit.read_text(encoding="utf-8"), re.MULTILINE)
    return int(found[1]) if found else DEFAULT_WEIGHT


class Group:
    """A group that processes can be moved into."""

    def __init__(self, folder: Path) -> None:
        self._processes = folder / "cgroup.procs"

    def add(self, pid: int) -> None:
        """Move a process, whose later children are in the group, too."""
        self._processes.write_text(str(pid), encoding="ascii")


@contextmanager
def groups(**weights: int) -> Iterator[dict[str, Group]]:
    """Groups by name, with these weights, side by side; none where this process may not make them."""
    with ExitStack() as stack:
        try:
            made = {name: stack.enter_context(_group(name, weight)) for name, weight in weights.items()}
        except OSError as error:
            print(f"without groups of their own: {error}", file=sys.stderr)
            made = {}
        yield made


@contextmanager
def _group(name: str, weight: int) -> Iterator[Group]:
    first, root = Path("/sys/fs/cgroup/cpu"), Path("/sys/fs/cgroup")
    folder = (first if first.is_dir() else root) / f"vedette-bench-{name}"
    folder.mkdir(exist_ok=True)
    try:
        if first.is_dir():
            (folder / "cpu.shares").write_text(str(weight * _SHARES // DEFAULT_WEIGHT), encoding="ascii")
        else:
            (folder / "cpu.weight").write_text(str(weight), encoding="ascii")
        yield Group(folder)
    finally:
        folder.rmdir()
