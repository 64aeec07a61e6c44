"""Preflight: whether this board can take a bundle at all, asked before anything is unpacked."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct

from agent.board.thermal import UNDER_VOLTAGE, read_supply
from agent.errors import UpdateError

if TYPE_CHECKING:
    from agent.update.bundle.description import Description


_SPACE_FACTOR = 4
"""A slot takes so many times what its bundle does: wheels are compressed, and Python compiles what is in them."""
_RESERVE_MB = 64
"""Space left free for the spool and the system's log, whatever an update takes, MB."""


class BoardFacts(Struct, frozen=True, kw_only=True):
    """Properties of a board that decide whether a bundle can be installed.

    Attributes:
        arch: such as `aarch64`. glibc: such as `2.36`; empty: it has another libc.
        pythons: versions that are installed, such as `3.11`.
        profile: of the board, such as `pi4b`; empty: none fits.
        free_mb: on the disk of the slots, MB (2^20 bytes).
        is_underpowered: whether the supply is too weak at this moment.
        counter: the highest that was committed.
        has_current: whether a slot runs already, which a bundle of models needs.
    """

    arch: str
    glibc: str
    pythons: frozenset[str]
    profile: str
    free_mb: int
    is_underpowered: bool
    counter: int
    has_current: bool


def read_facts(home: Path, profile: str, counter: int, *, has_current: bool) -> BoardFacts:
    """Read the facts of this board.

    Args:
        home: that the slots lie in.
        profile: of the board.
        counter: the highest that was committed.
        has_current: whether a version runs.
    """
    supply = read_supply()
    return BoardFacts(
        arch=platform.machine(),
        glibc=platform.libc_ver()[1] if platform.libc_ver()[0] == "glibc" else "",
        pythons=frozenset(version for version in ("3.11", "3.12", "3.13") if find_python(version)),
        profile=profile,
        free_mb=_free_mb(home),
        is_underpowered=supply is not None and UNDER_VOLTAGE in supply.now,
        counter=counter,
        has_current=has_current,
    )


def find_python(version: str) -> str:
    """The system's interpreter of a version, which a slot is built on; empty: there is none."""
    places = os.pathsep.join(("/usr/bin", "/usr/local/bin", os.environ.get("PATH", "")))
    return next((path for path in _named(version, places) if _is(path, version)), "")


def _named(version: str, places: str) -> Iterator[str]:
    for name in (f"python{version}", "python3"):
        if path := shutil.which(name, path=places):
            yield path


def _is(path: str, version: str) -> bool:
    """Return True if this Python runs and has this version: a version manager's shim may lead nowhere."""
    asks = [path, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
    try:
        done = subprocess.run(asks, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0 and done.stdout.strip() == version


def _free_mb(folder: Path) -> int:
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free // 1024**2


def check(wanted: Description, facts: BoardFacts) -> None:
    """Refuse a bundle that this board cannot take.

    Raises:
        UpdateError: it cannot; says each thing that stands in the way.
    """
    if wrong := list(objections(wanted, facts)):
        raise UpdateError("; ".join(wrong))


def objections(wanted: Description, facts: BoardFacts) -> Iterator[str]:
    """Yield, in words, each reason why the bundle cannot be installed on this board."""
    target = wanted.target
    if target is not None:
        if target.arch != facts.arch:
            yield f"the bundle is for {target.arch}, this board is {facts.arch}"
        if target.boards and facts.profile not in target.boards:
            board = facts.profile or "of no known kind"
            yield f"the bundle is for {', '.join(target.boards)}, this board is {board}"
    if target is not None and wanted.kind == "full":
        if target.python not in facts.pythons:
            found = ", ".join(sorted(facts.pythons)) or "none"
            yield f"the bundle needs Python {target.python}, this board has {found}"
        if _number(facts.glibc) < _number(target.glibc):
            yield f"the bundle needs glibc {target.glibc}, this board has {facts.glibc or 'another libc'}"
    if wanted.kind == "models" and not facts.has_current:
        yield "a bundle of models needs a version that runs: install a full bundle first"
    if wanted.counter <= facts.counter:
        yield (
            f"counter {wanted.counter} is not above {facts.counter}, which this board has had: older versions "
            "are refused; `vedette update rollback` returns to the version before"
        )
    size_mb = sum(file.size for file in wanted.files.values()) // 1024**2
    needed_mb = size_mb * (_SPACE_FACTOR if wanted.kind == "full" else 1) + _RESERVE_MB
    if facts.free_mb < needed_mb:
        yield f"the update needs {needed_mb} MB, {facts.free_mb} MB are free: make room"
    if facts.is_underpowered:
        yield "the power supply is too weak at this moment (under-voltage): an update may be cut off"


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())
