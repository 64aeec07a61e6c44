"""Describe this board as the kernel reports it: device tree, SoC, processor, memory. Needs no privilege.

Sources: https://docs.kernel.org/arch/arm64/cpu-feature-registers.html and elf_hwcaps.html beside it,
https://docs.kernel.org/admin-guide/abi-testing.html (`/sys/devices/socX`), the Arm part numbers as in `lscpu`,
and arch/x86/include/asm/cpufeatures.h of the kernel.
"""

from __future__ import annotations

import os
import platform
from collections import Counter
from pathlib import Path

from msgspec import Struct

from agent.board.proc import read_memory, read_text

_PARTS = {
    0xD03: "Cortex-A53",
    0xD04: "Cortex-A35",
    0xD05: "Cortex-A55",
    0xD07: "Cortex-A57",
    0xD08: "Cortex-A72",
    0xD09: "Cortex-A73",
    0xD0A: "Cortex-A75",
    0xD0B: "Cortex-A76",
    0xD0C: "Neoverse-N1",
    0xD0D: "Cortex-A77",
    0xD41: "Cortex-A78",
    0xD44: "Cortex-X1",
    0xD46: "Cortex-A510",
    0xD47: "Cortex-A710",
    0xD48: "Cortex-X2",
    0xD4B: "Cortex-A78C",
}
_QUALCOMM = {
    0x802: "Kryo 385 Gold",
    0x803: "Kryo 385 Silver",
    0x804: "Kryo 485 Gold",
    0x805: "Kryo 485 Silver",
    0xC00: "Falkor",
}
_ARM, _QCOM = 0x41, 0x51


class Board(Struct, frozen=True):
    """A board.

    Attributes:
        model: name by the device tree, else by the firmware; empty: unknown.
        compatible: names of the device tree, most specific first; empty on a machine without one.
        soc: name of the system on chip, such as `bcm2711`; empty: unknown.
        soc_id: as the SoC's driver reports it, such as `jep106:0070:0455`; empty: unknown.
        cpu: processors, such as `4 × Cortex-A72`.
        features: of the processor, as the kernel lists them.
        cores: number that this process may use.
        memory_mb, available_mb: total and available memory, MB (2^20 bytes).
        arch, kernel, system: such as `aarch64`, `6.6.31+rpt-rpi-v8`, `Debian GNU/Linux 12 (bookworm)`.
    """

    model: str
    compatible: tuple[str, ...]
    soc: str
    soc_id: str
    cpu: str
    features: tuple[str, ...]
    cores: int
    memory_mb: int
    available_mb: int
    arch: str
    kernel: str
    system: str


def read_board(root: Path = Path("/")) -> Board:
    """Describe this board; what is unknown is empty."""
    tree = root / "proc/device-tree"
    compatible = tuple(part for part in read_text(tree / "compatible").split("\0") if part)
    names, features = _processors(read_text(root / "proc/cpuinfo"))
    memory = read_memory(root)
    soc0 = root / "sys/devices/soc0"
    return Board(
        model=read_text(tree / "model") or read_text(root / "sys/class/dmi/id/product_name"),
        compatible=compatible,
        soc=compatible[-1].rpartition(",")[2] if compatible else read_text(soc0 / "machine"),
        soc_id=read_text(soc0 / "soc_id"),
        cpu=" + ".join(f"{count} × {name}" for name, count in Counter(names).items()) or platform.machine(),
        features=features,
        cores=len(os.sched_getaffinity(0)),
        memory_mb=memory.total_mb,
        available_mb=memory.available_mb,
        arch=platform.machine(),
        kernel=platform.release(),
        system=_system(read_text(root / "etc/os-release")),
    )


def _processors(cpuinfo: str) -> tuple[list[str], tuple[str, ...]]:
    """Return a name for each processor, and the features of the first."""
    names: list[str] = []
    features: tuple[str, ...] = ()
    for block in cpuinfo.split("\n\n"):
        lines = {key.strip(): value.strip() for key, _, value in (x.partition(":") for x in block.splitlines())}
        if "processor" not in lines:
            continue
        features = features or tuple(lines.get("Features", lines.get("flags", "")).split())
        names.append(lines.get("model name") or _arm(lines))
    return names, features


def _arm(lines: dict[str, str]) -> str:
    try:
        maker, part = int(lines["CPU implementer"], 16), int(lines["CPU part"], 16)
    except (KeyError, ValueError):
        return "unknown"
    known = {_ARM: _PARTS, _QCOM: _QUALCOMM}.get(maker, {})
    return known.get(part, f"part {part:#x} of maker {maker:#x}")


def _system(release: str) -> str:
    for line in release.splitlines():
        if line.startswith("PRETTY_NAME="):
            return line.partition("=")[2].strip("\"'")
    return platform.system()
