"""Returning: an operator goes back to the version before, which is always allowed and needs no trial."""

from __future__ import annotations

from agent.errors import UpdateError, VedetteError
from agent.storage.models import read
from agent.storage.slots import Slots, slot_of
from agent.update.journal import Journal, Update, now
from agent.update.places import Places
from agent.update.preparing import Tell
from agent.update.service import Service
from agent.update.switching import Switch

_ALLOWED_S = 60.0
"""The switch takes far less; after a power cut within it, `settle` at boot takes it back."""


def go_back(where: Places, service: Service, journal: Journal, tell: Tell) -> Update:
    """Switch to the version in the other slot, with the configuration that it had.

    Raises:
        UpdateError: an update is at hand, or the other slot holds nothing that could run.
        StorageError: the disk refuses; what ran goes on.
    """
    slots, switch = Slots(where.home), Switch(where)
    journal.check_free()
    running = slots.of("current")
    if running is None:
        raise UpdateError(f"{where.home}/current: nothing is installed here")
    other = slot_of("b" if running == "a" else "a")
    version = slots.version(other)
    if not version:
        raise UpdateError(f"{slots.path(other)}: holds no version to go back to")
    kept = switch.config_of(other)
    config = read(kept) if kept.exists() else None
    update = journal.begin(
        Update(
            state="switching",
            version=version,
            kind="full",
            slot=other,
            before=running,
            from_version=slots.version(running),
            began_at=now(),
        )
    )
    tell(f"going back from {update.from_version} to {version}")
    try:
        switch.go(running, other, config, _ALLOWED_S)
        service.restart()
        update = journal.step(update, "trial")  # cut off behind the commit, it stays; before, it is taken back
        switch.commit(other, running)
    except VedetteError as error:
        switch.undo(running)
        journal.step(update, "rolled_back", reason=f"not gone back: {error}", by="updater")
        raise
    return journal.step(update, "rolled_back", reason=f"an operator went back to {version}", by="operator")
