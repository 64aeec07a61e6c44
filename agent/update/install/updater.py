"""Applying: takes an update from state to state, each on the disk before the next thing is done.

Whatever goes wrong before the switch leaves what runs alone, and the update is refused; afterwards it is undone.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from msgspec.structs import replace

from agent.errors import StorageError, UpdateError, VedetteError
from agent.storage.durable import make_folder
from agent.storage.modelsets import ModelSets
from agent.storage.slots import Slots, slot_of
from agent.storage.updatefiles import remove, take_copy
from agent.update.archive import read_description
from agent.update.changes import Changes
from agent.update.comparing import Comparison
from agent.update.ending import Ending
from agent.update.journal import Journal, Update, now
from agent.update.orders import Orders
from agent.update.places import Places
from agent.update.preparing import Preparation, Tell
from agent.update.probation import Probation
from agent.update.service import Service
from agent.update.states import BEFORE_SWITCH, State, after_cut
from agent.update.switching import Switch
from agent.update.trust import signature_of
from agent.update.vitals import boot_id
from agent.update.watching import Watch

log = logging.getLogger(__name__)

_STARTS = 5
"""That an update may take before its switch: what is cut off more often brings the board down, or never ends."""


class Updater:
    """Of one board; the caller owns its folder of state.

    Attributes:
        journal: of the updates.
    """

    def __init__(
        self,
        where: Places,
        service: Service,
        tell: Tell = log.info,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Nothing is looked at yet.

        Args:
            where: things are.
            service: that runs the daemon.
            tell: is given what is done, line by line.
            clock: that only goes forward, s.
            sleep: waits so many seconds.
        """
        self._where, self._service, self._tell, self._clock = where, service, tell, clock
        self.journal = Journal(where, clock)
        self._preparation = Preparation(where, tell)
        self._watch = Watch(where, service, clock=clock, sleep=sleep)
        self._orders = Orders(where)
        self._ending = Ending(where, self.journal, self._preparation, self._orders, tell)
        self._changes = Changes(where, service, clock)
        probation = Probation(
            where, self.journal, self._ending, self._changes, self._watch, self._orders, tell, clock
        )
        self._steps: Mapping[State, Callable[[Update], Update]] = {
            "received": self._verify,
            "verified": self._stage,
            "staged": self._rehearse,
            "tested": self._begin,
            "shadow": self._compare,
            "switching": self._take_back_cut,
            "trial": probation.go_on,
        }

    def receive(self, bundle: Path) -> Update:
        """Take a copy of a bundle and its signature: what is verified is what is used.

        Raises:
            UpdateError: there is no signature, or another update is at hand.
            StorageError: the disk refuses.
        """
        for file, lack in ((bundle, "there is no such file"), (signature_of(bundle), "the signature is missing")):
            if not file.is_file():
                raise UpdateError(f"{file}: {lack}")
        self.journal.mend()
        self.journal.check_free()
        make_folder(self._where.state)
        self._orders.forget()
        here = (self._where.incoming, signature_of(self._where.incoming))
        remove(*here)  # of one that was cut off in here: nobody has room for two
        try:
            take_copy(signature_of(bundle), signature_of(self._where.incoming))
            take_copy(bundle, self._where.incoming)
            return self.journal.begin(Update(state="received", file=str(bundle.absolute()), began_at=now()))
        except VedetteError:
            with suppress(StorageError):
                remove(*here)
            raise

    def resume(self) -> Update | None:
        """Go on with the update at hand, to its end; None: there was none.

        Raises:
            VedetteError: the files of the updates cannot be read or written.
        """
        if self.journal.mend():
            self._tell("the journal was damaged: it is set aside; a trial is ended by the dead-man")
        update = self.journal.read()
        if update is None or update.over:
            if update is not None and update.state == "rolled_back" and not self._where.trial.exists():
                Switch(self._where).take_up()  # it may have been cut off behind the history
            return None
        if after_cut(update.state) == "again":
            update = self._begun(update)
        while not update.over:
            update = self._refused_by_operator(update) or self._step(update)
        return update

    def _begun(self, update: Update) -> Update:
        """From its bundle, and not for ever: what brings the board down each time is refused."""
        if update.starts:
            self._tell(f"the update was cut off while it was {update.state}: beginning again")
            self._preparation.discard(update)
        if update.starts >= _STARTS:
            return self._ending.refuse(update, f"it was begun {update.starts} times, and was cut off each time")
        try:
            return self.journal.note(update, state="received", starts=update.starts + 1)
        except StorageError as error:  # it would begin for ever, and never be counted
            return self._ending.refuse(update, str(error))

    def _refused_by_operator(self, update: Update) -> Update | None:
        """Before the switch that is the end of it; None: nobody has asked for that."""
        if update.state not in BEFORE_SWITCH or (asked := self._orders.take()) is None:
            return None
        if asked.verdict == "roll back":
            return self._ending.refuse(update, asked.reason)
        self._orders.by = "updater"
        return None

    def _step(self, update: Update) -> Update:
        try:
            return self._steps[update.state](update)
        except Exception as error:
            reason = str(error)
            if not isinstance(error, (VedetteError, OSError)):
                log.exception("a defect in Vedette")
                reason = f"a defect in Vedette: {type(error).__name__}: {error}"
            update = self.journal.read() or update  # a step may have failed after it was noted
            if update.over:
                return update
            if update.state in BEFORE_SWITCH:
                return self._ending.refuse(update, reason)
            change = self._changes.of(update)
            if update.state == "trial" and change.stand(update) == "kept":
                raise  # nothing but the note of that is missing
            return self._ending.take_back(update, change, reason)

    def _verify(self, update: Update) -> Update:
        found = self._preparation.verify(self.journal.committed_counter())
        return self.journal.step(update, "verified", **found)

    def _stage(self, update: Update) -> Update:
        return self.journal.step(update, "staged", **self._preparation.stage())

    def _rehearse(self, update: Update) -> Update:
        return self.journal.step(update, "tested", **self._preparation.rehearse(update))

    def _begin(self, update: Update) -> Update:
        if read_description(self._where.incoming).shadow is None:
            return self._go(update)
        before = self._preparation.baseline()  # that nothing beside it slows down
        return self.journal.step(update, "shadow", failures_before=self._service.standing().failures, **before)

    def _compare(self, update: Update) -> Update:
        """Have the new models run beside those in use, and switch only if they hold."""
        wanted = read_description(self._where.incoming)
        assert wanted.shadow is not None  # or it would not be in this state
        self._tell(f"beside those in use: {wanted.shadow.compared} answers of each stream are compared")
        comparison = Comparison(self._where, update, self._clock)
        outcome, agreement = comparison.run(
            wanted, wanted.shadow, self._watch, self.journal.telling(update, self._tell), self._orders.take
        )
        if outcome.verdict != "commit":
            return self._ending.refuse(update, outcome.reason)
        return self._go(replace(update, agreement=agreement))

    def _go(self, update: Update) -> Update:
        """Note how it was, and change what runs, unless an operator has asked for the end."""
        if ended := self._refused_by_operator(update):
            return ended
        self._orders.by = "updater"
        before = {} if update.state == "shadow" else self._preparation.baseline()
        slot = Slots(self._where.home).path(slot_of(update.slot))
        update = self.journal.step(
            update,
            "switching",
            failures_before=self._service.standing().failures if update.kind == "models" else 0,
            models_before=ModelSets(slot).current,
            reason="",
            starts=0,
            boot_id=boot_id(),
            **before,
            **self._preparation.reloaded(),
        )
        self._orders.done("confirm")  # of the models beside those in use, not of the trial
        self._tell(f"switching to {update.version}")
        self._changes.of(update).go(update, read_description(self._where.incoming).health)
        return self.journal.step(update, "trial")

    def _take_back_cut(self, update: Update) -> Update:
        return self._ending.take_back(update, self._changes.of(update), "it was cut off during the switch")
