"""Trouble with a connection: what ssh and rsync say by exit code and on stderr, sorted. Rules without I/O."""

from __future__ import annotations

import re
from typing import Literal

from msgspec import Struct

Fault = Literal["unreachable", "failed"]

_SSH_FAILED = 255
_LINK_CODES = frozenset((_SSH_FAILED, 10, 12, 30, 35))
"""Of rsync: socket I/O, the protocol's stream broke off, and time-outs. See rsync(1), EXIT VALUES."""
_NEVER_WELL: tuple[tuple[str, str], ...] = (
    (
        r"REMOTE HOST IDENTIFICATION HAS CHANGED|host key .* has changed",
        "another host key than the pinned one: if the board was set up anew, take its line out of known_hosts "
        "and pin it again with `vedette fleet pin`; else somebody is in between",
    ),
    (
        r"No .* host key is known|Host key verification failed",
        "its host key is not pinned: `vedette fleet pin` shows it and takes it",
    ),
    (
        r"Permission denied \(",
        "it takes none of our keys: put the public one into /etc/vedette/update_keys on the board",
    ),
    (r"bad permissions|UNPROTECTED PRIVATE KEY", "the private key may be read by others: chmod 600 it"),
)
_FULL = ("No space left on device", "its disk is full: make room in /var/lib/vedette-upload")
_OWN = re.compile(r"^vedette(?:-ssh)?: (.+)$", re.MULTILINE)
_LONGEST = 300


class Trouble(Struct, frozen=True):
    """What went wrong.

    Attributes:
        fault: `unreachable`: the network, or the board is off. `failed`: trying again would not help.
        reason: in words.
    """

    fault: Fault
    reason: str


def trouble(code: int, said: str) -> Trouble | None:
    """What is wrong with an exit code of ssh or rsync; None: nothing.

    Args:
        code: of the program.
        said: on stderr, by it and by the other end.
    """
    if code == 0:
        return None
    for pattern, reason in _NEVER_WELL:
        if re.search(pattern, said):
            return Trouble("failed", reason)
    if own := _OWN.findall(said):  # the board itself has answered
        return Trouble("failed", own[-1][:_LONGEST])
    if _FULL[0] in said:  # a board that knows how full says so itself
        return Trouble("failed", _FULL[1])
    text = _first(said) or f"exit code {code}"
    return Trouble("unreachable" if code in _LINK_CODES else "failed", text)


def _first(said: str) -> str:
    """The first line that says something: what follows it are consequences."""
    lines = [line.strip() for line in said.splitlines() if line.strip() and not line.startswith("sudo: unable")]
    lines.sort(key=lambda line: line.startswith("Warning: "))  # which ssh goes on after
    return lines[0][:_LONGEST] if lines else ""
