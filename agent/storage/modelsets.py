"""Sets of models in a slot: a set is never changed, and `models` leads to the one in use.

slots/a/sets/12/   NAME.tflite NAME.toml NAME.npz …
slots/a/models  -> sets/12
"""

from __future__ import annotations

import shutil
from pathlib import Path

from agent.errors import StorageError, reason_of
from agent.storage.durable import sync_folder


class ModelSets:
    """Of one slot."""

    def __init__(self, slot: Path) -> None:
        self._slot, self._sets = slot, slot / "sets"

    def path(self, number: int) -> Path:
        """Of a set, whether it is there or not."""
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
        """Delete sets that nobody goes back to; what cannot be deleted stays.

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
