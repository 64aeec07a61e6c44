"""Shared libraries of this board: where the loader finds them, and whether it could load them.

Nothing is loaded: a library may end the process that loads it.
"""

from __future__ import annotations

import re
import stat
import struct
import subprocess
from functools import cached_property
from pathlib import Path

from agent.errors import reason_of

_FOLDERS = ("usr/local/lib", "usr/lib/*-linux-gnu*", "usr/lib", "usr/lib64", "lib")
_LDCONFIG = "/sbin/ldconfig"
_LISTED = re.compile(r"^\t(\S+) \(.*\) => (/.*)$", re.MULTILINE)
_PATIENCE_S = 10.0
_MACHINES = {3: "x86", 40: "ARM (32-bit)", 62: "x86-64", 183: "ARM (64-bit)", 243: "RISC-V"}
"""ELF's numbers: https://refspecs.linuxfoundation.org/elf/gabi4+/ch4.eheader.html"""
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class Libraries:
    """Of one file system, as it is now."""

    def __init__(self, root: Path) -> None:
        """Nothing is looked for yet.

        Args:
            root: of the file system.
        """
        self._root = root

    def path(self, name: str) -> str:
        """Full path of a library by its path or its file name; empty when there is none.

        Of several with that name it is one that can be loaded, if there is one.
        """
        if "/" in name:
            path = self._root / name.lstrip("/")
            return str(path) if path.exists() or path.is_symlink() else ""
        usual = [str(path) for folder in _FOLDERS for path in sorted(self._root.glob(f"{folder}/{name}"))]
        usable = next((path for path in usual if not why_not(Path(path))), "")
        if usable:
            return usable
        others = self._listed.get(name, [])
        return next((path for path in others if not why_not(Path(path))), next(iter((*usual, *others)), ""))

    @cached_property
    def _listed(self) -> dict[str, list[str]]:
        """What the loader knows besides the usual folders, by `/etc/ld.so.conf`."""
        listed: dict[str, list[str]] = {}
        if self._root != Path("/"):
            return listed
        try:
            done = subprocess.run([_LDCONFIG, "-p"], capture_output=True, timeout=_PATIENCE_S, check=False)
        except (OSError, subprocess.TimeoutExpired):  # a system without glibc has none
            return listed
        for name, path in _LISTED.findall(done.stdout.decode(errors="replace")):
            listed.setdefault(name, []).append(path)
        return listed


def why_not(path: Path) -> str:
    """Why the loader cannot load this file on this machine; empty if it may."""
    try:
        if kind := _KINDS.get(stat.S_IFMT(path.stat().st_mode)):
            return f"is {kind}, and no shared library"
        with path.open("rb") as file:
            head = file.read(20)
    except OSError as error:
        return f"cannot be read: {reason_of(error)}"
    if head[:4] != b"\x7fELF" or len(head) < 20:
        return "is no shared library"
    (theirs,) = struct.unpack("<H", head[18:20])
    with Path("/proc/self/exe").open("rb") as file:
        (ours,) = struct.unpack("<H", file.read(20)[18:])
    if theirs == ours:
        return ""
    known = _MACHINES.get(theirs, f"machine {theirs}"), _MACHINES.get(ours, f"machine {ours}")
    return f"is for {known[0]}, and this is {known[1]}"
