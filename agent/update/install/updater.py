"""Applying: takes an update from state to state, each on the disk before the next thing is done.

Whatever goes wrong before the switch leaves what runs alone, and the update is refused; afterwards it is undone.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from agent.board.identity import read_board
from agent.config.profiles import AUTO, choose
from agent.errors import ConfigError, StorageError, UpdateError, VedetteError
from agent.storage.copies import delete_folder, remove, take_copy
from agent.storage.files import make_folder
from agent.update.bundle.archive import check, read_description
from agent.update.bundle.signing import signature_of, verify
from agent.update.install.health_check import HealthTrial, Reloaded, Verdict, baseline, reloaded, terms
from agent.update.install.journal import BEFORE_SWITCH, Journal, after_cut, now
from agent.update.install.paths import Paths
from agent.update.install.preflight import check as check_board
from agent.update.install.preflight import read_facts
from agent.update.install.rehearse import Rehearsal
from agent.update.install.service import Service, boot_id, read_vitals
from agent.update.install.slots import ModelSets, Slot, Slots, slot_of
from agent.update.install.stage import UNPACKED, stage_models, stage_version
from agent.update.install.switch import BOOTS, Changes, Deployment, SlotSwitch
from agent.update.install.watch import Comparison, Orders, Watch
from agent.update.protocol import State, Update

# Preparing: what an update does before anything that runs is changed. Each step gives what it has found out.

Tell = Callable[[str], None]
Found = dict[str, Any]
"""Fields of the update that are known now."""
_CHUNK = 1024**2


class Preparation:
    """Of the update at hand."""

    def __init__(self, where: Paths, tell: Tell) -> None:
        self._where, self._tell = where, tell
        self._slots, self._rehearsal = Slots(where.home), Rehearsal(where)

    def verify(self, counter: int) -> Found:
        """Look at nothing but the signature, then at the rest, and whether this board can take it.

        Args:
            counter: the highest that was committed.

        Raises:
            TrustError, BundleError, UpdateError: it is refused.
            StorageError: the disk refuses.
        """
        self._tell("verifying the signature and every file")
        incoming = self._where.incoming
        signer = verify(incoming, signature_of(incoming), self._where)
        wanted = read_description(incoming)
        check(incoming, wanted)
        running = self._slots.of("current")
        check_board(wanted, read_facts(self._where.home, _profile(), counter, has_current=running is not None))
        return {
            "version": wanted.version,
            "counter": wanted.counter,
            "kind": wanted.kind,
            "signer": signer.principal,
            "bundle": _sha256(incoming),
            "from_version": self._slots.version(running) if running else "",
        }

    def stage(self) -> Found:
        """Put it beside what runs.

        Raises:
            BundleError, UpdateError: it cannot be installed.
            StorageError: the disk refuses.
        """
        wanted, running = read_description(self._where.incoming), self._running()
        if wanted.kind == "models":
            self._tell(f"putting {len(wanted.models)} models beside those in use")
            stage_models(self._where, wanted, running)
            return {"slot": running, "before": running}
        slot = self._slots.spare()
        self._tell(f"installing version {wanted.version} into slot {slot}; what runs goes on")
        stage_version(self._where, wanted, slot)
        return {"slot": slot, "before": running}

    def rehearse(self, update: Update) -> Found:
        """Run it beside what runs.

        Raises:
            UpdateError: it fails.
        """
        self._tell("testing it: its imports, the golden answers of its models, the configuration")
        home = self._slots.path(slot_of(update.slot))
        self._rehearsal.models(home, update.counter)
        self._rehearsal.config(home, update.counter)
        return {}

    def baseline(self) -> Found:
        """How the daemon is now."""
        before = baseline(read_vitals(self._where.health))
        return {"streams_before": before.streams if before.known else None}

    def reloaded(self) -> Found:
        """Which daemon runs, and how often it has read its configuration again."""
        now = reloaded(read_vitals(self._where.health))
        return {"pid_before": now.pid, "reloads_before": now.count}

    def discard(self, update: Update) -> None:
        """Give back the room that an update has taken beside what runs, before anything is switched.

        What was there before it stays, and its bundle does: it may begin again. What cannot be deleted is
        overwritten then.
        """
        with suppress(StorageError):
            if update.kind == "models" and (running := self._slots.of("current")):
                home = self._slots.path(running)
                delete_folder(home / UNPACKED)
                ModelSets(home).drop(update.counter)
            elif update.kind == "full":
                spare = self._slots.spare()
                if self._slots.path(spare).exists() and not self._slots.proved(spare):  # or it is what was before
                    self._slots.empty(spare)

    def clear(self, update: Update) -> None:
        """Drop what nobody needs any more; what cannot be deleted is overwritten next time."""
        with suppress(StorageError):
            if update.kind == "models" and update.slot and not update.back:
                ModelSets(self._slots.path(slot_of(update.slot))).drop(update.counter)
            remove(self._where.incoming, signature_of(self._where.incoming))

    def _running(self) -> Slot:
        running = self._slots.of("current")
        if running is None:
            raise UpdateError(f"{self._where.home}/current: nothing is installed here: run scripts/install first")
        return running


def _profile() -> str:
    """Name of this board's profile; empty: none fits."""
    try:
        profile = choose(AUTO, read_board())
    except ConfigError:
        return ""
    return profile.name if profile else ""


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


# Ending: an update is refused, kept or taken back, and put into the history, on a disk that may be full.

_ON_THE_WAY = "rolling back: "


class UpdateFinish:
    """Of the update at hand. Each gives it as it is in the history."""

    def __init__(
        self, where: Paths, journal: Journal, preparation: Preparation, orders: Orders, tell: Tell
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

    def keep(self, update: Update, change: Deployment, reason: str) -> Update:
        """After its trial: it stays.

        Raises:
            StorageError: the disk refuses; it is to be tried again.
        """
        change.keep(update)
        state: State = "rolled_back" if update.back else "committed"
        by = "operator" if update.back else self._orders.by
        reason = f"rolled back to {update.version} by an operator" if update.back else reason
        update = self._journal.step(update, state, reason=reason, by=by, downtime_s=update.downtime_s)
        self._orders.done()
        self._tell(reason if update.back else f"committed: {update.version}")
        return update

    def take_back(self, update: Update, change: Deployment, reason: str) -> Update:
        """From its switch on: what ran before comes back. Why is told even if this is cut off, and done again.

        Raises:
            StorageError: the disk refuses; try again, as the rollback watchdog does.
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
            reason = f"rollback to {update.version} failed: {reason}"
        self._preparation.clear(update)  # first: on a disk that is full it could not be noted
        update = self._journal.step(update, "rolled_back", reason=reason, by=by, downtime_s=update.downtime_s)
        self._orders.done()
        SlotSwitch(self._where).take_up()
        self._tell(f"rolled back to {update.from_version or 'what ran before'}: {reason}")
        return update


# Probation: what was switched to runs on trial until it is kept or taken back, whatever cuts that off.


class Probation:
    """Of the update at hand."""

    def __init__(
        self,
        where: Paths,
        journal: Journal,
        ending: UpdateFinish,
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
        """Count this boot against a model trial. For versions the rollback watchdog does that."""
        if update.kind != "models" or update.boot_id == boot_id():
            return update
        return self._journal.note(update, starts=update.starts + 1, boot_id=boot_id())

    def _trial(self, update: Update) -> HealthTrial:
        gate, before = terms(update, self._where.incoming)
        self._tell(f"on trial: it has to be well for {gate.steady_s:g} s on end within {gate.within_s:g} s")
        version = update.version if update.kind == "full" else ""
        # Who was started since has the models from its start, whatever its pid is.
        is_asked = update.kind == "models" and not update.starts
        reloaded = Reloaded(update.pid_before, update.reloads_before) if is_asked else None
        is_replaced = update.kind == "full" and update.boot_id == boot_id()
        replaced = update.pid_before if is_replaced else 0
        return HealthTrial(gate, before, version, self._clock(), asked=reloaded, replaced=replaced)

    def _asking(self, update: Update, change: Deployment) -> Callable[[], Verdict | None]:
        """Return the decision of an operator or of the rollback watchdog."""

        def asked() -> Verdict | None:
            if change.stand(update) != "on trial":
                return Verdict("roll back", "it was taken back by somebody else")
            return self._orders.take()

        return asked


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
        where: Paths,
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
        self._ending = UpdateFinish(where, self.journal, self._preparation, self._orders, tell)
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
            self._tell("the journal is damaged and was set aside; the rollback watchdog ends a trial")
        update = self.journal.read()
        if update is None or update.over:
            if update is not None and update.state == "rolled_back" and not self._where.trial.exists():
                SlotSwitch(self._where).take_up()  # it may have been cut off behind the history
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
                log.exception("internal error (please report)")
                reason = f"internal error (please report): {type(error).__name__}: {error}"
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
