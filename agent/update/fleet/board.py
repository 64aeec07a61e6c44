"""What a board tells of itself: as much as a fleet needs, so that other versions are understood, too."""

from __future__ import annotations

import base64
import difflib
import json
import re
from collections.abc import Sequence

import msgspec
from msgspec import Struct

from agent.errors import NO_JSON, FleetError
from agent.text import plural
from agent.update.protocol import UpdateStatus, Vitals

_UPDATE = re.compile(r'\s*\{\s*"update"\s*:\s*')
_LONGEST = 200
STRANGE = "its answer is not that of vedette-ssh: install Vedette there anew"


class BoardState(Struct, frozen=True):
    """What `status` answers.

    Attributes:
        update: versions and the update at hand.
        health: of the daemon; None: it does not run, or its health is unclear.
        unclear: why its health cannot be told, though something is there; empty: it can.
    """

    update: UpdateStatus
    health: Vitals | None = None
    unclear: str = ""

    def told(self) -> str:
        """The daemon in a few words."""
        if self.health is None:
            return f"health unknown: {self.unclear}" if self.unclear else "daemon does not run"
        streams = self.health.streams
        wrong = [f"{name} {one.state}" for name, one in streams.items() if one.state not in ("running", "off")]
        return ", ".join(wrong)[:_LONGEST] or f"{len(streams)} of {plural(len(streams), 'stream')} running"


class _Told(Struct, frozen=True):
    """What is told of health: as base64, or by older boards as it is."""

    health_base64: str | None = None
    health: msgspec.Raw = msgspec.Raw(b"null")


def parse_state(text: str) -> BoardState | None:
    """What a board has answered; None: this is no such answer.

    The update comes first, and is told by root. Health comes from the daemon, which is not trusted with the
    board's updates: whatever is in it changes nothing of what is told before it.
    """
    found = _UPDATE.match(text)
    if found is None:
        return None
    try:
        _, end = json.JSONDecoder().raw_decode(text, found.end())
        update = msgspec.json.decode(text[found.end() : end], type=UpdateStatus)
    except NO_JSON:
        return None
    try:
        return BoardState(update, _health(text))
    except NO_JSON:
        return BoardState(update, unclear="what its daemon tells cannot be read")


def _health(text: str) -> Vitals | None:
    told = msgspec.json.decode(text, type=_Told)
    if told.health_base64 is None:
        return msgspec.json.decode(told.health, type=Vitals | None)
    raw = base64.b64decode(told.health_base64, validate=True)
    return msgspec.json.decode(raw, type=Vitals) if raw else None


# The commands of a board as whole texts: what its `vedette-ssh` does for the key of updates, and no more.

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
_LISTED = (
    "status, doctor [--json], update status [--json], update history [--json], update apply, update confirm, "
    "update rollback [--once]"
)
_AS_NEAR = 0.75


def check_command(command: str) -> None:
    """Refuse what no board would do, before one is asked.

    Args:
        command: as it would be said to boards.

    Raises:
        FleetError: names those that there are.
    """
    if command in COMMANDS:
        return
    near = difflib.get_close_matches(command, COMMANDS, 1, _AS_NEAR)
    meant = f"; did you mean {near[0]!r}?" if near else ":"
    raise FleetError(f"{command!r} is no command of a board{meant} there are {_LISTED}")


def next_words(said: Sequence[str], begun: str) -> list[str]:
    """Words that may follow.

    Args:
        said: of a command, so far.
        begun: letters of the next one.
    """
    commands = [command.split() for command in COMMANDS]
    place = len(said)
    after = [words[place] for words in commands if len(words) > place and words[:place] == list(said)]
    return [word for word in dict.fromkeys(after) if word.startswith(begun)]
