"""Rollback by an operator: to the version in the other slot, or to the previous models if models changed last.

A rollback is possible only to a version that was committed once. That version has to be ready in time, or the
board returns to what ran before the rollback.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

from agent.board.proc import boot_id
from agent.errors import UpdateError, VedetteError
from agent.storage.files import take_copy
from agent.text import local_time
from agent.update.install.health_check import ROLLBACK_GATE, DaemonBefore, baseline
from agent.update.install.journal import Journal
from agent.update.install.preflight import check_models
from agent.update.install.service import Service, read_health
from agent.update.install.slots import ModelSets, Paths, Slot, Slots, parse_slot, read_file
from agent.update.install.switch import Deployment, ModelDeployment, VersionDeployment
from agent.update.protocol import Update


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

    def __init__(self, where: Paths, service: Service, journal: Journal, tell: Callable[[str], None]) -> None:
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
        daemon = DaemonBefore.from_health(health)
        if before:
            check_models(self._where, home, before)
        service = self._service.state()
        update = Update(
            state="switching",
            version=str(before),
            counter=before,
            kind="models",
            slot=running,
            before=running,
            from_version=str(sets.current),
            began_at=datetime.now(UTC),
            streams_before=baseline(health).streams,
            failures_before=service.failures if service.runs else 0,  # a restarted service counts from 0
            models_before=sets.current,
            boot_id=boot_id(),
            pid_before=daemon.pid,
            reloads_before=daemon.reloads,
            back=True,
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
        update = Update(
            state="switching",
            version=version,
            kind="full",
            slot=other,
            before=running,
            from_version=self._slots.version(running),
            began_at=datetime.now(UTC),
            boot_id=boot_id(),
            pid_before=DaemonBefore.from_health(read_health(self._where.health)).pid,
            back=True,
        )
        return self._begin(update, VersionDeployment(self._where, self._service))

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
