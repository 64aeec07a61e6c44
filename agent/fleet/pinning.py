"""Pinning: the host keys that boards are known by, in `known_hosts` beside the inventory."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable
from pathlib import Path

from msgspec import Struct

from agent.errors import FleetError
from agent.fleet.inventory import Board
from agent.fleet.plainfile import read_plain
from agent.storage.updatefiles import add_line

_SCAN_S = 15.0
_LARGEST = 16 * 1024**2


class HostKey(Struct, frozen=True):
    """What a board shows.

    Attributes:
        line: of known_hosts, under the board's name.
        fingerprint: as `ssh-keygen -l` prints it.
    """

    line: str
    fingerprint: str


def check_pinned(known_hosts: Path, boards: Iterable[Board]) -> None:
    """Refuse boards whose host key is not known, before anything is done to any.

    Raises:
        FleetError: names them, and tells what to do.
    """
    if missing := unpinned(known_hosts, boards):
        raise FleetError(
            f"{known_hosts}: no host key of {', '.join(board.name for board in missing)}: "
            f"`vedette fleet pin {missing[0].name}` shows it and takes it; compare it with what "
            "`ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub` prints on the board"
        )


def unpinned(known_hosts: Path, boards: Iterable[Board]) -> list[Board]:
    """The boards without a line in known_hosts.

    Raises:
        FleetError: it cannot be read.
    """
    try:
        text = read_plain(known_hosts, _LARGEST, "host keys are pinned there").decode("utf-8", "replace")
    except FileNotFoundError:
        text = ""
    lines = text.splitlines()
    fields = [line.split()[0] for line in lines if line.strip() and not line.startswith(("#", "@"))]
    known = {name for field in fields for name in field.split(",")}
    hashed = any(name.startswith("|") for name in known)
    return [b for b in boards if b.name not in known and not (hashed and _finds(known_hosts, b.name))]


def _finds(known_hosts: Path, name: str) -> bool:
    """Whether a line whose names are hashed is the board's."""
    asks = ["ssh-keygen", "-F", name, "-f", str(known_hosts)]
    return subprocess.run(asks, capture_output=True, timeout=_SCAN_S, check=False).returncode == 0


def scan(board: Board) -> HostKey:
    """The host key that a board shows now; whether it is the board's, somebody has to know.

    Raises:
        FleetError: it shows none.
    """
    asks = ["ssh-keyscan", "-T", "10", "-t", "ed25519", "-p", str(board.port), "--", board.address]
    said = _run(asks, board)
    lines = [line.split() for line in said.splitlines() if line and not line.startswith("#")]
    if not lines or len(lines[0]) < 3:
        raise FleetError(f"{board.name}: {board.address} port {board.port} shows no host key: is it on?")
    line = " ".join((board.name, *lines[0][1:3]))
    return HostKey(line, _run(["ssh-keygen", "-l", "-f", "-"], board, line).strip())


def pin(known_hosts: Path, key: HostKey) -> None:
    """Trust a host key from now on.

    Raises:
        StorageError: the disk refuses.
    """
    add_line(known_hosts, key.line.encode())


def _run(words: list[str], board: Board, given: str = "") -> str:
    try:
        done = subprocess.run(words, input=given.encode(), capture_output=True, timeout=_SCAN_S, check=False)
    except FileNotFoundError as error:
        raise FleetError(f"there is no {words[0]} here: install openssh-client") from error
    except subprocess.TimeoutExpired as error:
        raise FleetError(f"{board.name}: {words[0]} does not end within {_SCAN_S:.0f} s") from error
    return done.stdout.decode("utf-8", "replace")
