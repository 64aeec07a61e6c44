"""The state folder: found, created, locked and checked."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import pwd
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from agent.config import StorageConfig
from agent.errors import InUseError, StorageError, reason_of
from agent.storage.files import SAFE, STATE_MODE, check_kind, what_is
from agent.text import has_variable, replace_variable

log = logging.getLogger(__name__)
DISK_ERRORS = (errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EIO)
"""Errors of a full, failing or read-only disk, as a dying SD card becomes: the daemon then runs from memory."""
_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ESTALE)
_LOCK = "lock"
_STATE_FILES = ("lock", "spool.*", "overrides.*", "verdicts/*.json")
_TEMPORARIES = (".overrides.*.tmp",)
"""Temporary files of `write_atomic`."""
_KERNELS = ("/proc", "/sys")
_DANGLING = "a link that leads nowhere"
_MOVABLE = ("a file", _DANGLING)
"""What a user may move out of the way of a folder; a device stays where it is."""
_VARIABLE = "STATE_DIRECTORY"
_HOME = "~/.local/state/vedette"
_SERVICE = Path("var/lib/vedette")
"""State folder of the service; only its process gets the name from systemd."""


def remove_temporaries(folder: Path) -> None:
    """Remove temporary files that a power cut has left. Call it as the owner of the state folder."""
    for path in (path for pattern in _TEMPORARIES for path in folder.glob(pattern)):
        with suppress(OSError):
            path.unlink()


def tighten(folder: Path) -> None:
    """Restrict the files of a state folder to `STATE_MODE`: older versions created some with 0644.

    Call it before the spool is opened: closing a file of the database would release SQLite's locks on it. Files
    of other users, and those whose mode cannot be changed, stay as they are.
    """
    for path in (path for pattern in _STATE_FILES for path in folder.glob(pattern)):
        with suppress(OSError):
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                found = os.fstat(descriptor)
                if stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid():
                    os.fchmod(descriptor, stat.S_IMODE(found.st_mode) & STATE_MODE)
            finally:
                os.close(descriptor)


class OwnedFolder:
    """A folder locked by this process; the kernel releases the lock when the process ends.

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
            raise StorageError(f"{self.path}: cannot be made again: {_advice(self.path, error)}") from error
        before, self._descriptor = self._descriptor, _owned(self.path)
        os.close(before)

    def close(self) -> None:
        os.close(self._descriptor)


@contextmanager
def lock_folder(folder: Path) -> Iterator[Path]:
    """Lock a folder while the context lasts, see `OwnedFolder`.

    Yields:
        the folder.

    Raises:
        InUseError: another process has locked it; the message names its pid.
        StorageError: it cannot be used.
    """
    owned = OwnedFolder(folder)
    try:
        yield folder
    finally:
        owned.close()


def _owned(folder: Path) -> int:
    descriptor = _lock_file(folder / _LOCK)
    try:
        _lock(descriptor, folder)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _lock_file(path: Path) -> int:
    """Return a descriptor to lock: of the lock file, or of the folder where the disk cannot create that."""
    try:
        descriptor = _opened_or_folder(path)
        found = os.fstat(descriptor)
    except OSError as error:
        why = "is a link where a file is expected: remove it" if path.is_symlink() else reason_of(error)
        raise StorageError(f"{path}: cannot be opened: {why}") from error
    if not stat.S_ISDIR(found.st_mode):
        try:
            check_kind(found, stat.S_IFREG, path)
        except StorageError:
            os.close(descriptor)
            raise
    return descriptor


def _opened_or_folder(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK | SAFE, STATE_MODE)
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
    there = path if os.path.lexists(path) else path.parent
    return os.open(there, os.O_RDONLY | os.O_NONBLOCK | (SAFE if there == path else os.O_CLOEXEC))


def _lock(descriptor: int, folder: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = _holder(descriptor)
        raise InUseError(
            f"{folder}: in use by another vedette, pid {holder}; stop that one, or give this one another "
            "[storage] state_dir"
        ) from error
    except OSError as error:
        raise StorageError(f"{folder}: cannot be locked: {reason_of(error)}") from error
    # The pid is informative only: a full disk must not keep the daemon from starting.
    with suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)


def _holder(descriptor: int) -> str:
    with suppress(OSError):  # of a folder nothing can be read
        return os.pread(descriptor, 32, 0).decode("ascii", "replace").strip() or "unknown"
    return "unknown"


def state_folder(config: StorageConfig) -> Path:
    """Return the state folder, created if need be. If its disk cannot be written, log that and use it as it is.

    Raises:
        StorageError: its path cannot be resolved, it cannot be created or written, or this process is root and it
            belongs to another user.
    """
    folder = state_path(config)
    try:
        _check_place(folder, _nearest(folder))
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
    nearest = _nearest(folder)
    try:
        _check_place(folder, nearest)
        if os.statvfs(nearest).f_flag & os.ST_RDONLY:
            if nearest == folder:
                return  # the daemon runs from memory then
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        if not _may_write(nearest, user):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise _unusable(folder, error, key) from error


def _nearest(folder: Path) -> Path:
    """Return what exists of a path: the folder, or the nearest one above it."""
    return next(path for path in (folder, *folder.parents) if os.path.lexists(path))


def _check_place(folder: Path, nearest: Path) -> None:
    """Check that a user could create a folder.

    Raises:
        OSError: it is in /proc or /sys, something else is in its place, or one of its names is too long.
    """
    if any(Path(os.path.realpath(nearest)).is_relative_to(place) for place in _KERNELS):
        raise OSError(errno.EINVAL, "no files can be kept in /proc and /sys")
    if not nearest.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    longest = os.pathconf(nearest, "PC_NAME_MAX")
    if any(len(os.fsencode(part)) > longest for part in folder.relative_to(nearest).parts):
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))


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
    return StorageError(f"{folder}: cannot be used as {use}: {_advice(folder, error, key)}")


def _advice(folder: Path, error: OSError, key: str = "state_dir") -> str:
    """Say what is wrong with a folder, and what to do about it."""
    if isinstance(error, (FileExistsError, NotADirectoryError)):
        there = (path for path in (folder, *folder.parents) if os.path.lexists(path) and not path.is_dir())
        found = next(there, folder)
        what = "it" if found == folder else str(found)
        kind = what_is(found) or _DANGLING
        do = "move that away, or " if kind in _MOVABLE else ""
        return f"{what} is {kind}; {do}set [storage] {key} to another place"
    if isinstance(error, PermissionError):
        return f"{reason_of(error)}; give the user that runs vedette write access, or set [storage] {key}"
    return f"{reason_of(error)}; set [storage] {key} to another place"


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
