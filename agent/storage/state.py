"""The state folder: found, created, locked and checked; and the small files in it, each replaced as a whole.

`StateFile` and `MeasurementFiles` are durable. The order to run new models beside those in use is not: the
updater leaves it in memory for the daemon, and a power cut drops it.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import pwd
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from agent.config import StorageConfig
from agent.errors import NO_JSON, InUseError, StorageError, reason_of
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
from agent.text import file_name, has_variable, replace_variable

log = logging.getLogger(__name__)
DISK_ERRORS = (errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EIO)
"""Errors of a full, failing or read-only disk, as a dying SD card becomes: the daemon then runs from memory."""
_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ESTALE)
_LOCK = "lock"
_VARIABLE = "STATE_DIRECTORY"
_HOME = "~/.local/state/vedette"
_SERVICE = Path("var/lib/vedette")
"""State folder of the service; only its process gets the name from systemd."""


class OwnedFolder(AbstractContextManager["OwnedFolder"]):
    """A folder locked by this process until the context ends; the kernel releases the lock of a killed process.

    Attributes:
        path: of the folder.
    """

    def __init__(self, path: Path) -> None:
        """Lock a folder.

        Raises:
            InUseError: another process has locked it; the message names its pid.
            StorageError: it cannot be used.
        """
        self.path = path
        self._descriptor = _owned(path)

    @property
    def is_gone(self) -> bool:
        """True if the folder was deleted, moved or replaced, or its file system was unmounted.

        The open descriptor keeps the inode of the lock file from being reused, so both can be compared.
        """
        ours = os.fstat(self._descriptor)
        try:
            there = (self.path if stat.S_ISDIR(ours.st_mode) else self.path / _LOCK).stat()
        except OSError as error:
            return error.errno in _GONE
        return (there.st_dev, there.st_ino) != (ours.st_dev, ours.st_ino)

    def renew(self) -> None:
        """Create the folder again if it is gone, and lock what is there now.

        Raises:
            InUseError: another process has locked it.
            StorageError: it cannot be created, or this process is root and it belongs to another user.
        """
        try:
            self.path.mkdir(mode=0o750, parents=True, exist_ok=True)
            _refuse_root(self.path)
        except OSError as error:
            raise _unusable(self.path, error) from error
        before, self._descriptor = self._descriptor, _owned(self.path)
        os.close(before)

    def close(self) -> None:
        os.close(self._descriptor)

    def __exit__(self, *_: object) -> None:
        self.close()


def _owned(folder: Path) -> int:
    """Lock a folder and return the descriptor that holds the lock."""
    descriptor = _lock_file(folder / _LOCK)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = ""
        with suppress(OSError):  # of a folder nothing can be read
            holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
        os.close(descriptor)
        if not isinstance(error, BlockingIOError):
            raise StorageError(f"{folder}: cannot be locked: {reason_of(error)}") from error
        raise InUseError(
            f"{folder}: in use by another vedette, pid {holder or 'unknown'}; stop that one, or give this one "
            "another [storage] state_dir"
        ) from error
    # The pid is informative only: a full disk must not keep the daemon from starting.
    with suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    return descriptor


def _lock_file(path: Path) -> int:
    """Return a descriptor to lock: of the lock file, or of the folder where the disk cannot create that."""
    if os.path.lexists(path):
        check_kind(path.lstat(), stat.S_IFREG, path)
    with storage_errors(f"{path}: cannot be opened"):
        try:
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK | SAFE, STATE_MODE)
        except OSError as error:
            if error.errno not in DISK_ERRORS:
                raise
        there = path if path.exists() else path.parent
        return os.open(there, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)


def state_folder(config: StorageConfig) -> Path:
    """Return the state folder, created if need be. If its disk cannot be written, log that and use it as it is.

    Raises:
        StorageError: its path cannot be resolved, it cannot be created or written, or this process is root and it
            belongs to another user.
    """
    folder = state_path(config)
    try:
        folder.mkdir(mode=0o750, parents=True, exist_ok=True)
        _refuse_root(folder)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        if error.errno in DISK_ERRORS and folder.is_dir():
            log.error(
                "%s: %s: running from memory: what is not delivered, and what commands set, is lost at the next "
                "restart; look at the disk (vedette doctor)",
                folder,
                reason_of(error),
            )
            return folder.resolve()
        raise _unusable(folder, error) from error
    return folder.resolve()


def _refuse_root(folder: Path) -> None:
    """Refuse to write as root into a folder of another user, who may put links in place of files."""
    owner = folder.stat().st_uid
    if os.geteuid() or not owner:
        return
    name = f"#{owner}"
    with suppress(KeyError):
        name = pwd.getpwuid(owner).pw_name
    raise StorageError(
        f"{folder}: belongs to the user {name}; expected a state folder of root, as root runs vedette. Run it as "
        f"that user: sudo -u {name} vedette run …, or as the service: systemctl start vedette"
    )


def check_state_folder(folder: Path, user: int | None = None, *, key: str = "state_dir") -> None:
    """Check what `state_folder` would check, without creating or writing anything.

    Root accepts a folder of another user: the daemon may run as that user.

    Args:
        folder: see `folder_of`; or the folder of clips.
        user: id of the daemon's user, for a process of root; None: the user of this process.
        key: of `[storage]` that sets this folder.

    Raises:
        StorageError: it cannot be used; the cause is a PermissionError where a right is missing.
    """
    nearest = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
    try:
        if not nearest.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        if os.statvfs(nearest).f_flag & os.ST_RDONLY:
            if nearest == folder:
                return  # the daemon runs from memory then
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        if not _may_write(nearest, user):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise _unusable(folder, error, key) from error


def _may_write(folder: Path, user: int | None) -> bool:
    if user is None or os.geteuid():
        return os.access(folder, os.W_OK | os.X_OK)
    status, groups = folder.stat(), set[int]()
    with suppress(KeyError):
        account = pwd.getpwuid(user)
        groups |= set(os.getgrouplist(account.pw_name, account.pw_gid))
    shift = 6 if status.st_uid == user else 3 if status.st_gid in groups else 0
    return not user or status.st_mode >> shift & 0o3 == 0o3


def _unusable(folder: Path, error: OSError, key: str = "state_dir") -> StorageError:
    use = "the state folder" if key == "state_dir" else "the folder of clips"
    is_other = isinstance(error, (FileExistsError, NotADirectoryError))
    why = "something that is no folder is in its place" if is_other else reason_of(error)
    do = "give the user that runs vedette write access, or " if isinstance(error, PermissionError) else ""
    return StorageError(f"{folder}: cannot be used as {use}: {why}; {do}set [storage] {key} to another place")


def state_path(config: StorageConfig) -> Path:
    """Return the path of the state folder; nothing is created.

    Raises:
        StorageError: the path cannot be resolved.
    """
    return _expanded("state_dir", config.state_dir or _given() or _HOME)


def clips_path(config: StorageConfig, state: Path | None = None) -> Path:
    """Return the full path of the folder of clips; nothing is created.

    Args:
        config: of the state folder and of clips.
        state: the state folder, if it is not this process's own.

    Raises:
        StorageError: the path cannot be resolved, or is no full path.
    """
    if config.clips_folder:
        folder = _expanded("clips_folder", config.clips_folder)
        if not folder.is_absolute():
            raise StorageError(
                f"[storage] clips_folder = {config.clips_folder!r}: expected a full path, such as /mnt/clips; "
                "where this one leads depends on the folder in which vedette is started"
            )
        return folder
    return (state or state_path(config)).resolve() / "clips"


def _given() -> str:
    # systemd gives several folders separated by colons; the first counts.
    return os.environ.get(_VARIABLE, "").partition(":")[0]


def _expanded(key: str, folder: str) -> Path:
    if "\0" in folder:
        raise StorageError(f"[storage] {key} = {folder!r}: holds a NUL character; use a path without it")
    if has_variable(folder, _VARIABLE):
        given = _given()
        if not given:
            raise StorageError(
                f"[storage] {key} = {folder!r}: ${_VARIABLE} is not set; "
                "systemd sets it for a unit with StateDirectory="
            )
        folder = replace_variable(folder, _VARIABLE, given)
    try:
        return Path(folder).expanduser()
    except RuntimeError as error:
        raise StorageError(f"[storage] {key} = {folder!r}: {error}; set it to a full path") from error


def service_user(root: Path = Path("/")) -> int | None:
    """Return the id of the service's user, who owns its state folder; None: the service is not installed."""
    try:
        return (root / _SERVICE).stat().st_uid
    except OSError:
        return None


def folder_of(config: StorageConfig, root: Path = Path("/")) -> Path:
    """Return the daemon's state folder for another program: the service's, if it is installed.

    Raises:
        StorageError: the path cannot be resolved.
    """
    by_unit = not config.state_dir or _VARIABLE in config.state_dir
    if by_unit and not os.environ.get(_VARIABLE) and os.path.lexists(root / _SERVICE):
        return root / _SERVICE
    return state_path(config)


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
        with storage_errors(f"{self.path}: cannot be written"):
            if not content:
                self.path.unlink(missing_ok=True)
                sync_folder(self.path.parent)
                return
            with open_replacement(self.path, STATE_MODE, temporary=f".{self.path.name}.new") as file:
                file.write(content)

    def set_aside(self, *, keep_name: bool = True) -> Path:
        """Keep a damaged file for people to look at, and return its new path.

        Args:
            keep_name: its old name stays until another file is written: after a power cut, damage must not look
                like a missing file. What is not a plain file is always moved.
        """
        aside = self.path.with_name(self.path.name + ASIDE)
        with suppress(OSError):
            is_file = stat.S_ISREG(self.path.lstat().st_mode)
            aside.unlink(missing_ok=True)
            if keep_name and is_file:
                os.link(self.path, aside)
            else:
                self.path.replace(aside)
        return aside


class MeasurementFiles:
    """A small file for each model in a folder of the state folder. Each is replaced as a whole.

    Root may write here for the owner of the state folder, who may put links into it: no link is followed.
    """

    def __init__(self, state: Path, folder: str = "verdicts") -> None:
        """Name a folder in the state folder; it is made with the first file."""
        self._state, self._folder = state, state / folder

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
                return read_regular(path, _LARGEST, folder, owners)
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
                with suppress(FileExistsError):
                    os.mkdir(self._folder.name, 0o750, dir_fd=state)
                    os.fsync(state)
                with _inside(state, self._folder) as folder:
                    if not os.listdir(folder):  # noqa: PTH208 a descriptor; its change of owner exposes nothing
                        _give_to_owner(folder, owner)
                    new = f".{path.name}.{os.getpid()}.tmp"
                    with open_replacement(path, STATE_MODE, folder=folder, temporary=new) as file:
                        _give_to_owner(file.fileno(), owner)
                        file.write(content)

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
    with storage_errors(f"{path}: cannot be made readable"):
        path.parent.chmod(0o755)  # whatever the operator's umask: the daemon is another user
        path.chmod(0o644)


def read_shadow_order(path: Path) -> ShadowOrder | None:
    """Return the order; None: there is none, or it is damaged."""
    try:
        return from_json(read_regular(path, _ORDER_LARGEST), ShadowOrder)
    except (OSError, StorageError, *NO_JSON):
        return None
