"""The two slots that versions are installed in, and the links that say which of them is used for what.

slots/a  slots/b      a version each: venv/ models/ … and `ready`, which is written last and names it; `proved`,
                      when it has run and was replaced by another: it can be gone back to
current -> slots/a    what runs
keeper  -> slots/a    whose code minds updates: that of before, until a new version has stood its trial
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Literal

from agent.errors import StorageError, reason_of
from agent.storage.durable import sync_folder, write_atomic
from agent.storage.regular import read_regular

Slot = Literal["a", "b"]
Link = Literal["current", "keeper"]
_SLOTS: tuple[Slot, Slot] = ("a", "b")
READY, PROVED = "ready", "proved"
_LARGEST = 256


def slot_of(name: str) -> Slot:
    """The slot of that name.

    Raises:
        StorageError: there is none.
    """
    for slot in _SLOTS:
        if name == slot:
            return slot
    raise StorageError(f"{name!r} is not the name of a slot: a or b")


class Slots:
    """The slots in a folder. Links change at one instruction; a slot that a link leads to is never touched."""

    def __init__(self, home: Path) -> None:
        self._home = home

    def path(self, slot: Slot) -> Path:
        """Of a slot, whether it is there or not."""
        return self._home / "slots" / slot

    def of(self, link: Link) -> Slot | None:
        """Where a link leads; None: nowhere.

        Raises:
            StorageError: it is no link, or leads to something that is no slot.
        """
        path = self._home / link
        try:
            target = str(path.readlink())
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StorageError(f"{path}: is not a link to a slot: {reason_of(error)}") from error
        for slot in _SLOTS:
            if target in (f"slots/{slot}", str(self.path(slot))):
                return slot
        raise StorageError(f"{path}: leads to {target}, and not to slots/a or slots/b")

    def spare(self) -> Slot:
        """The one that may be filled.

        Raises:
            StorageError: both are in use, or the links cannot be read.
        """
        used = {self.of("current"), self.of("keeper")}
        free = next((slot for slot in _SLOTS if slot not in used), None)
        if free is None:
            raise StorageError(f"{self._home}: both slots are in use: an update is on trial")
        return free

    def empty(self, slot: Slot) -> Path:
        """Make a spare slot an empty folder; gives its path.

        Raises:
            StorageError: it is in use, or the disk refuses.
        """
        self._check_spare(slot)
        path = self.path(slot)
        try:
            if path.is_symlink():
                path.unlink()
            elif path.exists():
                # A slot that is half deleted must not look like one that can be gone back to.
                (path / READY).unlink(missing_ok=True)
                sync_folder(path)
                shutil.rmtree(path)
            path.mkdir(parents=True, mode=0o755)
            sync_folder(path.parent)
        except OSError as error:
            raise StorageError(f"{path}: cannot be emptied: {reason_of(error)}") from error
        return path

    def _check_spare(self, slot: Slot) -> None:
        if slot in (self.of("current"), self.of("keeper")):
            raise StorageError(f"{self.path(slot)}: is in use")

    def version(self, slot: Slot) -> str:
        """Of what is installed in a slot; empty: nothing, or not all of it."""
        try:
            return read_regular(self.path(slot) / READY, _LARGEST).decode("utf-8", "replace").strip()
        except (OSError, StorageError):
            return ""

    def make_ready(self, slot: Slot, version: str) -> None:
        """Note that everything of a version is in a slot, and on the disk.

        Raises:
            StorageError: the disk refuses.
        """
        os.sync()  # thousands of files in one go
        write_atomic(self.path(slot) / READY, f"{version}\n".encode())

    def prove(self, slot: Slot) -> None:
        """Note that the version in a slot has run well: it can be gone back to. Done twice, it is done once.

        Raises:
            StorageError: the disk refuses.
        """
        write_atomic(self.path(slot) / PROVED, b"")

    def proved(self, slot: Slot) -> str:
        """The version in a slot if it can be gone back to; empty: what is there was never more than tried."""
        return self.version(slot) if (self.path(slot) / PROVED).exists() else ""

    def point(self, link: Link, slot: Slot) -> None:
        """Make a link lead to a slot, whenever the power goes: to the one of before or to this one.

        Raises:
            StorageError: the slot is not there, or the disk refuses; the link is as it was.
        """
        path, new = self._home / link, self._home / f".{link}.new"
        try:
            if not self.path(slot).is_dir():
                raise StorageError(f"{self.path(slot)}: there is no such slot")
            new.unlink(missing_ok=True)
            new.symlink_to(f"slots/{slot}")
            new.replace(path)
            sync_folder(self._home)
        except OSError as error:
            raise StorageError(f"{path}: cannot be changed: {reason_of(error)}") from error
