"""A small file in the state folder that is read at the start and replaced as a whole."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from agent.errors import NO_JSON, StorageError, reason_of
from agent.storage.files import STATE_MODE, make_folder, read_regular, sync_folder, write_atomic

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


# The order to run new models beside those in use: who updates the board leaves it, and the daemon follows it.
#
# It lies in memory: after a power cut there is none, and nothing runs beside.

FILE = "vedette-update/shadow.json"
"""Below the folder for what runs, `/run`."""
_SHADOWORDER_LARGEST = 64 * 1024


class ShadowOrder(Struct, frozen=True):
    """What is to run beside.

    Attributes:
        update: which update this is for: the sha256 of its bundle.
        models: folder of the models in use, as configurations name it.
        candidates: folder of the new ones; those of the same file name belong together.
        every: of the pictures that are inferred, each so many-th is compared.
    """

    update: str
    models: str
    candidates: str
    every: Annotated[int, Meta(ge=1)] = 1


def give(path: Path, order: ShadowOrder) -> None:
    """Leave an order.

    Raises:
        StorageError: it cannot be written.
    """
    make_folder(path.parent)
    write_atomic(path, msgspec.json.encode(order), follow=False, durable=False)
    try:  # whatever the umask of an operator: the daemon is another user
        path.parent.chmod(0o755)
        path.chmod(0o644)
    except OSError as error:
        raise StorageError(f"{path}: cannot be made readable: {reason_of(error)}") from error


def take_back(path: Path) -> None:
    """Drop the order, if there is one.

    Raises:
        StorageError: it cannot be deleted.
    """
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(f"{path}: cannot be deleted: {reason_of(error)}") from error


def read(path: Path) -> ShadowOrder | None:
    """The order that is there; None: there is none that can be followed."""
    try:
        return msgspec.json.decode(read_regular(path, _SHADOWORDER_LARGEST), type=ShadowOrder)
    except (OSError, StorageError, *NO_JSON):
        return None
