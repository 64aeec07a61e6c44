"""Child processes, which may crash, hang, log without end or take too much memory.

`ChildProcess` runs one of our modules in a process of its own, with pipes to it and from it. The kernel kills it
with this process, however this process ends, and its own children with it. The end of its log is kept in memory
of bounded size. The module calls `init_child` first. `run_fork` does some work in a copy of this process.

Each message is a length, u32 little-endian, and as many bytes. The child is not trusted: a length is checked
before anything is allocated.
"""

from __future__ import annotations

import fcntl
import logging
import math
import os
import pwd
import resource
import select
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

import msgspec
from msgspec import Struct

from agent.errors import BackendError, ModelError, VedetteError

log = logging.getLogger(__name__)
LARGEST_REQUEST, LARGEST_ANSWER = 2 * 1024**3, 1024**2
"""Most bytes of a message to a child, such as a model, and of its answer."""
LONGEST_TEXT = 500
"""Characters of an error's text."""
LOG_BYTES = 1 << 20
"""Size of its log. It cannot write more; `trim_log` lets it overwrite the log from the start."""
_LENGTH = struct.Struct("<I")
_SMALL = 4096
"""Messages shorter than this are written together with their length, bytes."""
_END_S = 2.0
_POLL_S = 0.01
_TAIL_BYTES = 4096
_ROUTINE = ("INFO", "I0000 ", "WARNING: [npu_registry", "WARNING: [gpu_registry")
"""Starts of routine log lines; LiteRT also warns of each accelerator that the board lacks."""


class ChildError(Exception):
    """A child process failed; the text says how, as the end of a sentence about it."""


class ClosedError(Exception):
    """The other end has closed."""


class InvalidMessageError(Exception):
    """The other end sent no valid message."""


class Failed(Struct, frozen=True, tag=True):
    """A child's answer to a request that failed. `model` is True if the model is to blame, not the backend."""

    text: str
    model: bool = False

    def error(self) -> ModelError:
        """Return the error that the child described, which may have written anything."""
        kind = ModelError if self.model else BackendError
        return kind("".join(filter(str.isprintable, self.text))[:LONGEST_TEXT])


def describe_failure(error: Exception) -> Failed:
    """Describe an error for the parent."""
    text = str(error) if isinstance(error, VedetteError) else f"{type(error).__name__}: {error}"
    return Failed(text[:LONGEST_TEXT], isinstance(error, ModelError) and not isinstance(error, BackendError))


encode = msgspec.json.Encoder().encode
"""Returns a message as JSON."""


class ChildProcess:
    """A module that this Python runs in a process of its own."""

    def __init__(self, module: str, share: Sequence[int] = ()) -> None:
        """Start the process.

        Args:
            module: its arguments are descriptors: to read requests from, to write answers to, of the pipe that
                closes when this process ends, and those of `share`.
            share: further descriptors that it inherits.

        Raises:
            OSError: no memory or no descriptor is left.
        """
        with ExitStack() as ours, ExitStack() as theirs:
            log_file = _bounded_log()
            ours.callback(os.close, log_file)
            life, _ = _pipe(theirs, ours)  # the kernel closes our end when this process ends
            there, to = _pipe(theirs, ours)
            answers, back = _pipe(ours, theirs)
            os.set_blocking(to, False)
            given = [there, back, life, *share]
            # `-P`: do not import modules from the working folder, which another user may own.
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", module, *map(str, given)],
                pass_fds=given,
                stdin=subprocess.DEVNULL,
                stdout=log_file,
                stderr=log_file,
                env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},  # numpy multiplies nothing there
                start_new_session=True,
            )
            self.pid, self.ended = self._process.pid, False
            self._to, self._from, self._log = to, answers, log_file
            self._watch = _watch(self.pid, ours)
            self._descriptors = ours.pop_all()

    def ask(self, *messages: bytes, within_s: float, what: str, largest: int = LARGEST_ANSWER) -> bytes:
        """Send messages and return the answer to them.

        Args:
            messages: each is sent within the time limit.
            within_s: time limit of the answer, s.
            what: what takes that time, for the error's text.
            largest: most bytes of the answer.

        Raises:
            ChildError: the process has ended, did not answer in time, or sent no valid message. It was killed;
                `end` is still to be called.
        """
        try:
            for message in messages:
                send(self._to, message, time.monotonic() + within_s)
            return receive(self._from, time.monotonic() + within_s, self._watch, largest)
        except TimeoutError:
            text = f"hangs: {what} took longer than {within_s:g} s{self.last_log_line()}"
        except ClosedError:
            text = self._ending()
        except InvalidMessageError as error:
            text = f"sent an invalid answer: {error}"
        self.kill()
        raise ChildError(text)

    def _ending(self) -> str:
        """Describe how the process ended, with its last log line."""
        how = "no longer answers"
        if self._wait_exit(_END_S):
            self.kill()
            how = f"crashed: its process {describe_exit(self._process.wait())}"
        return f"{how}{self.last_log_line()}"

    @property
    def log_end(self) -> int:
        """Position of the end of its log, bytes, for `last_log_line`. It may restart at 0."""
        return os.lseek(self._log, 0, os.SEEK_CUR)  # both processes share the position

    def last_log_line(self, since: int = 0) -> str:
        """Quote the last log line after position `since` as the end of a sentence; empty if there is none."""
        until = self.log_end
        begin = max(since if since <= until else 0, until - _TAIL_BYTES)
        lines = os.pread(self._log, until - begin, begin).decode(errors="replace").split("\n")
        printable = ["".join(filter(str.isprintable, line)).strip() for line in lines]
        telling = [line for line in printable if line and not line.startswith(_ROUTINE)]
        return f"; last log line: {telling[-1][:200]}" if telling else ""

    def end(self) -> None:
        """Kill the process with its children, wait for it, and close its descriptors."""
        if self.ended:
            return
        self.ended = True
        self.kill()
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:  # stuck in a driver, or waiting for its turn on a busy board
            log.error("process %d was killed, and has not ended after %g s", self.pid, _END_S)
        self._descriptors.close()

    def _wait_exit(self, within_s: float) -> bool:
        """Return True if it ends in time. It stays a zombie, so that no other process gets its group's number."""
        if self._process.returncode is not None:
            return True
        until = time.monotonic() + within_s
        while os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            if time.monotonic() > until:
                return False
            time.sleep(_POLL_S)
        return True

    def kill(self) -> None:
        """Kill the process and its children without waiting."""
        if self._process.returncode is None:  # else another process may have its number by now
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)


def _bounded_log() -> int:
    """Create a memory file that cannot grow, because a library may log without end."""
    descriptor = os.memfd_create("log", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, LOG_BYTES)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW)
    return descriptor


def _pipe(reader: ExitStack, writer: ExitStack) -> tuple[int, int]:
    """Create a pipe whose ends are closed with their owners."""
    ends = os.pipe()
    for end, owner in zip(ends, (reader, writer), strict=True):
        owner.callback(os.close, end)
    return ends


def _watch(pid: int, owner: ExitStack) -> int:
    """Open a descriptor that is readable when the process has ended; -1: the kernel is older than 5.3."""
    try:
        descriptor = os.pidfd_open(pid)
    except OSError:
        return -1
    owner.callback(os.close, descriptor)
    return descriptor


def describe_exit(status: int) -> str:
    """Describe how a process ended: its exit status, or the negative number of the signal that killed it."""
    return f"was killed by {signal_name(-status)}" if status < 0 else f"ended by itself with exit status {status}"


def signal_name(number: int) -> str:
    """Return the name of a signal, such as `SIGSEGV`."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def send(descriptor: int, message: bytes, until: float | None = None) -> None:
    """Send a message.

    Args:
        descriptor: of a pipe; it must be non-blocking for `until` to have effect.
        message: at most 4 GiB.
        until: s of the monotonic clock; None: as long as it takes.

    Raises:
        ClosedError: the other end has closed.
        TimeoutError: the message was not read in time.
    """
    length = _LENGTH.pack(len(message))
    for part in (length + message,) if len(message) < _SMALL else (length, message):
        rest = memoryview(part)
        while rest:
            try:
                rest = rest[os.write(descriptor, rest) :]
            except BlockingIOError:
                _wait(descriptor, select.POLLOUT, until)
            except OSError as error:
                raise ClosedError from error


def receive(descriptor: int, until: float | None = None, watch: int = -1, largest: int = LARGEST_ANSWER) -> bytes:
    """Receive the next message.

    Args:
        descriptor: of a pipe.
        until: s of the monotonic clock; None: as long as it takes.
        watch: descriptor that becomes readable when no message will come any more; -1: none.
        largest: bytes of the message, at most.

    Raises:
        ClosedError: the other end has closed.
        TimeoutError: the message did not come in time.
        InvalidMessageError: the message is announced as larger than `largest`; nothing was allocated for it.
    """
    (length,) = _LENGTH.unpack(_read(descriptor, _LENGTH.size, until, watch))
    if length > largest:
        raise InvalidMessageError(f"it announces a message of {length} bytes; expected at most {largest}")
    return _read(descriptor, length, until, watch)


def _read(descriptor: int, count: int, until: float | None, watch: int) -> bytes:
    buffer = bytearray(count)
    rest = memoryview(buffer)
    while rest:
        if until is not None:
            _wait(descriptor, select.POLLIN, until, watch)
        got = os.readv(descriptor, [rest])
        if not got:
            raise ClosedError
        rest = rest[got:]
    return bytes(buffer)


def _wait(descriptor: int, events: int, until: float | None, watch: int = -1) -> None:
    poll = select.poll()
    poll.register(descriptor, events)
    if watch >= 0:
        poll.register(watch, select.POLLIN)
    ready = poll.poll(None if until is None else max(0.0, until - time.monotonic()) * 1e3)
    if not ready:
        raise TimeoutError
    if all(number == watch for number, _ in ready):
        raise ClosedError


# In the child process.

_OOM = Path("/proc/self/oom_score_adj")
_EXPENDABLE = "500"
"""OOM score adjustment, -1000 to 1000, see proc_pid_oom_score_adj(5): when memory runs out, the kernel kills this
process before its parent."""


def init_child(life: int) -> None:
    """Set up a process that `ChildProcess` started: it is killed if memory runs out, and logs nothing.

    The kernel kills it and its forks, even in a driver call, when its parent ends, which holds the other end of
    the pipe `life` open. PR_SET_PDEATHSIG would not do: it follows the parent's thread, which may end earlier.
    """
    fcntl.fcntl(life, fcntl.F_SETOWN, -os.getpgrp())
    fcntl.fcntl(life, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(life, fcntl.F_SETFL, os.O_ASYNC)
    if select.select([life], [], [], 0)[0]:  # it is closed already
        os._exit(0)
    with suppress(OSError):
        _OOM.write_text(_EXPENDABLE, encoding="ascii")
    # Ctrl-C is the parent's to handle.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.disable()


def trim_log() -> None:
    """Continue the log from its start when it is half full."""
    if os.lseek(2, 0, os.SEEK_CUR) > LOG_BYTES // 2:
        os.lseek(2, 0, os.SEEK_SET)


def limit_memory(more: int) -> None:
    """Limit the memory that this process may add, bytes; it leaves no core dump."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8", errors="replace").splitlines()
    used_kib = next((int(line.split()[1]) for line in lines if line.startswith("VmData:")), 0)
    most = 1024 * used_kib + more
    lower_limit(resource.RLIMIT_CORE, 0, 0)
    lower_limit(resource.RLIMIT_DATA, most, most)


def lower_limit(kind: int, soft: int, hard: int) -> None:
    """Set limits of this process, see setrlimit(2), without exceeding its hard one, which nobody may raise."""
    most = resource.getrlimit(kind)[1]
    limits = (soft, hard) if most == resource.RLIM_INFINITY else (min(soft, most), min(hard, most))
    resource.setrlimit(kind, limits)


# Forks.

_FORK_END_S = 5.0
"""Longest wait for the end of a fork that has written its result, s."""
_PART = 2**20
"""Bytes per read."""


def run_fork(work: Callable[[int], object], largest: int, within_s: float = math.inf) -> tuple[bytes, int]:
    """Do some work in a fork. Return what it wrote, and its exit status, or the negative number of its signal.

    The fork has no descriptors of this process but standard input, output and error.

    Args:
        work: gets the descriptor to write its result to.
        largest: most bytes of the result.
        within_s: time limit, s.

    Raises:
        InvalidMessageError: the result is larger. TimeoutError: it took longer. The fork has ended.
    """
    outcome, writer = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            os.closerange(3, writer)
            os.closerange(writer + 1, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
            work(writer)
            os._exit(0)
        finally:
            os._exit(1)
    os.close(writer)
    try:
        written = _read_all(outcome, time.monotonic() + within_s, largest)
    except BaseException:  # such as Ctrl-C, which a fork in a session of its own does not get
        _kill_fork(pid)
        raise
    finally:
        os.close(outcome)
        status = _wait_fork(pid)
    return written, status


def _read_all(outcome: int, until: float, largest: int) -> bytes:
    """Read until the other end closes. A process that the fork has started may keep it open."""
    data = bytearray()
    while True:
        _wait(outcome, select.POLLIN, None if until == math.inf else until)
        part = os.read(outcome, _PART)
        if not part:
            return bytes(data)
        data += part
        if len(data) > largest:
            raise InvalidMessageError(f"its result has more than {largest} bytes")


def _wait_fork(pid: int) -> int:
    """Wait for a fork's end, kill it after `_FORK_END_S`, and return its exit code."""
    until = time.monotonic() + _FORK_END_S
    while time.monotonic() < until:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    _kill_fork(pid)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _kill_fork(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    with suppress(ProcessLookupError):  # it has no process group of its own
        os.killpg(pid, signal.SIGKILL)


# Rights.

_STATE = Path("/var/lib/vedette")
"""The daemon's state folder; its owner is the daemon's user."""
_NOBODY = 65534
_SETGID, _SETUID = 6, 7
"""Numbers of capabilities, see capabilities(7)."""


def is_root() -> bool:
    """Return True if this process is root and may change to another user.

    It may not in a container without other users, whose root is an ordinary user outside, nor in one without the
    capabilities for that.
    """
    return os.geteuid() == 0 and all(map(_is_known, ("uid", "gid"), _user())) and _may_change_user()


def drop_root(groups: Sequence[int] = ()) -> None:
    """Change from root to the daemon's user, or `nobody`, for good. Raises OSError if the kernel refuses."""
    if not is_root():
        return
    uid, gid = _user()
    os.setgroups(list(groups))
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)


def other_user() -> str:
    """Return the name of the unprivileged user: the daemon's, or `nobody`."""
    user = _user()[0]
    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return str(user)


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


def _user() -> tuple[int, int]:
    with suppress(OSError):
        owner = _STATE.stat()
        if owner.st_uid and owner.st_gid:
            return owner.st_uid, owner.st_gid
    with suppress(KeyError):
        found = pwd.getpwnam("nobody")
        return found.pw_uid, found.pw_gid
    return _NOBODY, _NOBODY
