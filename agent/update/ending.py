"""Ending: an update is refused, kept or taken back, and put into the history, on a disk that may be full."""

from __future__ import annotations

from contextlib import suppress

from agent.errors import StorageError, VedetteError
from agent.update.changes import Change
from agent.update.journal import Journal, Update
from agent.update.orders import Orders
from agent.update.places import Places
from agent.update.preparing import Preparation, Tell
from agent.update.states import State
from agent.update.switching import Switch

_ON_THE_WAY = "taking it back: "


class Ending:
    """Of the update at hand. Each gives it as it is in the history."""

    def __init__(
        self, where: Places, journal: Journal, preparation: Preparation, orders: Orders, tell: Tell
    ) -> None:
        self._where, self._journal, self._preparation = where, journal, preparation
        self._orders, self._tell = orders, tell

    def refuse(self, update: Update, reason: str) -> Update:
        """Before its switch: what it has staged goes, and what runs goes on.

        Raises:
            StorageError: not even that can be noted; it is to be tried again.
        """
        reason = reason.replace(str(self._where.incoming), update.file)  # which people know
        self._tell(f"refused: {reason}")
        self._preparation.discard(update)  # first: on a disk that is full it could not be noted
        try:
            refused = self._journal.step(update, "refused", reason=reason, by=self._orders.by)
        except StorageError:
            self._preparation.clear(update)
            refused = self._journal.step(update, "refused", reason=reason, by=self._orders.by)
        self._orders.done()
        self._preparation.clear(refused)
        return refused

    def keep(self, update: Update, change: Change, reason: str) -> Update:
        """After its trial: it stays.

        Raises:
            StorageError: the disk refuses; it is to be tried again.
        """
        change.keep(update)
        state: State = "rolled_back" if update.back else "committed"
        by = "operator" if update.back else self._orders.by
        reason = f"an operator went back to {update.version}" if update.back else reason
        update = self._journal.step(update, state, reason=reason, by=by, downtime_s=update.downtime_s)
        self._orders.done()
        self._tell(reason if update.back else f"committed: {update.version}")
        return update

    def take_back(self, update: Update, change: Change, reason: str) -> Update:
        """From its switch on: what ran before comes back. Why is told even if this is cut off, and done again.

        Raises:
            StorageError: the disk refuses; it is to be tried again, and the dead-man will.
            UpdateError: the service does not start.
        """
        begun = update.reason.startswith(_ON_THE_WAY)
        if begun:
            reason = update.reason.removeprefix(_ON_THE_WAY)
        else:
            self._tell(f"{_ON_THE_WAY}{reason}")
            with suppress(VedetteError):
                if change.stand(update) == "on trial":  # else whoever took it back knows why
                    update = self._journal.note(update, reason=f"{_ON_THE_WAY}{reason}", by=self._orders.by)
        verdict = change.undo(update)
        by = update.by if begun else self._orders.by
        if verdict is not None and not begun:
            by, reason = verdict.by, verdict.reason
        if update.back:
            by = verdict.by if verdict else "updater"
            reason = f"not gone back to {update.version}: {reason}"
        self._preparation.clear(update)  # first: on a disk that is full it could not be noted
        update = self._journal.step(update, "rolled_back", reason=reason, by=by, downtime_s=update.downtime_s)
        self._orders.done()
        Switch(self._where).take_up()
        self._tell(f"rolled back to {update.from_version or 'what ran before'}: {reason}")
        return update
