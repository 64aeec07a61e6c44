"""Changes: what a bundle changes of what runs, how that is taken back, and how it is kept.

A version takes the other slot and a restart. Models take a reload: the streams that use them swap them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Literal, Protocol

from agent.errors import UpdateError
from agent.storage.models import read
from agent.storage.modelsets import ModelSets
from agent.storage.slots import Slots, slot_of
from agent.storage.updatefiles import remove, rename
from agent.update.gates import HealthGate
from agent.update.journal import Update
from agent.update.places import Places
from agent.update.service import Service
from agent.update.staging import CONFIG
from agent.update.switching import Switch, Verdict
from agent.update.trust import signature_of
from agent.update.vitals import read_vitals

Stand = Literal["on trial", "kept", "undone"]
"""How a change stands, as the disk tells: it may have been cut off while it was kept or undone."""


class Change(Protocol):
    """Of the update that is handed in, which has been tested."""

    stopped_at: float | None
    """When the daemon was stopped for it, by this process; s."""

    def go(self, update: Update, gate: HealthGate) -> None:
        """Change what runs."""

    def stand(self, update: Update) -> Stand:
        """Where it stands."""

    def undo(self, update: Update) -> Verdict | None:
        """Take it back, as often as this is called; gives what was done outside of this code, if it was."""

    def keep(self, update: Update) -> None:
        """Let it stay, as often as this is called."""


class VersionChange:
    """Of the version that runs."""

    def __init__(self, where: Places, service: Service, clock: Callable[[], float] = time.monotonic) -> None:
        self._where, self._service, self._clock = where, service, clock
        self._slots, self._switch = Slots(where.home), Switch(where)
        self.stopped_at: float | None = None

    def go(self, update: Update, gate: HealthGate) -> None:
        """See `Change`."""
        new, allowed_s = slot_of(update.slot), gate.within_s + gate.steady_s
        self._switch.go(slot_of(update.before), new, self._config(update), allowed_s)
        self.stopped_at = self._clock()
        self._service.restart()

    def _config(self, update: Update) -> bytes | None:
        """That the version needs; None: the one that there is."""
        migrated = self._slots.path(slot_of(update.slot)) / CONFIG
        return read(migrated) if migrated.exists() else None

    def stand(self, update: Update) -> Stand:
        """See `Change`."""
        if self._slots.of("current") != update.slot or self._switch.is_going_back:
            return "undone"
        return "on trial" if self._switch.on_trial else "kept"

    def undo(self, update: Update) -> Verdict | None:
        """See `Change`."""
        verdict = self._switch.verdict()
        if verdict is None or self._switch.on_trial or self._slots.of("current") == update.slot:
            verdict, was_undone = None, self.stand(update) == "undone" and not self._switch.on_trial
            self._switch.undo(slot_of(update.before))
            if not (was_undone and self._runs_again(update)):
                self._service.restart()
        return verdict

    def _runs_again(self, update: Update) -> bool:
        """Whether the version of before runs for certain: each new attempt need not start it once more."""
        vitals, standing = read_vitals(self._where.health), self._service.standing()
        old = self._slots.version(slot_of(update.before))
        differ = old != self._slots.version(slot_of(update.slot))
        runs = standing.active == "active" and not standing.waits
        return differ and runs and vitals is not None and vitals.version == old

    def keep(self, update: Update) -> None:
        """See `Change`."""
        self._slots.prove(slot_of(update.before))
        self._switch.commit(slot_of(update.slot), slot_of(update.before))
        for old, new in (
            (signature_of(self._where.incoming), signature_of(self._where.present)),
            (self._where.incoming, self._where.present),
        ):
            if old.exists():
                rename(old, new)


class ModelsChange:
    """Of the models in use."""

    def __init__(self, where: Places, service: Service) -> None:
        self._where, self._service, self._slots = where, service, Slots(where.home)
        self.stopped_at: float | None = None

    def _sets(self, update: Update) -> ModelSets:
        return ModelSets(self._slots.path(slot_of(update.slot)))

    def go(self, update: Update, gate: HealthGate) -> None:
        """See `Change`."""
        self._sets(update).point(update.counter)
        try:
            self._service.reload()
        except UpdateError:
            if not update.back:
                raise
            self._service.restart()  # what is gone back from may be what keeps it from running

    def stand(self, update: Update) -> Stand:
        """See `Change`."""
        if self._sets(update).current != update.counter:
            return "undone"
        return "on trial" if update.back or self._where.incoming.exists() else "kept"

    def undo(self, update: Update) -> Verdict | None:
        """See `Change`."""
        self._sets(update).point(update.models_before)
        with suppress(UpdateError):  # a daemon that does not run takes them at its start
            self._service.reload()
        return None

    def keep(self, update: Update) -> None:
        """See `Change`."""
        self._sets(update).tidy(update.models_before)
        remove(self._where.incoming, signature_of(self._where.incoming))


class Changes:
    """Of both kinds, of one board."""

    def __init__(self, where: Places, service: Service, clock: Callable[[], float] = time.monotonic) -> None:
        self._version, self._models = VersionChange(where, service, clock), ModelsChange(where, service)

    def of(self, update: Update) -> Change:
        """The one that its bundle makes."""
        return self._models if update.kind == "models" else self._version
