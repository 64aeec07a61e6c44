"""A small file in the state folder that is read at the start and replaced as a whole."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path

from agent.errors import StorageError, reason_of
from agent.storage.durable import STATE_MODE, sync_folder, write_atomic
from agent.storage.regular import read_regular

_LARGEST = 1024**2
_ASIDE = ".damaged"


class StateFile:
    """The file. It survives a power cut: what it holds then is the old content or the new."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> bytes | None:
        """What was written last; None: there is no file.

        Raises:
            StorageError: it is there and cannot be read, is far too large, or is no file.
        """
        try:
            return read_regular(self.path, _LARGEST)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StorageError(f"{self.path}: cannot be read: {reason_of(error)}") from error

    def write(self, content: bytes) -> None:
        """Replace it; an empty content deletes it.

        Raises:
            StorageError: the disk refuses; what was there is still there.
        """
        if content:
            write_atomic(self.path, content, STATE_MODE, follow=False)
            return
        try:
            self.path.unlink(missing_ok=True)
            sync_folder(self.path.parent)
        except OSError as error:
            raise StorageError(f"{self.path}: cannot be deleted: {reason_of(error)}") from error

    def set_aside(self) -> Path:
        """Keep a damaged one for people to look at; gives where it lies.

        It lies in its own place, too, until another is written: a power cut must not make it one that never was.
        What is no file is moved away.
        """
        aside = self.path.with_name(self.path.name + _ASIDE)
        with suppress(OSError):
            if stat.S_ISREG(self.path.lstat().st_mode):
                aside.unlink(missing_ok=True)
                os.link(self.path, aside)
            else:
                self.path.replace(aside)
        return aside
