"""What was measured of models on this board, a small file for each in the state folder.

Root may write here for another user, whose folder it is and who may put links into it: none is followed.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from agent.errors import StorageError, reason_of
from agent.storage.durable import STATE_MODE
from agent.storage.regular import SAFE, check_kind, read_regular

_LARGEST = 1024**2


class Verdicts:
    """The files. Each is replaced as a whole, so that two processes may write the same."""

    def __init__(self, state: Path, folder: str = "verdicts") -> None:
        """Nothing is created before the first is written.

        Args:
            state: the state folder.
            folder: name of the folder in it.
        """
        self._state, self._folder = state, state / folder
        self._known: dict[tuple[str, str], bytes] = {}

    def read(self, model: str, key: str) -> bytes:
        """What was written last; empty: nothing.

        Args:
            model: its name, for people who look into the folder.
            key: hex digits that tell it from others of that name.

        Raises:
            StorageError: it is there and cannot be read, is far too large, is no file, or is another user's.
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
        """Replace it, and give it to the user whose the state folder is. The state folder is created if need be.

        Raises:
            StorageError: it cannot be written; what was there is still there.
        """
        path = self.path(model, key)
        try:
            self._state.mkdir(mode=0o750, parents=True, exist_ok=True)
            with _opened(self._state) as state:
                owner = os.fstat(state)
                new = _created(state, self._folder.name)
                with _inside(state, self._folder) as folder:
                    if new and _is_empty(folder):
                        _give(folder, owner)
                    _replace(folder, path.name, content, owner)
        except OSError as error:
            raise StorageError(f"{path}: cannot be written: {reason_of(error)}") from error
        self._known[model, key] = content

    def write_anew(self) -> None:
        """Write again what was read or written since the start: the folder was deleted.

        Raises:
            StorageError: one cannot be written.
        """
        for (model, key), content in list(self._known.items()):
            self.write(model, key, content)

    def path(self, model: str, key: str) -> Path:
        """Where it lies."""
        return self._folder / f"{re.sub(r'[^A-Za-z0-9_-]', '-', model)[:60]}-{key[:16]}.json"


@contextmanager
def _opened(state: Path) -> Iterator[int]:
    """The state folder, a descriptor. It may be a link, but for root not one that somebody else has put there."""
    if os.geteuid() == 0 and state.is_symlink() and state.lstat().st_uid != 0:
        raise StorageError(f"{state}: is a link of another user, which root does not follow: name its target")
    descriptor = os.open(state, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def _inside(state: int, path: Path) -> Iterator[int]:
    """The folder of the verdicts, a descriptor."""
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
    """Whether it is the one that was just created, or at least none that hides something from the new owner."""
    with os.scandir(folder) as inside:
        return not any(inside)


def _replace(folder: int, name: str, content: bytes, owner: os.stat_result) -> None:
    temporary = f".{name}.{os.getpid()}.tmp"
    with suppress(FileNotFoundError):
        os.unlink(temporary, dir_fd=folder)
    try:
        made = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | SAFE, STATE_MODE, dir_fd=folder)
        with os.fdopen(made, "wb") as file:
            _give(made, owner)
            file.write(content)
            file.flush()
            os.fsync(made)
        os.replace(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary, dir_fd=folder)
        raise
    os.fsync(folder)


def _give(descriptor: int, owner: os.stat_result) -> None:
    """What root measures is for the daemon, whose the state folder is."""
    if os.geteuid() == 0 and owner.st_uid != 0:
        os.fchown(descriptor, owner.st_uid, owner.st_gid)
