"""Preparing: what an update does before anything that runs is changed. Each step gives what it has found out."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from agent.errors import ConfigError, StorageError, UpdateError
from agent.health.board import read_board
from agent.profiles import AUTO, choose
from agent.storage.modelsets import ModelSets
from agent.storage.slots import Slot, Slots, slot_of
from agent.storage.updatefiles import delete_folder, remove
from agent.update.archive import check, read_description
from agent.update.journal import Update
from agent.update.places import Places
from agent.update.preflight import check as check_board
from agent.update.preflight import read_facts
from agent.update.rehearsal import Rehearsal
from agent.update.staging import UNPACKED, stage_models, stage_version
from agent.update.trial import baseline, reloaded
from agent.update.trust import signature_of, verify
from agent.update.vitals import read_vitals

Tell = Callable[[str], None]
Found = dict[str, Any]
"""Fields of the update that are known now."""
_CHUNK = 1024**2


class Preparation:
    """Of the update at hand."""

    def __init__(self, where: Places, tell: Tell) -> None:
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
