"""The two slots that versions are installed in, and the links that say which of them is used for what.

slots/a  slots/b      a version each: venv/ models/ … and `ready`, which is written last and names it; `proved`,
                      when another has replaced it after it ran well: a rollback may return to it
current -> slots/a    the version that runs
keeper  -> slots/a    the updater slot, whose code manages updates: the old version's, until the new one is
                      committed; the link keeps the name that boards in the field have
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Literal

from agent.errors import StorageError, reason_of
from agent.storage.files import read_regular, sync_folder, write_atomic

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
        """Return the path of a slot, which need not exist."""
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
                # A half-deleted slot must not look like a version to roll back to.
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
        """Return the version installed in a slot; empty if there is none, or the installation is incomplete."""
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
        """Mark the version in a slot as one that a rollback may return to. Idempotent.

        Raises:
            StorageError: the disk refuses.
        """
        write_atomic(self.path(slot) / PROVED, b"")

    def proved(self, slot: Slot) -> str:
        """Return the version in a slot if a rollback may return to it; empty if it was only tried."""
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


# Sets of models in a slot: a set is never changed, and `models` leads to the one in use.
#
# slots/a/sets/12/   NAME.tflite NAME.toml NAME.npz …
# slots/a/models  -> sets/12


class ModelSets:
    """Manages the model sets of one slot."""

    def __init__(self, slot: Path) -> None:
        self._slot, self._sets = slot, slot / "sets"

    def path(self, number: int) -> Path:
        """Return the path of a set, which need not exist."""
        return self._sets / str(number)

    @property
    def current(self) -> int:
        """The set in use; 0: none.

        Raises:
            StorageError: `models` leads somewhere else.
        """
        link = self._slot / "models"
        try:
            name = link.readlink().name
        except FileNotFoundError:
            return 0
        except OSError as error:
            raise StorageError(f"{link}: is not a link to a set of models: {reason_of(error)}") from error
        if not name.isdigit():
            raise StorageError(f"{link}: leads to {name!r}, which is no set of models")
        return int(name)

    def begin(self, number: int) -> Path:
        """A new set with the files of the one in use, which are linked; gives its folder.

        Raises:
            StorageError: the disk refuses, or this is the set in use.
        """
        if number == self.current:
            raise StorageError(f"{self.path(number)}: is in use")
        folder, old = self.path(number), self.path(self.current)
        try:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            for file in sorted(old.iterdir()) if old.is_dir() else ():
                (folder / file.name).hardlink_to(file)
        except OSError as error:
            raise StorageError(f"{folder}: cannot be made: {reason_of(error)}") from error
        return folder

    def take(self, file: Path, number: int) -> None:
        """Move a file into a set, in the place of one of the same name.

        Raises:
            StorageError: the disk refuses.
        """
        try:
            file.replace(self.path(number) / file.name)
        except OSError as error:
            raise StorageError(f"{file}: cannot be moved: {reason_of(error)}") from error

    def point(self, number: int) -> None:
        """Use a set, whenever the power goes: the one of before or this one; 0: none.

        Raises:
            StorageError: there is no such set, or the disk refuses.
        """
        link, new = self._slot / "models", self._slot / ".models.new"
        try:
            if not number:
                link.unlink(missing_ok=True)
            else:
                if not self.path(number).is_dir():
                    raise StorageError(f"{self.path(number)}: there is no such set of models")
                sync_folder(self.path(number))
                new.unlink(missing_ok=True)
                new.symlink_to(f"sets/{number}")
                new.replace(link)
            sync_folder(self._slot)
        except OSError as error:
            raise StorageError(f"{link}: cannot be changed: {reason_of(error)}") from error

    def tidy(self, before: int) -> None:
        """Delete the sets that no rollback needs; ignore those that cannot be deleted.

        Args:
            before: the set that the one in use has taken the place of; it stays, too.
        """
        for path in self._sets.glob("[0-9]*"):
            if path.name.isdigit() and int(path.name) != before:
                self.drop(int(path.name))

    def drop(self, number: int) -> None:
        """Delete a set, unless it is in use; what cannot be deleted stays."""
        if number != self.current:
            shutil.rmtree(self.path(number), ignore_errors=True)
