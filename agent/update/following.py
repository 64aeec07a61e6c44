"""Following: shows an update that another process does, by what it writes into the journal."""

from __future__ import annotations

import time
from collections.abc import Callable

from agent.errors import UpdateError
from agent.update.journal import Journal, Update
from agent.update.places import Places

_LOOK_S = 0.5
_IDLE_S = 20.0
"""A unit that is started on a busy board, or again after a failure, takes no longer."""
_PATIENCE_S = 3600.0
"""Without any change: longer than any state may take, but `shadow`, which waits for what a camera may see."""


def follow(
    where: Places,
    tell: Callable[[str], None],
    sleep: Callable[[float], None] = time.sleep,
    idle: Callable[[], str] = lambda: "",
    clock: Callable[[], float] = time.monotonic,
) -> Update:
    """Tell each state as it is reached, and what a trial waits for, until it is over.

    Args:
        where: things are.
        tell: is given a line for each.
        sleep: waits so many seconds.
        idle: why nobody goes on with it now; empty: somebody does.
        clock: that only goes forward, s.

    Raises:
        UpdateError: there is no update, or nothing more comes of it.
        StorageError: the journal cannot be read.
    """
    journal, told, waited_s, idle_since = Journal(where), ("", ""), 0.0, clock()
    while waited_s < _PATIENCE_S:
        update = journal.read()
        if update is None:
            raise UpdateError("no update is at hand")
        if (update.state, update.reason) != told:
            told, waited_s = (update.state, update.reason), 0.0
            tell(f"{update.state}{': ' if update.reason else ''}{update.reason}")
        if update.over:
            return update
        if not (why := idle()):
            idle_since = clock()
        elif clock() - idle_since > _IDLE_S:
            raise UpdateError(
                f"nobody goes on with the update, which is {update.state}: {why}: see `systemctl status "
                "vedette-update.service`; `vedette update resume` goes on with it here"
            )
        sleep(_LOOK_S)
        waited_s += 0.0 if update.state == "shadow" else _LOOK_S
    raise UpdateError(
        f"the update is {told[0]} for an hour: see `systemctl status vedette-update.service`, "
        "and go on with `vedette update resume`"
    )
