"""The updater: takes an update from state to state, also after a power cut and on a full disk.

Each state is on disk before the work for the next begins. A failure before the switch refuses the update; a
failure after the switch rolls it back.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from msgspec.structs import replace

from agent.board.proc import boot_id
from agent.errors import StorageError, UpdateError, VedetteError
from agent.storage.files import make_folder, remove, take_copy
from agent.storage.state import ShadowOrder, write_shadow_order
from agent.update.bundle import read_description
from agent.update.bundle.signing import signature_of
from agent.update.install.health_check import (
    DaemonBefore,
    HealthTrial,
    Observation,
    ShadowTrial,
    Systemd,
    TrialDecision,
    baseline,
    read_health,
    trial_gate,
)
from agent.update.install.journal import BEFORE_SWITCH, Journal, Order, State, Update
from agent.update.install.preflight import rehearse, verify_bundle
from agent.update.install.slots import ModelSets, Paths, Slots, parse_slot
from agent.update.install.stage import delete_incoming, discard, stage
from agent.update.install.switch import BOOTS, Deployment, ModelDeployment, VersionDeployment

log = logging.getLogger(__name__)

_STARTS = 5
"""Attempts before the switch: an update that is interrupted more often brings the board down, or never ends."""
_ROLLING_BACK = "rolling back: "
"""Prefix of the reason on disk while a rollback is not finished."""
_POLL_S = 1.0
_ORDERS: dict[Order, TrialDecision] = {
    "confirm": TrialDecision("commit", "an operator has confirmed it"),
    "rollback": TrialDecision("roll back", "an operator has asked for it"),
}


class Updater:
    """The state machine of updates of one board; the caller has locked the state folder.

    Attributes:
        journal: of the updates.
    """

    def __init__(
        self,
        where: Paths,
        service: Systemd,
        tell: Callable[[str], None] = log.info,
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
        self._where, self._service, self._tell, self._clock, self._sleep = where, service, tell, clock, sleep
        self.journal = Journal(where, clock)
        self._decided_by = "updater"
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
            UpdateError: the signature is missing, or another update is not over.
            StorageError: a disk error.
        """
        for file, lack in ((bundle, "there is no such file"), (signature_of(bundle), "the signature is missing")):
            if not file.is_file():
                raise UpdateError(f"{file}: {lack}")
        self.journal.mend()
        self.journal.check_free()
        make_folder(self._where.state)
        self.journal.delete_order()
        here = (self._where.incoming, signature_of(self._where.incoming))
        remove(*here)  # of an interrupted call: there is no room for two
        try:
            take_copy(signature_of(bundle), signature_of(self._where.incoming))
            take_copy(bundle, self._where.incoming)
            return self.journal.begin(
                Update(state="received", file=str(bundle.absolute()), began_at=datetime.now(UTC))
            )
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
        if update is None or update.finished:
            if update is not None and update.state == "rolled_back" and not self._where.trial.exists():
                remove(self._where.verdict)  # a power cut after the history was written
            return None
        if update.state in BEFORE_SWITCH:
            update = self._restart(update)
        while not update.finished:
            update = self._refused_by_operator(update) or self._step(update)
        return update

    def _restart(self, update: Update) -> Update:
        """Begin again from the bundle, but refuse an update that brings the board down each time."""
        if update.starts:
            self._tell(f"the update was interrupted while it was {update.state}: beginning again")
            discard(self._where, update)
        if update.starts >= _STARTS:
            return self._refuse(update, f"it was begun {update.starts} times, and was interrupted each time")
        try:
            return self.journal.update_fields(update, state="received", starts=update.starts + 1)
        except StorageError as error:  # else it would begin for ever, uncounted
            return self._refuse(update, str(error))

    def _read_order(self) -> TrialDecision | None:
        """Return the verdict of an operator, if any; call `_end_order` after it is carried out."""
        order = self.journal.read_order()
        if order is None:
            return None
        self._decided_by = "operator"
        return _ORDERS[order]

    def _end_order(self, only: Order | None = None) -> None:
        """Delete the operator's order, or only this one; `receive` deletes what cannot be deleted now."""
        with suppress(StorageError):
            if only is None or self.journal.read_order() == only:
                self.journal.delete_order()

    def _refused_by_operator(self, update: Update) -> Update | None:
        """Refuse the update before its switch if an operator has ordered that; else return None."""
        if update.state not in BEFORE_SWITCH or (ordered := self._read_order()) is None:
            return None
        if ordered.verdict == "roll back":
            return self._refuse(update, ordered.reason)
        self._decided_by = "updater"
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
            if update.finished:
                return update
            if update.state in BEFORE_SWITCH:
                return self._refuse(update, reason)
            deployment = self._deployment(update)
            if update.state == "trial" and deployment.state(update) == "kept":
                raise  # only the final state is missing on disk
            return self._roll_back(update, deployment, reason)

    def _verify(self, update: Update) -> Update:
        self._tell("verifying the signature and every file")
        found = verify_bundle(self._where, self.journal.committed_counter())
        return self.journal.step(update, "verified", **found)

    def _stage(self, update: Update) -> Update:
        return self.journal.step(update, "staged", **stage(self._where, self._tell))

    def _rehearse(self, update: Update) -> Update:
        self._tell("testing: imports, golden answers of the models, configuration")
        rehearse(self._where, update)
        return self.journal.step(update, "tested")

    def _begin(self, update: Update) -> Update:
        """Continue with the shadow if the bundle asks for one; else switch."""
        if read_description(self._where.incoming).shadow is None:
            return self._switch(update)
        failures = self._service.state().failures
        return self.journal.step(update, "shadow", failures_before=failures, **self._baseline())

    def _baseline(self) -> dict[str, object]:
        before = baseline(read_health(self._where.health))
        return {"streams_before": before.streams if before.known else None}

    def _compare(self, update: Update) -> Update:
        """Run the new models beside those in use, and switch only if they agree.

        The order to the daemon to run them ends with this step in any case.
        """
        wanted = read_description(self._where.incoming)
        assert wanted.shadow is not None  # else `_begin` has switched
        self._tell(f"beside those in use: {wanted.shadow.compared} answers of each stream are compared")
        trial = ShadowTrial(update.bundle, wanted.shadow, wanted.health, self._clock())
        new = ModelSets(Slots(self._where.home).path(parse_slot(update.slot))).path(update.counter)
        order = ShadowOrder(update.bundle, f"{self._where.home}/current/models", str(new), wanted.shadow.every)
        write_shadow_order(self._where.shadow_order, order)
        try:
            outcome = self._watch(update, trial, update.failures_before, self._read_order)
        finally:
            remove(self._where.shadow_order)
        if outcome.verdict != "commit":
            return self._refuse(update, outcome.reason)
        return self._switch(replace(update, agreement=trial.agreement))

    def _watch(
        self,
        update: Update,
        trial: HealthTrial | ShadowTrial,
        failures_before: int,
        decided: Callable[[], TrialDecision | None],
    ) -> TrialDecision:
        """Observe the service every second until a trial, or else an operator or the watchdog, has decided."""
        shown = ""
        while True:
            outcome = decided() or trial.evaluate(self._clock(), self._observe(failures_before))
            if outcome.verdict != "wait":
                return outcome
            if (new := outcome.reason.partition(";")[0]) != shown:  # not for each second that passes
                shown = new
                self._tell(outcome.reason)
                self.journal.update_fields(update, reason=outcome.reason)
            self._sleep(_POLL_S)

    def _observe(self, failures_before: int) -> Observation:
        service = self._service.state()
        failures = max(0, service.failures - failures_before)
        return Observation(read_health(self._where.health), failures, service.why)

    def _switch(self, update: Update) -> Update:
        """Record the present state, and switch, unless an operator has ordered the end."""
        if ended := self._refused_by_operator(update):
            return ended
        self._decided_by = "updater"
        before = {} if update.state == "shadow" else self._baseline()
        slot = Slots(self._where.home).path(parse_slot(update.slot))
        daemon = DaemonBefore.from_health(read_health(self._where.health))
        update = self.journal.step(
            update,
            "switching",
            failures_before=self._service.state().failures if update.kind == "models" else 0,
            models_before=ModelSets(slot).current,
            reason="",
            starts=0,
            boot_id=boot_id(),
            pid_before=daemon.pid,
            reloads_before=daemon.reloads,
            **before,
        )
        self._end_order("confirm")  # it was for the shadow, not for the trial
        self._tell(f"switching to {update.version}")
        self._deployment(update).begin(update, read_description(self._where.incoming).health)
        return self.journal.step(update, "trial")

    def _undo_interrupted(self, update: Update) -> Update:
        return self._roll_back(update, self._deployment(update), "it was interrupted during the switch")

    def _follow_trial(self, update: Update) -> Update:
        """Watch the trial until it is committed or rolled back, from wherever a power cut has left it."""
        deployment = self._deployment(update)
        state = deployment.state(update)
        if state == "kept":
            if (ordered := self._read_order()) is None or ordered.verdict != "commit":
                self._decided_by = "updater"  # else an operator has committed it before the power cut
            return self._commit(update, deployment, "")
        if state == "undone":
            return self._roll_back(update, deployment, "its rollback was interrupted")
        # An interrupted rollback that has changed nothing yet is forgotten: the trial continues.
        update = self._count_boot(replace(update, reason=""))
        if update.starts > BOOTS:
            reason = f"the board was started {update.starts} times during the trial"
            return self._roll_back(update, deployment, reason)
        trial = self._trial(update)
        # A restarted daemon counts its failures from 0.
        failures = 0 if update.starts else update.failures_before
        outcome = self._watch(update, trial, failures, lambda: self._decision(update, deployment))
        if deployment.stopped_at is not None and trial.ready_at is not None:
            update = replace(update, downtime_s=round(trial.ready_at - deployment.stopped_at, 2))
        if outcome.verdict == "commit":
            return self._commit(update, deployment, outcome.reason)
        return self._roll_back(update, deployment, outcome.reason)

    def _deployment(self, update: Update) -> Deployment:
        return self._models if update.kind == "models" else self._version

    def _count_boot(self, update: Update) -> Update:
        """Count this boot against a model trial. For versions the rollback watchdog does that."""
        if update.kind != "models" or update.boot_id == boot_id():
            return update
        return self.journal.update_fields(update, starts=update.starts + 1, boot_id=boot_id())

    def _trial(self, update: Update) -> HealthTrial:
        gate, before = trial_gate(update, self._where.incoming)
        self._tell(
            f"on trial: it has to be healthy for {gate.steady_s:g} s without a break within {gate.within_s:g} s"
        )
        version = update.version if update.kind == "full" else ""
        # A restarted daemon has loaded the models at its start, whatever its pid is.
        is_asked = update.kind == "models" and not update.starts
        asked = DaemonBefore(update.pid_before, update.reloads_before) if is_asked else None
        is_replaced = update.kind == "full" and update.boot_id == boot_id()
        replaced = update.pid_before if is_replaced else 0
        return HealthTrial(gate, before, version, self._clock(), asked=asked, replaced=replaced)

    def _decision(self, update: Update, deployment: Deployment) -> TrialDecision | None:
        """Return the decision of the rollback watchdog or of an operator, if any."""
        if deployment.state(update) != "on trial":
            return TrialDecision("roll back", "it was rolled back outside of the updater")
        return self._read_order()

    def _refuse(self, update: Update, reason: str) -> Update:
        """End an update before its switch: delete what it has staged."""
        reason = reason.replace(str(self._where.incoming), update.file)  # the path that the operator gave
        self._tell(f"refused: {reason}")
        discard(self._where, update)  # first: on a full disk the state could not be written
        try:
            refused = self.journal.step(update, "refused", reason=reason, by=self._decided_by)
        except StorageError:
            delete_incoming(self._where, update)
            refused = self.journal.step(update, "refused", reason=reason, by=self._decided_by)
        self._end_order()
        delete_incoming(self._where, refused)
        return refused

    def _commit(self, update: Update, deployment: Deployment, reason: str) -> Update:
        """End a trial well."""
        deployment.keep(update)
        state: State = "rolled_back" if update.back else "committed"
        by = "operator" if update.back else self._decided_by
        reason = f"rolled back to {update.version} by an operator" if update.back else reason
        update = self.journal.step(update, state, reason=reason, by=by, downtime_s=update.downtime_s)
        self._end_order()
        self._tell(reason if update.back else f"committed: {update.version}")
        return update

    def _roll_back(self, update: Update, deployment: Deployment, reason: str) -> Update:
        """Return to what ran before the switch. The reason goes to disk first, to survive a power cut."""
        begun = update.reason.startswith(_ROLLING_BACK)
        if begun:
            reason = update.reason.removeprefix(_ROLLING_BACK)
        else:
            self._tell(f"{_ROLLING_BACK}{reason}")
            with suppress(VedetteError):
                if deployment.state(update) == "on trial":  # else the watchdog has rolled back, and knows why
                    why = f"{_ROLLING_BACK}{reason}"
                    update = self.journal.update_fields(update, reason=why, by=self._decided_by)
        verdict = deployment.undo(update)
        by = update.by if begun else self._decided_by
        if verdict is not None and not begun:
            by, reason = verdict.by, verdict.reason
        if update.back:
            by = verdict.by if verdict else "updater"
            reason = f"rollback to {update.version} failed: {reason}"
        delete_incoming(self._where, update)  # first: on a full disk the state could not be written
        update = self.journal.step(update, "rolled_back", reason=reason, by=by, downtime_s=update.downtime_s)
        self._end_order()
        remove(self._where.verdict)
        self._tell(f"rolled back to {update.from_version or 'the version before'}: {reason}")
        return update
