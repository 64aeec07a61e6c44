"""A child process that may crash, hang or log without end, with pipes to it and from it.

The kernel kills it with this process, however this process ends, and its own children with it. The end of its log
is kept in memory of bounded size.
"""

from __future__ import annotations

import fcntl
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress

from agent.compute.infer.worker import protocol

log = logging.getLogger(__name__)
LOG_BYTES = 1 << 20
"""Size of its log. It cannot write more, and overwrites the log from the start when half of it is full."""
_END_S = 2.0
_POLL_S = 0.01
_TAIL_BYTES = 4096
_ROUTINE = ("INFO", "I0000 ", "WARNING: [npu_registry", "WARNING: [gpu_registry")
"""Starts of routine log lines; LiteRT also warns of each accelerator that the board lacks."""


class ChildProcess:
    """A module that this Python runs in a process of its own. The module calls `init_child` first."""

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

    def send(self, message: bytes, within_s: float) -> None:
        """Send a message to the process.

        Raises:
            ClosedError: the process has closed its end.
            TimeoutError: it did not read the message in time.
        """
        protocol.send(self._to, message, time.monotonic() + within_s)

    def receive(self, within_s: float, largest: int = protocol.LARGEST_ANSWER) -> bytes:
        """Receive the next message of the process, of at most so many bytes.

        Raises:
            ClosedError: the process has ended, or closed its end.
            TimeoutError: the message did not come in time.
            InvalidMessageError: the message is larger.
        """
        return protocol.receive(self._from, time.monotonic() + within_s, self._watch, largest)

    def exit_reason(self) -> str:
        """Kill the process and describe its end: signal or exit status, and its last log line."""
        how = "no longer answers"
        if self._wait_exit(_END_S):
            self.kill()
            code = self._process.wait()
            killed = f"was killed by {signal_name(-code)}"
            how = f"crashed: its process {killed if code < 0 else f'ended by itself with exit status {code}'}"
        self.kill()
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


def signal_name(number: int) -> str:
    """Return the name of a signal, such as `SIGSEGV`."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
