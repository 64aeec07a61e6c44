"""Standing: which versions a board has, and how far an update is."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from agent.errors import StorageError, UpdateError
from agent.text import local_time
from agent.update.install.journal import Journal
from agent.update.install.paths import Paths
from agent.update.install.slots import ModelSets, Slot, Slots
from agent.update.protocol import Update, UpdateStatus


def row(one: Update) -> str:
    """Format an update and its outcome as one line of the history."""
    what = f"{one.from_version or '?'} → {one.version or Path(one.file).name}"
    if one.counter and one.version != str(one.counter):  # two builds may be called the same
        what += f" (counter {one.counter})"
    took = f"{sum(one.seconds.values()):.0f} s"
    down = "" if one.downtime_s is None else f", down {one.downtime_s:.1f} s"
    why = f"  {one.by}: {one.reason}" if one.reason else ""
    return f"{local_time(one.began_at)}  {one.state:<11}  {what}  {took}{down}{why}"


def standing(where: Paths) -> UpdateStatus:
    """How a board stands.

    Raises:
        StorageError: what tells it cannot be read.
    """
    slots, journal = Slots(where.home), Journal(where)
    running = slots.of("current")
    other: Slot = "b" if running == "a" else "a"
    at_hand, trouble = None, ""
    try:
        at_hand = journal.read()
    except UpdateError as error:
        trouble = str(error)
    counter = journal.committed_counter()
    return UpdateStatus(
        version=slots.version(running) if running else "",
        slot=running or "",
        previous=slots.proved(other) if running else "",
        counter=counter,
        at_hand=at_hand,
        trouble=trouble,
        models=_models(slots, running) if running else 0,
        kind=_kind(journal, counter),
    )


def _models(slots: Slots, running: Slot) -> int:
    try:
        return ModelSets(slots.path(running)).current
    except StorageError:  # a link of somebody's own
        return 0


def _kind(journal: Journal, counter: int) -> str:
    """Return the kind of the newest committed bundle with that counter."""
    for one in reversed(journal.history()):
        if one.state == "committed" and one.counter == counter and not one.back:
            return one.kind
    return ""


# Following: shows an update that another process does, by what it writes into the journal.

_LOOK_S = 0.5
_IDLE_S = 20.0
"""A unit that is started on a busy board, or again after a failure, takes no longer."""
_PATIENCE_S = 3600.0
"""Without any change: longer than any state may take, but `shadow`, which waits for what a camera may see."""


def follow(
    where: Paths,
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
