"""The updater: takes an update from state to state. Each state is on disk before the work for the next begins.

A failure before the switch refuses the update; a failure after the switch rolls it back.
`Preparation` does the work before the switch, `Updater` decides, also after a power cut and on a full disk.
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
from agent.storage.files import delete_folder, make_folder, remove, take_copy
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
from agent.update.install.switch import BOOTS, Deployment, ModelDeployment, SlotSwitch, VersionDeployment
from agent.update.install.watch import Comparison, Orders, Watch
from agent.update.protocol import State, Update

Tell = Callable[[str], None]
Found = dict[str, Any]
"""Fields of the update that a step has found out."""
_CHUNK = 1024**2


class Preparation:
    """Work on the current update that changes nothing that runs."""

    def __init__(self, where: Paths, tell: Tell) -> None:
        self._where, self._tell = where, tell
        self._slots, self._rehearsal = Slots(where.home), Rehearsal(where)

    def verify(self, counter: int) -> Found:
        """Verify the signature, then the files, then that this board can take the bundle.

        Args:
            counter: the highest that was committed.

        Raises:
            TrustError, BundleError, UpdateError: the bundle is refused.
            StorageError: a disk error.
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
        """Install the bundle beside what runs.

        Raises:
            BundleError, UpdateError: it cannot be installed.
            StorageError: a disk error.
        """
        wanted, running = read_description(self._where.incoming), self._running()
        if wanted.kind == "models":
            self._tell(f"installing {len(wanted.models)} models beside those in use")
            stage_models(self._where, wanted, running)
            return {"slot": running, "before": running}
        slot = self._slots.spare()
        self._tell(f"installing version {wanted.version} into slot {slot}; the present version keeps running")
        stage_version(self._where, wanted, slot)
        return {"slot": slot, "before": running}

    def rehearse(self, update: Update) -> Found:
        """Test the installed version or models beside what runs.

        Raises:
            UpdateError: a test fails.
        """
        self._tell("testing: imports, golden answers of the models, configuration")
        home = self._slots.path(slot_of(update.slot))
        self._rehearsal.models(home, update.counter)
        self._rehearsal.config(home, update.counter)
        return {}

    def baseline(self) -> Found:
        """Record how well the daemon runs now."""
        before = baseline(read_vitals(self._where.health))
        return {"streams_before": before.streams if before.known else None}

    def reloaded(self) -> Found:
        """Record the daemon's pid and its number of reloads."""
        now = reloaded(read_vitals(self._where.health))
        return {"pid_before": now.pid, "reloads_before": now.count}

    def discard(self, update: Update) -> None:
        """Free the space that the update has taken beside what runs; call it before the switch only.

        The bundle stays, so that the update may begin again. What cannot be deleted is overwritten then.
        """
        with suppress(StorageError):
            if update.kind == "models" and (running := self._slots.of("current")):
                home = self._slots.path(running)
                delete_folder(home / UNPACKED)
                ModelSets(home).drop(update.counter)
            elif update.kind == "full":
                spare = self._slots.spare()
                if self._slots.path(spare).exists() and not self._slots.proved(
                    spare
                ):  # a proved slot holds the version before
                    self._slots.empty(spare)

    def clear(self, update: Update) -> None:
        """Delete the bundle and unused models; what cannot be deleted is overwritten next time."""
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


log = logging.getLogger(__name__)

_STARTS = 5
"""Attempts before the switch: an update that is interrupted more often brings the board down, or never ends."""
_ON_THE_WAY = "rolling back: "
"""Prefix of the reason on disk while a rollback is not finished."""


class Updater:
    """The state machine of updates of one board; the caller owns the state folder.

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
        """Create an updater; nothing is read yet.

        Args:
            where: paths of the board.
            service: that runs the daemon.
            tell: called with each step, in a line.
            clock: monotonic, s.
            sleep: waits so many seconds.
        """
        self._where, self._service, self._tell, self._clock = where, service, tell, clock
        self.journal = Journal(where, clock)
        self._preparation = Preparation(where, tell)
        self._watch = Watch(where, service, clock=clock, sleep=sleep)
        self._orders = Orders(where)
        self._version, self._models = VersionDeployment(where, service, clock), ModelDeployment(where, service)
        self._steps: Mapping[State, Callable[[Update], Update]] = {
            "received": self._verify,
            "verified": self._stage,
            "staged": self._rehearse,
            "tested": self._begin,
            "shadow": self._compare,
            "switching": self._undo_interrupted,
            "trial": self._follow_trial,
        }

    def receive(self, bundle: Path) -> Update:
        """Copy a bundle and its signature to where only root can write, and begin an update.

        Raises:
            UpdateError: there is no signature, or another update is at hand.
            StorageError: a disk error.
        """
        for file, lack in ((bundle, "there is no such file"), (signature_of(bundle), "the signature is missing")):
            if not file.is_file():
                raise UpdateError(f"{file}: {lack}")
        self.journal.mend()
        self.journal.check_free()
        make_folder(self._where.state)
        self._orders.forget()
        here = (self._where.incoming, signature_of(self._where.incoming))
        remove(*here)  # of an interrupted call: there is no room for two
        try:
            take_copy(signature_of(bundle), signature_of(self._where.incoming))
            take_copy(bundle, self._where.incoming)
            return self.journal.begin(Update(state="received", file=str(bundle.absolute()), began_at=now()))
        except VedetteError:
            with suppress(StorageError):
                remove(*here)
            raise

    def resume(self) -> Update | None:
        """Continue the current update to its end; return None if there is none.

        Raises:
            VedetteError: the files of the updates cannot be read or written.
        """
        if self.journal.mend():
            self._tell("the journal is damaged and was set aside; the rollback watchdog ends a trial")
        update = self.journal.read()
        if update is None or update.over:
            if update is not None and update.state == "rolled_back" and not self._where.trial.exists():
                SlotSwitch(self._where).take_up()  # a power cut after the history was written
            return None
        if after_cut(update.state) == "again":
            update = self._restart(update)
        while not update.over:
            update = self._refused_by_operator(update) or self._step(update)
        return update

    def _restart(self, update: Update) -> Update:
        """Begin again from the bundle, but refuse an update that brings the board down each time."""
        if update.starts:
            self._tell(f"the update was cut off while it was {update.state}: beginning again")
            self._preparation.discard(update)
        if update.starts >= _STARTS:
            return self._refuse(update, f"it was begun {update.starts} times, and was cut off each time")
        try:
            return self.journal.note(update, state="received", starts=update.starts + 1)
        except StorageError as error:  # else it would begin for ever, uncounted
            return self._refuse(update, str(error))

    def _refused_by_operator(self, update: Update) -> Update | None:
        """Refuse the update before its switch if an operator has ordered that; else return None."""
        if update.state not in BEFORE_SWITCH or (asked := self._orders.take()) is None:
            return None
        if asked.verdict == "roll back":
            return self._refuse(update, asked.reason)
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
            update = self.journal.read() or update  # the step may have failed after its state was written
            if update.over:
                return update
            if update.state in BEFORE_SWITCH:
                return self._refuse(update, reason)
            change = self._deployment(update)
            if update.state == "trial" and change.stand(update) == "kept":
                raise  # only the final state is missing on disk
            return self._roll_back(update, change, reason)

    def _verify(self, update: Update) -> Update:
        found = self._preparation.verify(self.journal.committed_counter())
        return self.journal.step(update, "verified", **found)

    def _stage(self, update: Update) -> Update:
        return self.journal.step(update, "staged", **self._preparation.stage())

    def _rehearse(self, update: Update) -> Update:
        return self.journal.step(update, "tested", **self._preparation.rehearse(update))

    def _begin(self, update: Update) -> Update:
        if read_description(self._where.incoming).shadow is None:
            return self._switch(update)
        before = self._preparation.baseline()  # before the new models slow it down
        return self.journal.step(update, "shadow", failures_before=self._service.standing().failures, **before)

    def _compare(self, update: Update) -> Update:
        """Run the new models beside those in use, and switch only if they agree."""
        wanted = read_description(self._where.incoming)
        assert wanted.shadow is not None  # or it would not be in this state
        self._tell(f"beside those in use: {wanted.shadow.compared} answers of each stream are compared")
        comparison = Comparison(self._where, update, self._clock)
        outcome, agreement = comparison.run(
            wanted, wanted.shadow, self._watch, self.journal.telling(update, self._tell), self._orders.take
        )
        if outcome.verdict != "commit":
            return self._refuse(update, outcome.reason)
        return self._switch(replace(update, agreement=agreement))

    def _switch(self, update: Update) -> Update:
        """Record the present state, and switch, unless an operator has ordered the end."""
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
        self._orders.done("confirm")  # the order was for the shadow, not for the trial
        self._tell(f"switching to {update.version}")
        self._deployment(update).go(update, read_description(self._where.incoming).health)
        return self.journal.step(update, "trial")

    def _undo_interrupted(self, update: Update) -> Update:
        return self._roll_back(update, self._deployment(update), "it was cut off during the switch")

    def _follow_trial(self, update: Update) -> Update:
        """Watch the trial until it is committed or rolled back, from wherever a power cut has left it.

        Raises:
            StorageError: a disk error.
            UpdateError: the service does not start.
        """
        change = self._deployment(update)
        stand = change.stand(update)
        if stand == "kept":
            if (asked := self._orders.take()) is None or asked.verdict != "commit":
                self._orders.by = "updater"  # else an operator has committed it before the power cut
            return self._commit(update, change, "")
        if stand == "undone":
            return self._roll_back(update, change, "it was cut off on the way back")
        # An interrupted rollback that has changed nothing yet is forgotten: the trial continues.
        update = self._count_boot(replace(update, reason=""))
        if update.starts > BOOTS:
            return self._roll_back(
                update, change, f"the board was started {update.starts} times during the trial"
            )
        trial = self._trial(update)
        # A daemon that was started since counts its failures from 0.
        failures = 0 if update.starts else update.failures_before
        outcome = self._watch.until_over(
            trial, failures, self.journal.telling(update, self._tell), self._decisions(update, change)
        )
        if change.stopped_at is not None and trial.ready_at is not None:
            update = replace(update, downtime_s=round(trial.ready_at - change.stopped_at, 2))
        if outcome.verdict == "commit":
            return self._commit(update, change, outcome.reason)
        return self._roll_back(update, change, outcome.reason)

    def _deployment(self, update: Update) -> Deployment:
        return self._models if update.kind == "models" else self._version

    def _count_boot(self, update: Update) -> Update:
        """Count this boot against a model trial. For versions the rollback watchdog does that."""
        if update.kind != "models" or update.boot_id == boot_id():
            return update
        return self.journal.note(update, starts=update.starts + 1, boot_id=boot_id())

    def _trial(self, update: Update) -> HealthTrial:
        gate, before = terms(update, self._where.incoming)
        self._tell(f"on trial: it has to be well for {gate.steady_s:g} s on end within {gate.within_s:g} s")
        version = update.version if update.kind == "full" else ""
        # A daemon that was started since has the models from its start, whatever its pid is.
        is_asked = update.kind == "models" and not update.starts
        reloaded = Reloaded(update.pid_before, update.reloads_before) if is_asked else None
        is_replaced = update.kind == "full" and update.boot_id == boot_id()
        replaced = update.pid_before if is_replaced else 0
        return HealthTrial(gate, before, version, self._clock(), asked=reloaded, replaced=replaced)

    def _decisions(self, update: Update, change: Deployment) -> Callable[[], Verdict | None]:
        """Return what reads the decision of an operator or of the rollback watchdog."""

        def asked() -> Verdict | None:
            if change.stand(update) != "on trial":
                return Verdict("roll back", "it was rolled back outside of the updater")
            return self._orders.take()

        return asked

    def _refuse(self, update: Update, reason: str) -> Update:
        """End an update before its switch: delete what it has staged.

        Raises:
            StorageError: the state cannot be written; try again.
        """
        reason = reason.replace(str(self._where.incoming), update.file)  # the path that the operator gave
        self._tell(f"refused: {reason}")
        self._preparation.discard(update)  # first: a full disk takes no state
        try:
            refused = self.journal.step(update, "refused", reason=reason, by=self._orders.by)
        except StorageError:
            self._preparation.clear(update)
            refused = self.journal.step(update, "refused", reason=reason, by=self._orders.by)
        self._orders.done()
        self._preparation.clear(refused)
        return refused

    def _commit(self, update: Update, change: Deployment, reason: str) -> Update:
        """End a trial well.

        Raises:
            StorageError: a disk error; try again.
        """
        change.keep(update)
        state: State = "rolled_back" if update.back else "committed"
        by = "operator" if update.back else self._orders.by
        reason = f"rolled back to {update.version} by an operator" if update.back else reason
        update = self.journal.step(update, state, reason=reason, by=by, downtime_s=update.downtime_s)
        self._orders.done()
        self._tell(reason if update.back else f"committed: {update.version}")
        return update

    def _roll_back(self, update: Update, change: Deployment, reason: str) -> Update:
        """Return to what ran before the switch. The reason goes to disk first, to survive a power cut.

        Raises:
            StorageError: a disk error; try again, as the rollback watchdog does.
            UpdateError: the service does not start.
        """
        begun = update.reason.startswith(_ON_THE_WAY)
        if begun:
            reason = update.reason.removeprefix(_ON_THE_WAY)
        else:
            self._tell(f"{_ON_THE_WAY}{reason}")
            with suppress(VedetteError):
                if change.stand(update) == "on trial":  # else the watchdog has rolled back, and knows the reason
                    update = self.journal.note(update, reason=f"{_ON_THE_WAY}{reason}", by=self._orders.by)
        verdict = change.undo(update)
        by = update.by if begun else self._orders.by
        if verdict is not None and not begun:
            by, reason = verdict.by, verdict.reason
        if update.back:
            by = verdict.by if verdict else "updater"
            reason = f"rollback to {update.version} failed: {reason}"
        self._preparation.clear(update)  # first: a full disk takes no state
        update = self.journal.step(update, "rolled_back", reason=reason, by=by, downtime_s=update.downtime_s)
        self._orders.done()
        SlotSwitch(self._where).take_up()
        self._tell(f"rolled back to {update.from_version or 'the version before'}: {reason}")
        return update
