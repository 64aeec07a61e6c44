"""A small file in the state folder that is read at the start and replaced as a whole."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Generic, TypeVar

import msgspec
from msgspec import Meta, Struct

from agent.errors import NO_JSON, StorageError, reason_of
from agent.storage.files import STATE_MODE, make_folder, read_regular, sync_folder, write_atomic, write_passing

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
    write_passing(path, msgspec.json.encode(order))
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


# A small file in the state folder that is kept twice: what was written last outlives the damage of either.

T = TypeVar("T")


class StoredContent(Struct, Generic[T], frozen=True):
    """What the two files hold.

    Attributes:
        content: that counts; None: there is none that can be used.
        faults: what is wrong, a line for each file; without any and without content nothing was ever written.
        damaged: files that are there and cannot be used.
    """

    content: T | None
    faults: tuple[str, ...] = ()
    damaged: tuple[StateFile, ...] = ()


class TwinFile:
    """The two. One write of each makes a change: a power cut in between leaves two of which the first counts."""

    def __init__(self, path: Path) -> None:
        """Name them; nothing is read or written yet.

        Args:
            path: of the first; the second is called `NAME.copy.SUFFIX` and lies beside it.
        """
        self.path = path
        self._files = StateFile(path), StateFile(path.with_name(f"{path.stem}.copy{path.suffix}"))

    def read(self, decoded: Callable[[bytes], T]) -> StoredContent[T]:
        """What was written last, as far as one of the two can be used.

        Args:
            decoded: understands a content; raises a StorageError for what was never written.
        """
        usable: dict[StateFile, bytes] = {}
        faults: dict[StateFile, str] = {}
        content: T | None = None
        for file in self._files:
            try:
                if (data := file.read()) is not None:
                    value = decoded(data)
                    content, usable[file] = (value if content is None else content), data
            except StorageError as error:
                faults[file] = f"{file.path}: {str(error).removeprefix(f'{file.path}: ')}"
        damaged = tuple(faults)
        if usable or faults:
            missing = [file for file in self._files if file not in usable and file not in faults]
            faults |= {file: f"{file.path}: is missing" for file in missing}
        if len(set(usable.values())) > 1:
            faults[self._files[1]] = f"{self._files[1].path}: is not what {self.path.name} is, which counts"
        return StoredContent(content, tuple(faults.values()), damaged)

    def write(self, content: bytes) -> None:
        """Replace both; an empty content deletes them.

        Raises:
            StorageError: the disk refuses; the first, or both, are as they were.
        """
        # What is deleted last counts until then: a first that is missing is made up for by the second.
        for file in self._files if content else reversed(self._files):
            file.write(content)
