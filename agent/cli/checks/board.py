"""The board as the doctor sees it: processor, memory, kernel."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

from agent.doctor.report import Finding
from agent.health.board import Board, read_board
from agent.health.disk import read_disk
from agent.health.features import has, known_features
from agent.health.memory import Memory, read_memory

SECTION = "board"
_SCARCE_MB, _TIGHT_MB = 100, 250
"""Available memory below which the daemon with one detector may be killed, or has no reserve."""
_SMALL_MB = 1024
"""A board with less memory needs swap for updates and compilers."""
_BITS = struct.calcsize("P") * 8


def findings(root: Path) -> Iterator[Finding]:
    """What the board is.

    Args:
        root: of the file system.
    """
    board = read_board(root)
    yield Finding(SECTION, "model", board.model or "it does not tell")
    soc = " ".join(filter(None, (board.soc, board.soc_id and f"({board.soc_id})")))
    yield Finding(SECTION, "SoC", soc or "it does not tell")
    yield Finding(SECTION, "processor", f"{board.cpu}; {board.cores} for Vedette")
    yield from of_features(board)
    yield from of_memory(read_memory(root))
    shared = read_disk(root / "dev/shm")
    if shared is not None and shared.at == root / "dev/shm":
        yield Finding(SECTION, "shared memory", f"{shared.free_mb} of {shared.total_mb} MB free in /dev/shm")
    yield Finding(SECTION, "kernel", f"{board.kernel} {board.arch}")
    yield of_system(board, _BITS)


def of_features(board: Board) -> Iterator[Finding]:
    """What the processor has for models, and what it lacks."""
    for feature in known_features(board.arch):
        there = has(feature, board.features)
        names = "+".join(feature.names)
        value = (
            f"{'yes' if there else 'no'} ({names}): {'speeds up' if there else 'would speed up'} {feature.lets}"
        )
        yield Finding(SECTION, feature.title, value)


def of_memory(memory: Memory) -> Iterator[Finding]:
    """Whether there is enough."""
    if not memory.total_mb:
        yield Finding(SECTION, "memory", "/proc/meminfo cannot be read", "warning", "let vedette read /proc")
        return
    value = f"{memory.available_mb} of {memory.total_mb} MB available"
    advice = "free memory: see what takes it with `top -o %MEM`, or run a smaller rung"
    if memory.available_mb < _SCARCE_MB:
        yield Finding(SECTION, "memory", value, "problem", advice)
    else:
        tight = memory.available_mb < _TIGHT_MB
        yield Finding(SECTION, "memory", value, "warning" if tight else "ok", advice if tight else "")
    if memory.swap_mb:
        yield Finding(SECTION, "swap", f"{memory.swap_free_mb} of {memory.swap_mb} MB free")
    elif memory.total_mb < _SMALL_MB:
        yield Finding(
            SECTION, "swap", "none", "warning", "give this small board swap: sudo apt install zram-tools"
        )
    else:
        yield Finding(SECTION, "swap", "none")


def of_system(board: Board, bits: int) -> Finding:
    """The system, and whether its programs use what the kernel can.

    Args:
        board: that it runs on.
        bits: of a pointer in this Python.
    """
    value = f"{board.system}, {bits}-bit"
    if bits == 64 or not board.arch.endswith("64"):
        return Finding(SECTION, "system", value)
    advice = "install the 64-bit system: LiteRT, with XNNPACK for INT8, has no 32-bit build"
    return Finding(SECTION, "system", f"{value} on a 64-bit kernel", "warning", advice)
