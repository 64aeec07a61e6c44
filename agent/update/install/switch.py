"""Put a tested update into use, and keep or undo it. A power cut may interrupt it anywhere.

A version is switched by changing links and restarting the daemon:

    1  copy the configuration to kept/              nothing that runs is changed yet; reserve disk space
    2  `trial`, state=switching                     from here on the rollback watchdog undoes it, also at boot
    3  write the configuration of the new version
    4  updater slot (the link `keeper`) → old, current → new
    5  `trial`, state=trial                         from here on a boot starts the new version, on trial

The rollback watchdog (`systemd/deadman`) undoes it in sh in the same order, on the same files. Models are
switched by one link and a reload.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

from agent.board.proc import boot_id
from agent.errors import StorageError, UpdateError, VedetteError
from agent.health import DaemonHealth
from agent.storage.files import read_regular, remove, rename, take_copy, write_atomic, write_like
from agent.text import local_time
from agent.update.bundle import HealthGate
from agent.update.bundle.signing import signature_of
from agent.update.install.health_check import ROLLBACK_GATE, DaemonBefore, Systemd, baseline, read_health
from agent.update.install.journal import Journal, Update
from agent.update.install.preflight import check_models
from agent.update.install.slots import CONFIG, ModelSets, Paths, Slot, Slots, parse_slot, read_file

BOOTS = 3
"""Largest number of boots in a trial."""
_VERDICT_MAX = 4096
_RESERVE = 256 * 1024
"""Bytes; random, so that no file system compresses them."""
_SLACK_S = 120.0
"""Time that the rollback watchdog waits beyond the trial, so that the updater comes first, s."""
DeploymentState = Literal["on trial", "kept", "undone"]


class WatchdogVerdict(Struct, frozen=True):
    """A rollback by the watchdog.

    Attributes:
        by: `deadman`, its name on disk, or `settle`, the same at boot.
        reason: in words.
    """

    by: str
    reason: str


class VersionDeployment:
    """Puts a tested version into use, and keeps or undoes it: switches slots and restarts the daemon.

    Attributes:
        stopped_at: when this process stopped the daemon for it, s; None: it did not.
    """

    def __init__(self, where: Paths, service: Systemd, clock: Callable[[], float] = time.monotonic) -> None:
        self._where, self._service, self._clock = where, service, clock
        self._slots = Slots(where.home)
        self.stopped_at: float | None = None

    def begin(self, update: Update, gate: HealthGate) -> None:
        """Change what runs.

        Raises:
            StorageError: a disk error; call `undo`.
            UpdateError: systemd refuses.
        """
        where, config = self._where, self._config(update)
        if config is not None:
            take_copy(where.config, where.kept_config, like_source=True)
        else:
            remove(where.kept_config)
        remove(where.verdict, where.trial_usage)
        write_atomic(where.reserve, os.urandom(_RESERVE), 0o600)
        self._write_trial("switching", update, gate)
        if config is not None:
            write_like(where.config, config, where.config)
        self._slots.point("keeper", parse_slot(update.before))
        self._slots.point("current", parse_slot(update.slot))
        self._write_trial("trial", update, gate)
        self.stopped_at = self._clock()
        self._service.restart()

    def _config(self, update: Update) -> bytes | None:
        """Return the configuration migrated for the version, or the one it had; None if the present one stays."""
        slot = parse_slot(update.slot)
        config = self._where.config_of(slot) if update.back else self._slots.path(slot) / CONFIG
        return read_file(config) if config.exists() else None

    def _write_trial(self, state: str, update: Update, gate: HealthGate) -> None:
        lines = {
            "new": update.slot,
            "old": update.before,
            "config": str(self._where.config) if self._where.kept_config.exists() else "",
            "allowed_s": f"{gate.within_s + gate.steady_s + _SLACK_S:.0f}",
            "boots": str(BOOTS),
            "state": state,
        }
        text = "".join(f"{key}={value}\n" for key, value in lines.items())
        write_atomic(self._where.trial, text.encode(), 0o600)

    def state(self, update: Update) -> DeploymentState:
        """Return the state on disk; keeping or undoing may have been interrupted."""
        on_trial = self._where.trial.exists()
        is_rolling_back = on_trial and b"state=switching" in read_file(self._where.trial)
        if self._slots.target("current") != update.slot or is_rolling_back:
            return "undone"
        return "on trial" if on_trial else "kept"

    def undo(self, update: Update) -> WatchdogVerdict | None:
        """Return to what ran before; return the rollback of the watchdog if it did that. Idempotent."""
        on_trial, verdict = self._where.trial.exists(), self._verdict()
        if verdict is not None and not on_trial and self._slots.target("current") != update.slot:
            return verdict
        was_undone = self.state(update) == "undone" and not on_trial
        self._restore(update)
        if not (was_undone and self._runs_again(update)):
            self._service.restart()
        return None

    def _restore(self, update: Update) -> None:
        """Restore the old slot and its configuration."""
        where = self._where
        remove(where.reserve)
        if (
            where.trial.exists()
        ):  # else a power cut now would leave the new version on trial, with the old configuration
            content = read_file(where.trial)
            write_atomic(where.trial, content.replace(b"state=trial", b"state=switching"), 0o600)
        if where.kept_config.exists():
            kept = read_file(where.kept_config)
            present = read_file(where.config) if where.config.is_file() else None
            if present is not None and present != kept:  # it may have been edited during the trial
                take_copy(where.config, where.config.with_name("vedette.toml.undone"), like_source=True)
            if present != kept:
                write_like(where.config, kept, where.kept_config)
        self._slots.point("current", parse_slot(update.before))
        self._slots.point("keeper", parse_slot(update.before))
        remove(where.trial, where.kept_config)

    def _verdict(self) -> WatchdogVerdict | None:
        path = self._where.verdict
        try:
            lines = read_regular(path, _VERDICT_MAX).decode("utf-8", "replace").splitlines()
        except FileNotFoundError:
            return None
        except (OSError, StorageError) as error:
            raise UpdateError(f"{path}: cannot be read: {error}") from error
        fields = dict(line.split("=", 1) for line in lines if "=" in line)
        return WatchdogVerdict(fields.get("by", "deadman"), fields.get("reason", "no reason was recorded"))

    def _runs_again(self, update: Update) -> bool:
        """Return True if the previous version certainly runs, so that a further attempt need not restart it."""
        health, service = read_health(self._where.health), self._service.state()
        old = self._slots.version(parse_slot(update.before))
        differ = old != self._slots.version(parse_slot(update.slot))
        return differ and service.runs and health is not None and health.version == old

    def keep(self, update: Update) -> None:
        """Make the change permanent. Idempotent."""
        where, old = self._where, parse_slot(update.before)
        self._slots.mark_proved(old)
        remove(where.reserve)
        if where.trial.exists():  # else keeping was interrupted after this
            if where.kept_config.exists():
                take_copy(where.kept_config, where.config_of(old), like_source=True)
            else:
                remove(where.config_of(old))
        self._slots.point("keeper", parse_slot(update.slot))
        remove(where.trial, where.kept_config)
        signatures = (signature_of(where.incoming), signature_of(where.present))
        for source, target in (signatures, (where.incoming, where.present)):
            if source.exists():
                rename(source, target)


class ModelDeployment:
    """Does the same for models: switches the set of the running slot and reloads the daemon."""

    def __init__(self, where: Paths, service: Systemd) -> None:
        self._where, self._service, self._slots = where, service, Slots(where.home)
        self.stopped_at: float | None = None

    def _sets(self, update: Update) -> ModelSets:
        return ModelSets(self._slots.path(parse_slot(update.slot)))

    def begin(self, update: Update, gate: HealthGate) -> None:
        self._sets(update).point(update.counter)
        try:
            self._service.reload()
        except UpdateError:
            if not update.back:
                raise
            self._service.restart()  # the models that are rolled back may keep the daemon from running

    def state(self, update: Update) -> DeploymentState:
        if self._sets(update).current != update.counter:
            return "undone"
        return "on trial" if update.back or self._where.incoming.exists() else "kept"

    def undo(self, update: Update) -> WatchdogVerdict | None:
        self._sets(update).point(update.models_before)
        with suppress(UpdateError):  # a stopped daemon loads them at its start
            self._service.reload()
        return None

    def keep(self, update: Update) -> None:
        self._sets(update).delete_unused(update.models_before)
        remove(self._where.incoming, signature_of(self._where.incoming))


Deployment = VersionDeployment | ModelDeployment


# Rollback by an operator: to the version in the other slot, or to the previous models if models changed last.
#
# A rollback is possible only to a version that was committed once. That version has to be ready in time, or the
# board returns to what ran before the rollback.


def already_rolled_back(journal: Journal) -> str:
    """Describe the last operation if it already was a rollback by an operator, or the end of an update; else "".

    Updates that the board refused or rolled back by itself since do not count.

    Raises:
        StorageError: the journal cannot be read.
    """
    try:
        newest = journal.read()
    except UpdateError:  # the next operation sets the damaged journal aside
        return ""
    if newest is not None and not newest.finished:
        return f"already rolling back to {newest.version}: see `vedette update status`" if newest.back else ""
    for update in reversed(journal.history()):
        if update.state == "committed":
            return ""
        if update.by == "operator":
            at = local_time(update.began_at)
            if update.back:
                return f"already rolled back to {update.version}, at {at}"
            return f"the update to {update.version or update.file} of {at} was already ended"
    return ""


class Rollback:
    """Begins a rollback on one board; `Updater.resume` watches its trial."""

    def __init__(self, where: Paths, service: Systemd, journal: Journal, tell: Callable[[str], None]) -> None:
        self._where, self._service, self._journal, self._tell = where, service, journal, tell
        self._slots = Slots(where.home)

    def begin(self) -> Update:
        """Switch to the version or the models before, which are on trial then.

        Raises:
            UpdateError: another update is not over, or there is nothing to roll back to.
            StorageError: a disk error; nothing has changed.
        """
        self._journal.mend()
        self._journal.check_free()
        self._journal.delete_order()
        running = self._slots.target("current")
        if running is None:
            raise UpdateError(f"{self._where.home}/current: nothing is installed here")
        models = self._models_before(running)
        return self._to_version(running) if models is None else self._to_models(running, models)

    def _models_before(self, running: Slot) -> int | None:
        """Return the set before the one in use; None if the last change was no update of models."""
        sets = ModelSets(self._slots.path(running))
        for update in reversed(self._journal.history()):
            if update.kind == "full" and (
                update.state == "committed" or (update.back and update.by == "operator")
            ):
                return None
            if update.state == "committed" and update.kind == "models" and update.counter == sets.current:
                before = update.models_before
                there = not before or sets.path(before).is_dir()
                return before if update.slot == running and there else None
        return None

    def _to_models(self, running: Slot, before: int) -> Update:
        home = self._slots.path(running)
        sets, health = ModelSets(home), read_health(self._where.health)
        if before:
            check_models(self._where, home, before)
        service = self._service.state()
        update = self._rollback(running, running, str(before), str(sets.current), health)
        update = replace(
            update,
            counter=before,
            kind="models",
            streams_before=baseline(health).streams,
            failures_before=service.failures if service.runs else 0,  # a restarted service counts from 0
            models_before=sets.current,
            reloads_before=DaemonBefore.from_health(health).reloads,
        )
        return self._begin(update, ModelDeployment(self._where, self._service))

    def _to_version(self, running: Slot) -> Update:
        other = parse_slot("b" if running == "a" else "a")
        version = self._slots.proved_version(other)
        if not version:
            tried = self._slots.version(other)
            what = f"holds version {tried}, which was never committed" if tried else "holds no version"
            raise UpdateError(f"{self._slots.path(other)}: {what}: no version to roll back to")
        home = self._slots.path(other)
        check_models(self._where, home, ModelSets(home).current)
        self._keep_config(other, version)
        present = self._slots.version(running)
        update = self._rollback(other, running, version, present, read_health(self._where.health))
        return self._begin(update, VersionDeployment(self._where, self._service))

    def _rollback(
        self, slot: Slot, before: Slot, version: str, present: str, health: DaemonHealth | None
    ) -> Update:
        return Update(
            state="switching",
            version=version,
            kind="full",
            slot=slot,
            before=before,
            from_version=present,
            began_at=datetime.now(UTC),
            boot_id=boot_id(),
            pid_before=DaemonBefore.from_health(health).pid,
            back=True,
        )

    def _keep_config(self, slot: Slot, version: str) -> None:
        """Keep a copy of the present configuration: the version returns with its own."""
        kept, config = self._where.config_of(slot), self._where.config
        if not (kept.exists() and config.is_file()) or read_file(kept) == read_file(config):
            return
        beside = config.with_name(f"{config.name}.undone")
        take_copy(config, beside, like_source=True)
        self._tell(f"{version} returns with its own configuration; the present one is kept as {beside}")

    def _begin(self, update: Update, deployment: Deployment) -> Update:
        self._tell(f"rolling back from {update.from_version} to {update.version}")
        update = self._journal.begin(update)
        try:
            deployment.begin(update, ROLLBACK_GATE)
        except VedetteError as error:
            deployment.undo(update)
            self._journal.step(update, "rolled_back", reason=f"rollback failed: {error}")
            raise
        return self._journal.step(update, "trial")
