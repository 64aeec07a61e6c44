"""Probation: what was switched to runs on trial until it is kept or taken back, whatever cuts that off."""

from __future__ import annotations

import time
from collections.abc import Callable

from msgspec.structs import replace

from agent.update.changes import Change, Changes
from agent.update.ending import Ending
from agent.update.journal import Journal, Update
from agent.update.orders import Orders
from agent.update.places import Places
from agent.update.preparing import Tell
from agent.update.returning import terms
from agent.update.switching import BOOTS
from agent.update.trial import Outcome, Reloaded, Trial
from agent.update.vitals import boot_id
from agent.update.watching import Watch


class Probation:
    """Of the update at hand."""

    def __init__(
        self,
        where: Places,
        journal: Journal,
        ending: Ending,
        changes: Changes,
        watch: Watch,
        orders: Orders,
        tell: Tell,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._where, self._journal, self._ending, self._changes = where, journal, ending, changes
        self._watch, self._orders, self._tell, self._clock = watch, orders, tell, clock

    def go_on(self, update: Update) -> Update:
        """From where the disk says that it is, to its end.

        Raises:
            StorageError: the disk refuses.
            UpdateError: the service does not start.
        """
        change = self._changes.of(update)
        stand = change.stand(update)
        if stand == "kept":
            if (asked := self._orders.take()) is None or asked.verdict != "commit":
                self._orders.by = "updater"  # or an operator has: it was cut off behind that
            return self._ending.keep(update, change, "")
        if stand == "undone":
            return self._ending.take_back(update, change, "it was cut off on the way back")
        # It goes on, whatever it was to be taken back for when that was cut off.
        update = self._counted(replace(update, reason=""))
        if update.starts > BOOTS:
            return self._ending.take_back(
                update, change, f"the board was started {update.starts} times during the trial"
            )
        trial = self._trial(update)
        # Who was started since counts its failures from 0.
        failures = 0 if update.starts else update.failures_before
        outcome = self._watch.until_over(
            trial, failures, self._journal.telling(update, self._tell), self._asking(update, change)
        )
        if change.stopped_at is not None and trial.ready_at is not None:
            update = replace(update, downtime_s=round(trial.ready_at - change.stopped_at, 2))
        if outcome.verdict == "commit":
            return self._ending.keep(update, change, outcome.reason)
        return self._ending.take_back(update, change, outcome.reason)

    def _counted(self, update: Update) -> Update:
        """With this boot counted. Of versions the dead-man counts them, of models nobody else does."""
        if update.kind != "models" or update.boot_id == boot_id():
            return update
        return self._journal.note(update, starts=update.starts + 1, boot_id=boot_id())

    def _trial(self, update: Update) -> Trial:
        gate, before = terms(update, self._where.incoming)
        self._tell(f"on trial: it has to be well for {gate.steady_s:g} s on end within {gate.within_s:g} s")
        version = update.version if update.kind == "full" else ""
        # Who was started since has the models from its start, whatever its pid is.
        is_asked = update.kind == "models" and not update.starts
        reloaded = Reloaded(update.pid_before, update.reloads_before) if is_asked else None
        is_replaced = update.kind == "full" and update.boot_id == boot_id()
        replaced = update.pid_before if is_replaced else 0
        return Trial(gate, before, version, self._clock(), asked=reloaded, replaced=replaced)

    def _asking(self, update: Update, change: Change) -> Callable[[], Outcome | None]:
        """What somebody else has decided: an operator, or the dead-man."""

        def asked() -> Outcome | None:
            if change.stand(update) != "on trial":
                return Outcome("roll back", "it was taken back by somebody else")
            return self._orders.take()

        return asked
