"""Small files that are read at the start and replaced as a whole.

`StateFile` and `MeasurementFiles` are durable. The order to run new models beside those in use is not: the
updater leaves it in memory for the daemon, and a power cut drops it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from agent.errors import NO_JSON, StorageError, reason_of
from agent.storage.files import (
    SAFE,
    STATE_MODE,
    check_kind,
    make_folder,
    open_replacement,
    read_regular,
    storage_errors,
    sync_folder,
    write_atomic,
)
from agent.structs import from_json
from agent.text import file_name

_LARGEST = 1024**2
ASIDE = ".damaged"
"""End of the name of a damaged file that is kept."""


class StateFile:
    """A file in the state folder. After a power cut it holds the old content or the new."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> bytes | None:
        """Return the content; None: there is no file.

        Raises:
            StorageError: it cannot be read, is far too large, or is not a plain file.
        """
        try:
            return read_regular(self.path, _LARGEST)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StorageError(f"{self.path}: cannot be read: {reason_of(error)}") from error

    def write(self, content: bytes) -> None:
        """Replace the content; an empty content deletes the file.

        Raises:
            StorageError: the disk refuses; the old content is still there.
        """
        if content:
            write_atomic(self.path, content, STATE_MODE, follow=False)
            return
        with storage_errors(f"{self.path}: cannot be deleted"):
            self.path.unlink(missing_ok=True)
            sync_folder(self.path.parent)

    def set_aside(self, *, keep_name: bool = True) -> Path:
        """Keep a damaged file for people to look at, and return its new path.

        Args:
            keep_name: its old name stays until another file is written: after a power cut, damage must not look
                like a missing file. What is not a plain file is always moved.
        """
        aside, number = self.path.with_name(self.path.name + ASIDE), 1
        while aside.is_dir():  # of an earlier time; nothing can take its place
            number += 1
            aside = self.path.with_name(f"{self.path.name}{ASIDE}-{number}")
        with suppress(OSError):
            if keep_name and stat.S_ISREG(self.path.lstat().st_mode):
                aside.unlink(missing_ok=True)
                os.link(self.path, aside)
            else:
                aside.unlink(missing_ok=True)
                self.path.replace(aside)
        return aside


class MeasurementFiles:
    """A small file for each model in a folder of the state folder. Each is replaced as a whole.

    Root may write here for the owner of the state folder, who may put links into it: no link is followed.
    """

    def __init__(self, state: Path, folder: str = "verdicts") -> None:
        """Name a folder in the state folder; it is made with the first file."""
        self._state, self._folder = state, state / folder
        self._known: dict[tuple[str, str], bytes] = {}

    def read(self, model: str, key: str) -> bytes:
        """Return the content of a model's file; empty: there is none.

        The file's name holds the model's and the first digits of `key`, hex, which tells models of one name
        apart.

        Raises:
            StorageError: the file cannot be read, is too large, is not a plain file, or is another user's.
        """
        path = self.path(model, key)
        try:
            with _opened(self._state) as state, _inside(state, self._folder) as folder:
                owners = {0, os.geteuid(), os.fstat(state).st_uid}
                content = self._known[model, key] = read_regular(path, _LARGEST, folder, owners)
                return content
        except FileNotFoundError:
            return b""
        except OSError as error:
            raise StorageError(f"{path}: cannot be read: {reason_of(error)}") from error

    def write(self, model: str, key: str, content: bytes) -> None:
        """Replace a file, owned by the state folder's owner. Make the folders where they are missing.

        Raises:
            StorageError: it cannot be written; the old content is still there.
        """
        path = self.path(model, key)
        with storage_errors(f"{path}: cannot be written"):
            self._state.mkdir(mode=0o750, parents=True, exist_ok=True)
            with _opened(self._state) as state:
                owner = os.fstat(state)
                created = _created(state, self._folder.name)
                with _inside(state, self._folder) as folder:
                    if created and _is_empty(folder):
                        _give_to_owner(folder, owner)
                    new = f".{path.name}.{os.getpid()}.tmp"
                    with open_replacement(path, STATE_MODE, folder=folder, temporary=new) as file:
                        _give_to_owner(file.fileno(), owner)
                        file.write(content)
        self._known[model, key] = content

    def write_anew(self) -> None:
        """Write all files again that were read or written since the start: the folder was deleted.

        Raises:
            StorageError: a file cannot be written.
        """
        for (model, key), content in list(self._known.items()):
            self.write(model, key, content)

    def path(self, model: str, key: str) -> Path:
        """Return the path of a file."""
        return self._folder / f"{file_name(model, 60)}-{key[:16]}.json"


@contextmanager
def _opened(state: Path) -> Iterator[int]:
    """Open the state folder. It may be a link, but for root not another user's."""
    if os.geteuid() == 0 and state.is_symlink() and state.lstat().st_uid != 0:
        raise StorageError(f"{state}: is a link of another user, which root does not follow: name its target")
    descriptor = os.open(state, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def _inside(state: int, path: Path) -> Iterator[int]:
    """Open the folder of the files; it must not be a link."""
    check_kind(os.stat(path.name, dir_fd=state, follow_symlinks=False), stat.S_IFDIR, path)
    descriptor = os.open(path.name, os.O_RDONLY | os.O_DIRECTORY | SAFE, dir_fd=state)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _created(state: int, folder: str) -> bool:
    try:
        os.mkdir(folder, 0o750, dir_fd=state)
    except FileExistsError:
        return False
    os.fsync(state)
    return True


def _is_empty(folder: int) -> bool:
    """True if the folder is the new one, or at least holds nothing that a change of owner would expose."""
    with os.scandir(folder) as inside:
        return not any(inside)


def _give_to_owner(descriptor: int, owner: os.stat_result) -> None:
    """Give what root has measured to the daemon's user, who owns the state folder."""
    if os.geteuid() == 0 and owner.st_uid != 0:
        os.fchown(descriptor, owner.st_uid, owner.st_gid)


SHADOW_FILE = "vedette-update/shadow.json"
"""Path of the order below `/run`."""
_ORDER_LARGEST = 64 * 1024


def shadow_order_path(environment: Mapping[str, str] = os.environ) -> Path | None:
    """Return the path of the order; None without systemd's RUNTIME_DIRECTORY, where none is read."""
    folder = environment.get("RUNTIME_DIRECTORY", "").partition(":")[0]
    return Path(folder).parent / SHADOW_FILE if folder else None


class ShadowOrder(Struct, frozen=True):
    """Order to run new models beside those in use.

    Attributes:
        update: sha256 of the update's bundle.
        models: folder of the models in use, as configurations name it.
        candidates: folder of the new models; they belong to those of the same file name.
        every: compare one in `every` inferred pictures.
    """

    update: str
    models: str
    candidates: str
    every: Annotated[int, Meta(ge=1)] = 1


def write_shadow_order(path: Path, order: ShadowOrder) -> None:
    """Write an order.

    Raises:
        StorageError: it cannot be written.
    """
    make_folder(path.parent)
    write_atomic(path, msgspec.json.encode(order), follow=False, durable=False)
    try:  # independent of the operator's umask: the daemon is another user
        path.parent.chmod(0o755)
        path.chmod(0o644)
    except OSError as error:
        raise StorageError(f"{path}: cannot be made readable: {reason_of(error)}") from error


def delete_shadow_order(path: Path) -> None:
    """Delete the order, if there is one.

    Raises:
        StorageError: it cannot be deleted.
    """
    with storage_errors(f"{path}: cannot be deleted"):
        path.unlink(missing_ok=True)


def read_shadow_order(path: Path) -> ShadowOrder | None:
    """Return the order; None: there is none, or it is damaged."""
    try:
        return from_json(read_regular(path, _ORDER_LARGEST), ShadowOrder)
    except (OSError, StorageError, *NO_JSON):
        return None
