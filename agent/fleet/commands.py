"""The commands of a board as whole texts: what its `vedette-ssh` does for the key of updates, and no more."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from agent.errors import FleetError

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
