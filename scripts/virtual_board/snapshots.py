"""Snapshots of the board at the beginning of each state of a successful update.

A program on the board writes each state that reaches the disk to the serial line. The board is paused then and a
snapshot is taken, so that a power cut needs only the time from the snapshot to the cut.
"""

from __future__ import annotations

import time
from pathlib import Path

import msgspec
from emulated import Emulated
from hearing import Hearing
from machine import BoardError, put, sh
from msgspec import Struct
from msgspec.structs import replace

ASKED = "asked"
"""Before `vedette update apply` is started."""
STATES = (ASKED, "received", "verified", "staged", "tested", "switching", "trial", "committed")
_EVERY_S = 30.0
"""Time between snapshots within a state, s."""
_MARK = "VEDETTE-STATE "
_LONGEST_S = 3600.0
_WATCHER = f"""
import os, re, time
journal, seen = "/var/lib/vedette-update/journal.json", None
line = os.open("/dev/ttyAMA0", os.O_WRONLY | os.O_NOCTTY)
while True:
    try:
        now = os.stat(journal).st_mtime_ns
        if now != seen:
            found = re.search(r'"state": *"([a-z_]+)"', open(journal).read())
            os.write(line, b"\\n{_MARK}" + found[1].encode() + b"\\n")
            seen = now
    except OSError:
        pass
    time.sleep(0.01)
"""


class Shot(Struct, frozen=True):
    """A snapshot of the board.

    Attributes:
        name: of the snapshot.
        state: of the update.
        at_s: time in this state while the board was not paused, s.
        length_s: time until the next shot, s.
        known: highest number of a received event.
    """

    name: str
    state: str
    at_s: float
    length_s: float
    known: int


class _Snapshots(Struct, frozen=True):
    stamp: str
    shots: list[Shot]


def load(path: Path, stamp: str) -> list[Shot]:
    """Load the snapshots of the same update; return [] if there is none."""
    if not path.exists():
        return []
    stored = msgspec.json.decode(path.read_bytes(), type=_Snapshots)
    return stored.shots if stored.stamp == stamp else []


def store(path: Path, stamp: str, shots: list[Shot]) -> None:
    """Store the snapshots of an update.

    Args:
        path: of the file.
        stamp: identifies the update.
        shots: to store.
    """
    path.write_bytes(msgspec.json.encode(_Snapshots(stamp, shots)))


class Camera:
    """Takes the snapshots of an update. Another state, such as `rolled_back`, ends it with an error."""

    def __init__(self, board: Emulated, hearing: Hearing) -> None:
        self._board, self._hearing = board, hearing
        self._shots: list[Shot] = []
        self._since, self._known, self._read = 0.0, 0, 0

    def shoot(self, bundle: str) -> list[Shot]:
        """Apply a bundle that is on the board, and return the snapshots.

        Raises:
            BoardError: the update is not committed.
        """
        put(self._board, _WATCHER.encode(), "/root/watcher.py")
        sh(self._board, "systemd-run --quiet --unit=board-watcher --nice=-10 python3 /root/watcher.py")
        self._read = self._board.console.stat().st_size
        self._keep(ASKED)
        sh(self._board, f"systemd-run --quiet --unit=board-apply vedette update apply {bundle}")
        began = time.monotonic()
        while self._state != STATES[-1]:
            for state in self._marks():
                if state not in STATES:
                    raise BoardError(f"the update is {state}: see vedette update history")
                if state != self._state:
                    self._keep(state)
            if time.monotonic() - self._since > _EVERY_S:
                self._keep(self._state)
            if time.monotonic() - began > _LONGEST_S:
                raise BoardError(f"the update is {self._state} for {_LONGEST_S:.0f} s")
            time.sleep(0.005)
        return self._shots

    @property
    def _state(self) -> str:
        return self._shots[-1].state if self._shots else ""

    def _marks(self) -> list[str]:
        with self._board.console.open("rb") as file:
            file.seek(self._read)
            text = file.read()
        whole = text[: text.rfind(b"\n") + 1]
        self._read += len(whole)
        lines = whole.decode("utf-8", "replace").splitlines()
        return [line.removeprefix(_MARK).strip() for line in lines if line.startswith(_MARK)]

    def _keep(self, state: str) -> None:
        self._board.halt()
        at_s = 0.0
        if self._shots:
            last = replace(self._shots[-1], length_s=round(time.monotonic() - self._since, 3))
            self._shots[-1] = last
            at_s = last.at_s + last.length_s if last.state == state else 0.0
        time.sleep(0.3)  # receive pending messages
        self._known = max(self._known, self._hearing.since(0).last)
        name = f"{state}-{sum(shot.state == state for shot in self._shots)}"
        self._board.save(name)
        self._shots.append(Shot(name, state, at_s, _EVERY_S, self._known))
        self._board.go_on()
        self._since = time.monotonic()
