"""Switching: one version for the other, in an order that a power cut may break anywhere.

    1  the configuration as it is → kept/           nothing that runs is changed yet; room to end the trial with
    2  `trial`, state=switching                     from here on the rollback watchdog undoes it, also at boot
    3  the configuration of the new version
    4  updater slot (the link `keeper`) → old, current → new
    5  `trial`, state=trial                         from here on a boot starts the new version, on trial

The rollback watchdog (`systemd/deadman`) does in sh what `undo` does here, in the same order, on the same files.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Literal, Protocol

from msgspec import Struct

from agent.errors import StorageError, UpdateError
from agent.models.files import read
from agent.storage.files import read_regular, remove, rename, take_copy, write_atomic, write_like
from agent.update.bundle.description import HealthGate
from agent.update.bundle.signing import signature_of
from agent.update.install.paths import Paths
from agent.update.install.service import Service, read_vitals
from agent.update.install.slots import ModelSets, Slot, Slots, slot_of
from agent.update.install.stage import CONFIG
from agent.update.protocol import Update

_LARGEST = 4096
_RESERVE = 256 * 1024
"""Bytes; random ones, which no file system makes smaller."""
BOOTS = 3
"""Most boots that a trial may take."""
_SLACK_S = 120.0
"""The rollback watchdog waits so much longer than the trial may take: the updater comes first."""


class WatchdogVerdict(Struct, frozen=True):
    """A rollback by the watchdog.

    Attributes:
        by: `deadman`, its name on disk, or `settle`, the same at boot.
        reason: in words.
    """

    by: str
    reason: str


class SlotSwitch:
    """Switches one board between its two slots."""

    def __init__(self, where: Paths) -> None:
        self._where, self._slots = where, Slots(where.home)

    def go(self, old: Slot, new: Slot, config: bytes | None, allowed_s: float) -> None:
        """Switch from one slot to the other.

        Args:
            old: that runs.
            new: that is to.
            config: of the new version; None: it stays as it is.
            allowed_s: that the trial may take.

        Raises:
            StorageError: the disk refuses; what was done is to be undone by `undo`.
        """
        if config is not None:
            take_copy(self._where.config, self._where.kept_config, like_source=True)
        else:
            remove(self._where.kept_config)
        remove(self._where.verdict, self._where.counted)
        write_atomic(self._where.reserve, os.urandom(_RESERVE), 0o600)
        self._write("switching", old, new, allowed_s)
        if config is not None:
            write_like(self._where.config, config, self._where.config)
        self._slots.point("keeper", old)
        self._slots.point("current", new)
        self._write("trial", old, new, allowed_s)

    def undo(self, old: Slot) -> None:
        """Roll back to the old slot and its configuration. Idempotent.

        Raises:
            StorageError: the disk refuses; try again, as the rollback watchdog does.
        """
        remove(self._where.reserve)
        if self.on_trial:  # else a cut in here would leave the new version on trial with the old configuration
            content = read(self._where.trial)
            write_atomic(self._where.trial, content.replace(b"state=trial", b"state=switching"), 0o600)
        if self._where.kept_config.exists():
            kept = read(self._where.kept_config)
            present = read(self._where.config) if self._where.config.is_file() else None
            if present is not None and present != kept:
                # Somebody may have changed it during the trial.
                undone = self._where.config.with_name("vedette.toml.undone")
                take_copy(self._where.config, undone, like_source=True)
            if present != kept:
                write_like(self._where.config, kept, self._where.kept_config)
        self._slots.point("current", old)
        self._slots.point("keeper", old)
        remove(self._where.trial, self._where.kept_config)

    def commit(self, new: Slot, old: Slot) -> None:
        """Make the new version permanent, and its slot the updater slot. Idempotent.

        Raises:
            StorageError: the disk refuses.
        """
        remove(self._where.reserve)
        if self.on_trial:  # not when it was cut off behind that
            kept = self.config_of(old)
            if self._where.kept_config.exists():
                take_copy(self._where.kept_config, kept, like_source=True)
            else:
                remove(kept)
        self._slots.point("keeper", new)
        remove(self._where.trial, self._where.kept_config)

    def config_of(self, slot: Slot) -> Path:
        """The configuration that the version in a slot had, where the one after it has changed that."""
        return self._where.kept_config.with_name(f"{slot}.toml")

    @property
    def on_trial(self) -> bool:
        """True while the rollback watchdog watches a trial."""
        return self._where.trial.exists()

    @property
    def is_going_back(self) -> bool:
        """True if a rollback has begun and has not finished.

        Raises:
            StorageError: the file cannot be read.
        """
        return self.on_trial and b"state=switching" in read(self._where.trial)

    def verdict(self) -> WatchdogVerdict | None:
        """Return the rollback that the watchdog did; None if it did none.

        Raises:
            UpdateError: it cannot be read.
        """
        try:
            lines = read_regular(self._where.verdict, _LARGEST).decode("utf-8", "replace").splitlines()
        except FileNotFoundError:
            return None
        except (OSError, StorageError) as error:
            raise UpdateError(f"{self._where.verdict}: cannot be read: {error}") from error
        told = dict(line.split("=", 1) for line in lines if "=" in line)
        return WatchdogVerdict(told.get("by", "deadman"), told.get("reason", "no reason was recorded"))

    def take_up(self) -> None:
        """Forget the verdict: it is in the history.

        Raises:
            StorageError: the disk refuses.
        """
        remove(self._where.verdict)

    def _write(self, state: str, old: Slot, new: Slot, allowed_s: float) -> None:
        lines = {
            "new": new,
            "old": old,
            "config": str(self._where.config) if self._where.kept_config.exists() else "",
            "allowed_s": f"{allowed_s + _SLACK_S:.0f}",
            "boots": str(BOOTS),
            "state": state,
        }
        text = "".join(f"{key}={value}\n" for key, value in lines.items())
        write_atomic(self._where.trial, text.encode(), 0o600)


# Changes: what a bundle changes of what runs, how that is taken back, and how it is kept.
#
# A version takes the other slot and a restart. Models take a reload: the streams that use them swap them.

Stand = Literal["on trial", "kept", "undone"]
"""How a change stands, as the disk tells: it may have been cut off while it was kept or undone."""


class Deployment(Protocol):
    """Puts a tested update into use, and keeps or undoes it."""

    stopped_at: float | None
    """When the daemon was stopped for it, by this process; s."""

    def go(self, update: Update, gate: HealthGate) -> None:
        """Change what runs."""

    def stand(self, update: Update) -> Stand:
        """Where it stands."""

    def undo(self, update: Update) -> WatchdogVerdict | None:
        """Take it back, as often as this is called; gives what was done outside of this code, if it was."""

    def keep(self, update: Update) -> None:
        """Let it stay, as often as this is called."""


class VersionDeployment:
    """Deploys a version: switches slots and restarts the daemon."""

    def __init__(self, where: Paths, service: Service, clock: Callable[[], float] = time.monotonic) -> None:
        self._where, self._service, self._clock = where, service, clock
        self._slots, self._switch = Slots(where.home), SlotSwitch(where)
        self.stopped_at: float | None = None

    def go(self, update: Update, gate: HealthGate) -> None:
        new, allowed_s = slot_of(update.slot), gate.within_s + gate.steady_s
        self._switch.go(slot_of(update.before), new, self._config(update), allowed_s)
        self.stopped_at = self._clock()
        self._service.restart()

    def _config(self, update: Update) -> bytes | None:
        """Return the configuration migrated for the version; None if the present one stays."""
        migrated = self._slots.path(slot_of(update.slot)) / CONFIG
        return read(migrated) if migrated.exists() else None

    def stand(self, update: Update) -> Stand:
        if self._slots.of("current") != update.slot or self._switch.is_going_back:
            return "undone"
        return "on trial" if self._switch.on_trial else "kept"

    def undo(self, update: Update) -> WatchdogVerdict | None:
        verdict = self._switch.verdict()
        if verdict is None or self._switch.on_trial or self._slots.of("current") == update.slot:
            verdict, was_undone = None, self.stand(update) == "undone" and not self._switch.on_trial
            self._switch.undo(slot_of(update.before))
            if not (was_undone and self._runs_again(update)):
                self._service.restart()
        return verdict

    def _runs_again(self, update: Update) -> bool:
        """Return True if the previous version certainly runs, so that a further attempt need not restart it."""
        vitals, standing = read_vitals(self._where.health), self._service.standing()
        old = self._slots.version(slot_of(update.before))
        differ = old != self._slots.version(slot_of(update.slot))
        runs = standing.active == "active" and not standing.waits
        return differ and runs and vitals is not None and vitals.version == old

    def keep(self, update: Update) -> None:
        self._slots.prove(slot_of(update.before))
        self._switch.commit(slot_of(update.slot), slot_of(update.before))
        for old, new in (
            (signature_of(self._where.incoming), signature_of(self._where.present)),
            (self._where.incoming, self._where.present),
        ):
            if old.exists():
                rename(old, new)


class ModelDeployment:
    """Deploys models: switches the set of the running slot and reloads the daemon."""

    def __init__(self, where: Paths, service: Service) -> None:
        self._where, self._service, self._slots = where, service, Slots(where.home)
        self.stopped_at: float | None = None

    def _sets(self, update: Update) -> ModelSets:
        return ModelSets(self._slots.path(slot_of(update.slot)))

    def go(self, update: Update, gate: HealthGate) -> None:
        self._sets(update).point(update.counter)
        try:
            self._service.reload()
        except UpdateError:
            if not update.back:
                raise
            self._service.restart()  # the models that are rolled back may be what keeps it from running

    def stand(self, update: Update) -> Stand:
        if self._sets(update).current != update.counter:
            return "undone"
        return "on trial" if update.back or self._where.incoming.exists() else "kept"

    def undo(self, update: Update) -> WatchdogVerdict | None:
        self._sets(update).point(update.models_before)
        with suppress(UpdateError):  # a daemon that does not run takes them at its start
            self._service.reload()
        return None

    def keep(self, update: Update) -> None:
        self._sets(update).tidy(update.models_before)
        remove(self._where.incoming, signature_of(self._where.incoming))
