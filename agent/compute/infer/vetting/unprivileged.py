"""Works on untrusted models without root's rights: as the daemon's user, or else as `nobody`.

Worker processes call `drop_root` before they open a model. `without_root` has a fork do the rest of a command's
work, such as parsing a model's file; files that only root may read are read before, see
`agent.models.files.preloaded`. Results come back as typed msgpack, so that root need not trust the fork.
"""

from __future__ import annotations

import importlib
import logging
import os
import pkgutil
import pwd
import resource
import select
import signal
import stat
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import msgspec
from msgspec import Struct

from agent import errors
from agent.errors import NO_JSON, ModelError, VedetteError
from agent.structs import from_msgpack

log = logging.getLogger(__name__)
_STATE = Path("/var/lib/vedette")
"""The daemon's state folder; its owner is the daemon's user."""
_NOBODY = 65534
_GROUPS = ("video", "audio", "render")
"""Groups of cameras, microphones and GPUs, as in the daemon's unit."""
_LARGEST = 64 * 2**20
"""Largest result, bytes, without models that the caller expects."""
_SETGID, _SETUID = 6, 7
"""Numbers of capabilities, see capabilities(7)."""
_GROUP, _ANYBODY = stat.S_IRGRP | stat.S_IWGRP, stat.S_IROTH | stat.S_IWOTH
_END_S = 5.0
"""Longest wait for the end of a fork that has written its result, s."""
_PART = 2**20
"""Bytes per read."""
_NO_PROGRAM = 77
"""Exit status of a fork whose user may not run this Python."""

parsed_as_root = ""
"""Why root's work is done as root here, for `vedette doctor`; empty: it is not, as far as is known."""
T = TypeVar("T")


class _ForkResult(Struct, frozen=True):
    """Result of the work, msgpack, or type and texts of the error that ended it."""

    result: msgspec.Raw = msgspec.Raw(b"\xc0")
    kind: str = ""
    faults: tuple[str, ...] = ()


def without_root(work: Callable[[], T], kind: Any, within_s: float = 300.0, model_bytes: int = 0) -> T:
    """Do some work without root's rights: in a fork for root, else in this process.

    If the other user may not run this Python, as in a clone in root's home, or if the process has other threads,
    the work is done as root. Even then models are opened only by processes without root's rights.

    Args:
        work: what to do. It sees the process's memory as it is now; of its changes only those to files remain.
        kind: type of its result, which msgspec can write and read.
        within_s: timeout, s.
        model_bytes: size of the model that the result holds, bytes: the result may be larger by that.

    Raises:
        VedetteError: as the work raises, of the same type.
        ModelError: the fork ended early or took too long, or its result is too large.
    """
    global parsed_as_root
    # A fork would inherit the locks of other threads and wait for ever.
    if not is_root() or parsed_as_root or len(sys._current_frames()) > 1:
        return work()
    _import_all()
    sys.stdout.flush()
    written, status = _fork(work, within_s, _LARGEST + model_bytes)
    if status == _NO_PROGRAM:
        parsed_as_root = f"user {other_user()} may not run {sys.executable}"
        return work()
    result: T = _decode(written, status, kind)
    return result


def _fork(work: Callable[[], T], within_s: float, largest: int) -> tuple[bytes, int]:
    """Do some work in a fork. Return what it has written and its exit status."""
    outcome, writer = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(outcome)
        _run_in_fork(work, writer)
    os.close(writer)
    try:
        written = _read(outcome, within_s, largest)
    except BaseException:  # such as Ctrl-C, which the fork does not get
        _kill(pid)
        raise
    finally:
        os.close(outcome)
        status = _wait_exit(pid)
    return written, status


def other_user() -> str:
    """Return the name of the unprivileged user: the daemon's, or `nobody`."""
    return _name_of(_user()[0])


def _name_of(user: int) -> str:
    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return str(user)


def _read(outcome: int, within_s: float, largest: int) -> bytes:
    """Read until the other end closes. A process that the fork has started may keep it open."""
    until, data = time.monotonic() + within_s, bytearray()
    while select.select([outcome], [], [], max(0.0, until - time.monotonic()))[0]:
        part = os.read(outcome, _PART)
        if not part:
            return bytes(data)
        data += part
        if len(data) > largest:
            raise ModelError(f"the process without root's rights returned more than {largest >> 20} MB")
    raise ModelError(f"the process without root's rights took longer than {within_s:g} s")


def _wait_exit(pid: int) -> int:
    """Wait for a fork's end, kill it after `_END_S`, and return its exit code."""
    until = time.monotonic() + _END_S
    while time.monotonic() < until:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    _kill(pid)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    with suppress(ProcessLookupError):  # killed before it had a process group of its own
        os.killpg(pid, signal.SIGKILL)


def _close_others(kept: int) -> None:
    """Close root's descriptors but for standard input, output and error, and `kept`."""
    os.closerange(3, kept)
    os.closerange(kept + 1, resource.getrlimit(resource.RLIMIT_NOFILE)[0])


def _run_in_fork(work: Callable[[], T], writer: int) -> NoReturn:
    try:
        os.setsid()  # detach from root's terminal, into which it could type
        _close_others(writer)
        drop_root(device_groups())
        if not os.access(sys.executable, os.X_OK):
            os._exit(_NO_PROGRAM)
        try:
            result = _ForkResult(msgspec.Raw(msgspec.msgpack.encode(work())))
        except VedetteError as error:
            faults = error.faults if isinstance(error, ModelError) else (str(error),)
            result = _ForkResult(kind=type(error).__name__, faults=faults)
        with os.fdopen(writer, "wb") as file:
            file.write(msgspec.msgpack.encode(result))
        sys.stdout.flush()
        os._exit(0)
    except BaseException as error:
        with suppress(Exception):
            log.error("without root: %s: %s", type(error).__name__, error)
    finally:
        os._exit(1)


def _decode(written: bytes, status: int, kind: Any) -> Any:
    how = f"exit status {status}" if status >= 0 else f"signal {-status}"
    try:
        if not written:
            raise ModelError(f"the process without root's rights ended early, with {how}")
        told = from_msgpack(written, _ForkResult)
        if not told.kind:
            return from_msgpack(told.result, kind)
    except NO_JSON as error:
        raise ModelError(f"the process without root's rights returned an invalid result: {error}") from error
    found = getattr(errors, told.kind, ModelError)
    if isinstance(found, type) and issubclass(found, ModelError):
        raise found(*told.faults)
    is_ours = isinstance(found, type) and issubclass(found, VedetteError)
    raise (found if is_ours else VedetteError)("; ".join(told.faults))


def is_root() -> bool:
    """Return True if this process is root and may change to another user.

    It may not in a container without other users, whose root is an ordinary user outside, nor in one without the
    capabilities for that.
    """
    return os.geteuid() == 0 and all(map(_is_known, ("uid", "gid"), _user())) and _may_change_user()


def _may_change_user() -> bool:
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8", errors="replace").splitlines()
        (held,) = (int(line.split()[1], 16) for line in lines if line.startswith("CapEff:"))
    except (OSError, ValueError):
        return True
    return bool(held >> _SETGID & 1 and held >> _SETUID & 1)


def _is_known(kind: str, number: int) -> bool:
    """Return True if this user namespace has such a user or group, see user_namespaces(7)."""
    try:
        lines = Path(f"/proc/self/{kind}_map").read_text(encoding="ascii").splitlines()
        spans = [(int(first), int(count)) for first, _, count in map(str.split, lines)]
    except (OSError, ValueError):
        return True
    return any(first <= number < first + count for first, count in spans)


def drop_root(groups: list[int] | None = None) -> None:
    """Change from root to the daemon's user, or `nobody`, for good. Raises OSError if the kernel refuses."""
    if not is_root():
        return
    uid, gid = _user()
    os.setgroups(groups or [])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)


def _user() -> tuple[int, int]:
    with suppress(OSError):
        owner = _STATE.stat()
        if owner.st_uid and owner.st_gid:
            return owner.st_uid, owner.st_gid
    with suppress(KeyError):
        found = pwd.getpwnam("nobody")
        return found.pw_uid, found.pw_gid
    return _NOBODY, _NOBODY


def device_groups(root: Path = Path("/")) -> list[int]:
    """List the groups that may use cameras, microphones, GPUs and accelerators here.

    These are the groups of the daemon's unit and those of the accelerators' device nodes: in a container the
    latter are the host's numbers, without names.
    """
    import grp

    from agent.compute.infer.delegates import device_nodes

    found = {group for node in device_nodes(root=root) if (group := _writers(node))}
    for name in _GROUPS:
        with suppress(KeyError):
            found.add(grp.getgrnam(name).gr_gid)
    return sorted(found)


def only_for_root(backend: str, root: Path = Path("/")) -> Path | None:
    """Return a device node of a backend that only root may open, whatever a user's groups; None: none."""
    from agent.compute.infer.delegates import device_nodes

    for node in device_nodes(backend, root):
        with suppress(OSError):
            if not _writers(node) and node.stat().st_mode & _ANYBODY != _ANYBODY:
                return node
    return None


def _writers(node: Path) -> int:
    """Return the group that may read and write a device node; 0: only root's."""
    with suppress(OSError):
        status = node.stat()
        if status.st_mode & _GROUP == _GROUP:
            return status.st_gid
    return 0


def _import_all() -> None:
    """Import what the work may need, because the other user may not be allowed to read it."""
    import agent.compute

    for module in pkgutil.walk_packages(agent.compute.__path__, "agent.compute."):
        if not module.name.endswith("_main"):
            with suppress(ImportError):
                importlib.import_module(module.name)
    from agent.compute.infer.litert import load_runtime, runtime_version
    from agent.config.source_uri import import_openers

    import_openers()
    with suppress(VedetteError):
        runtime_version(load_runtime()[0])
