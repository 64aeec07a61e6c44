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
from typing import Literal, Protocol

from msgspec import Struct

from agent.errors import StorageError, UpdateError
from agent.storage.files import read_regular, remove, rename, take_copy, write_atomic, write_like
from agent.update.bundle.description import HealthGate
from agent.update.bundle.signing import signature_of
from agent.update.install.service import Service, read_health
from agent.update.install.slots import CONFIG, ModelSets, Paths, Slots, parse_slot, read_file
from agent.update.protocol import Update

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


class Deployment(Protocol):
    """Puts a tested update into use, and keeps or undoes it.

    Attributes:
        stopped_at: when this process stopped the daemon for it, s; None: it did not.
    """

    stopped_at: float | None

    def begin(self, update: Update, gate: HealthGate) -> None:
        """Change what runs.

        Raises:
            StorageError: a disk error; call `undo`.
            UpdateError: systemd refuses.
        """

    def state(self, update: Update) -> DeploymentState:
        """Return the state on disk; keeping or undoing may have been interrupted."""

    def undo(self, update: Update) -> WatchdogVerdict | None:
        """Return to what ran before; return the rollback of the watchdog if it did that. Idempotent."""

    def keep(self, update: Update) -> None:
        """Make the change permanent. Idempotent."""


class VersionDeployment:
    """Deploys a version: switches slots and restarts the daemon."""

    def __init__(self, where: Paths, service: Service, clock: Callable[[], float] = time.monotonic) -> None:
        self._where, self._service, self._clock = where, service, clock
        self._slots = Slots(where.home)
        self.stopped_at: float | None = None

    def begin(self, update: Update, gate: HealthGate) -> None:
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
        on_trial = self._where.trial.exists()
        is_rolling_back = on_trial and b"state=switching" in read_file(self._where.trial)
        if self._slots.target("current") != update.slot or is_rolling_back:
            return "undone"
        return "on trial" if on_trial else "kept"

    def undo(self, update: Update) -> WatchdogVerdict | None:
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
    """Deploys models: switches the set of the running slot and reloads the daemon."""

    def __init__(self, where: Paths, service: Service) -> None:
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
