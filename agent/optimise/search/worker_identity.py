"""Identity of a process that works on a study, so that others can tell that it has died."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from msgspec import Struct

_PROC = Path("/proc")


class WorkerIdentity(Struct, frozen=True):
    """A process that works on a study, as others can recognise it.

    Attributes:
        host: name of the machine.
        pid: of the process.
        started: of the process, in the kernel's clock ticks; empty: not known.
        boot: of the machine, with the namespace of process numbers; empty: not known.
    """

    host: str
    pid: int
    started: str = ""
    boot: str = ""

    def __str__(self) -> str:
        return f"{self.host}:{self.pid}"

    @property
    def ended(self) -> bool:
        """True if the process was on this machine and is no more; False also if it is not known."""
        return bool(self.boot) and self.boot == _boot() and self.started != _started(self.pid)


def own_identity() -> WorkerIdentity:
    """Return the identity of this process."""
    return WorkerIdentity(socket.gethostname(), os.getpid(), _started(os.getpid()), _boot())


def _boot() -> str:
    try:
        number = (_PROC / "sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{number} {(_PROC / 'self/ns/pid').readlink()}"
    except OSError:
        return ""


def _started(pid: int) -> str:
    """Return when a process was started; empty: there is none, or it is a zombie."""
    try:
        fields = (
            (_PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        )
    except OSError:
        return ""
    return "" if fields[0] == "Z" else fields[19]
