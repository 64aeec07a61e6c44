"""The answer of a board to `status`, and the commands that a board allows."""

from __future__ import annotations

import base64
import difflib
import json
import re
from collections.abc import Sequence

import msgspec
from msgspec import Struct

from agent.errors import NO_JSON, FleetError
from agent.health import DaemonHealth
from agent.structs import from_json
from agent.text import plural
from agent.update.protocol import UpdateStatus

_UPDATE = re.compile(r'\s*\{\s*"update"\s*:\s*')
_LONGEST = 200
STRANGE = "unexpected answer, not from vedette-ssh: run scripts/install on the board"


class BoardState(Struct, frozen=True):
    """Answer of a board to `status`.

    Attributes:
        update: versions and the current update.
        health: None: the daemon does not run, or its health cannot be read.
        unclear: why the health cannot be read; empty: it can, or there is none.
    """

    update: UpdateStatus
    health: DaemonHealth | None = None
    unclear: str = ""

    def describe(self) -> str:
        """Describe the daemon in a few words."""
        if self.health is None:
            return f"health unknown: {self.unclear}" if self.unclear else "daemon does not run"
        streams = self.health.streams
        wrong = [f"{name} {one.state}" for name, one in streams.items() if one.state not in ("running", "off")]
        return ", ".join(wrong)[:_LONGEST] or f"{len(streams)} of {plural(len(streams), 'stream')} running"


class _Answer(Struct, frozen=True):
    """Health as base64; older boards send it as plain JSON."""

    health_base64: str | None = None
    health: msgspec.Raw = msgspec.Raw(b"null")


def parse_state(text: str) -> BoardState | None:
    """Parse an answer to `status`; return None if it is not one.

    The update comes first and is written by root. The health is written by the daemon, which is not trusted:
    nothing in it can change the update.
    """
    found = _UPDATE.match(text)
    if found is None:
        return None
    try:
        _, end = json.JSONDecoder().raw_decode(text, found.end())
        update = from_json(text[found.end() : end], UpdateStatus)
    except NO_JSON:
        return None
    try:
        return BoardState(update, _health(text))
    except NO_JSON:
        return BoardState(update, unclear="the daemon's health file is damaged")


def _health(text: str) -> DaemonHealth | None:
    answer = from_json(text, _Answer)
    if answer.health_base64 is None:
        return from_json(answer.health, DaemonHealth | None)
    raw = base64.b64decode(answer.health_base64, validate=True)
    return from_json(raw, DaemonHealth) if raw else None


COMMANDS = (
    "status",
    "doctor",
    "doctor --json",
    "update status",
    "update status --json",
    "update history",
    "update history --json",
    "update apply",
    "update confirm",
    "update rollback",
    "update rollback --once",
)
"""Commands that `vedette-ssh` on a board allows, each compared as a whole."""
_LISTED = (
    "status, doctor [--json], update status [--json], update history [--json], update apply, update confirm, "
    "update rollback [--once]"
)
_AS_NEAR = 0.75


def check_command(command: str) -> None:
    """Refuse a command line that no board allows; raise FleetError with the allowed ones."""
    if command in COMMANDS:
        return
    near = difflib.get_close_matches(command, COMMANDS, 1, _AS_NEAR)
    meant = f"; did you mean {near[0]!r}?" if near else ":"
    raise FleetError(f"{command!r} is not a command of a board{meant} expected {_LISTED}")


def next_words(before: Sequence[str], begun: str) -> list[str]:
    """Return the words that may come next, for shell completion.

    Args:
        before: words of the command so far.
        begun: first letters of the next word.
    """
    commands = [command.split() for command in COMMANDS]
    place = len(before)
    after = [words[place] for words in commands if len(words) > place and words[:place] == list(before)]
    return [word for word in dict.fromkeys(after) if word.startswith(begun)]
