"""Protocol of a board, emulated or in a container, and helpers for its users."""

from __future__ import annotations

import shlex
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

ROOT = Path(__file__).parent.parent.parent
PATIENCE_S = 120.0


class BoardError(Exception):
    """A command or operation of a board has failed."""


class Board(Protocol):
    """A board; it is off at first.

    Attributes:
        name: for people.
        broker: address at which it reaches this machine's loopback.
        scale: how many times longer than this machine it takes for anything.
        camera, microphone: sources of its streams.
    """

    name: str
    broker: str
    scale: float
    camera: str
    microphone: str

    def up(self) -> None:
        """Boot, and return when commands can be run."""

    def cut(self) -> None:
        """Cut the power."""

    def down(self) -> None:
        """Shut down cleanly; do nothing if the board is off."""

    def run(
        self, command: str, *, given: bytes = b"", patience_s: float = PATIENCE_S
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a command of the shell as root.

        Args:
            command: of sh.
            given: on its stdin.
            patience_s: for it, on this machine; it is multiplied by `scale`.
        """

    def small_disk(self) -> None:
        """Put the slots on a disk that may be filled; call it before the installation."""

    def session(self, command: str) -> subprocess.Popen[bytes]:
        """Begin a command over SSH; killing the process looks like a lost network to the board."""


def sh(board: Board, command: str, *, patience_s: float = PATIENCE_S) -> str:
    """Run a command, and return its stripped stdout.

    Raises:
        BoardError: it fails.
    """
    done = board.run(command, patience_s=patience_s)
    if done.returncode:
        said = (done.stderr or done.stdout).decode("utf-8", "replace").strip()[-2000:]
        raise BoardError(f"{board.name}: {command}: exit code {done.returncode}: {said}")
    return done.stdout.decode("utf-8", "replace").strip()


def put(board: Board, content: bytes | Path, path: str) -> None:
    """Write a file on the board, and the folders above it.

    Raises:
        BoardError: it cannot be written.
    """
    data = content.read_bytes() if isinstance(content, Path) else content
    place = shlex.quote(path)
    done = board.run(f"mkdir -p $(dirname {place}) && cat >{place}", given=data, patience_s=300)
    if done.returncode:
        raise BoardError(f"{board.name}: {path}: cannot be written: {done.stderr.decode(errors='replace')}")


def wait_for(what: str, is_so: Callable[[], bool], patience_s: float, every_s: float = 0.5) -> float:
    """Wait until a condition holds, and return the time that this took, s.

    Raises:
        BoardError: it does not become so.
    """
    began = time.monotonic()
    while not is_so():
        if time.monotonic() - began > patience_s:
            raise BoardError(f"{what}: not within {patience_s:.0f} s")
        time.sleep(every_s)
    return time.monotonic() - began
