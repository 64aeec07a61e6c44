"""What was measured of models on this board, a small file for each in the state folder."""

from __future__ import annotations

import os
import re
from pathlib import Path

from agent.errors import StorageError, reason_of
from agent.storage.durable import write_atomic

_FOLDER = "verdicts"
_LARGEST = 1024**2


class Verdicts:
    """The files. Each is replaced as a whole, so that two processes may write the same."""

    def __init__(self, state: Path) -> None:
        """Nothing is created before the first is written.

        Args:
            state: the state folder.
        """
        self._folder = state / _FOLDER

    def read(self, model: str, key: str) -> bytes:
        """What was written last; empty: nothing.

        Args:
            model: its name, for people who look into the folder.
            key: hex digits that tell it from others of that name.

        Raises:
            StorageError: it is there and cannot be read, or is far too large.
        """
        path = self.path(model, key)
        try:
            if path.stat().st_size > _LARGEST:
                raise StorageError(f"{path}: {path.stat().st_size} bytes; at most {_LARGEST} are read")
            return path.read_bytes()
        except FileNotFoundError:
            return b""
        except OSError as error:
            raise StorageError(f"{path}: cannot be read: {reason_of(error)}") from error

    def write(self, model: str, key: str, content: bytes) -> None:
        """Replace it.

        Raises:
            StorageError: it cannot be written; what was there is still there.
        """
        try:
            self._folder.mkdir(mode=0o750, exist_ok=True)
        except OSError as error:
            raise StorageError(f"{self._folder}: cannot be created: {reason_of(error)}") from error
        write_atomic(self.path(model, key), content)
        self._give_to_owner(self.path(model, key))

    def _give_to_owner(self, file: Path) -> None:
        """What root measures is for the daemon, whose the state folder is."""
        if os.geteuid() == 0:
            owner = self._folder.parent.stat()
            for path in (self._folder, file):
                os.chown(path, owner.st_uid, owner.st_gid)

    def path(self, model: str, key: str) -> Path:
        """Where it lies."""
        return self._folder / f"{re.sub(r'[^A-Za-z0-9_-]', '-', model)[:60]}-{key[:16]}.json"
