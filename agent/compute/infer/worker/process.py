"""A process of our own that may crash, hang, or talk without end: pipes to it and from it, and its end.

It ends with this one, however this one ends, and what it has started ends with it. What it says is kept, as far
as the memory for that reaches.
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
"""Of what it says, at most: it cannot write more, and begins from the front when half of it is full."""
_END_S = 2.0
_LOOK_S = 0.01
_LAST_WORDS = 4096
_CHATTER = ("INFO", "I0000 ", "WARNING: [npu_registry", "WARNING: [gpu_registry")
"""What libraries say when all is well begins so; LiteRT also warns of each accelerator that a board has not."""


class ChildProcess:
    """A module that is run by this Python, see `agent.compute.infer.worker.main` for what it does first.

    Attributes:
        pid: of the process.
        ended: whether `end` has been called.
    """

    def __init__(self, module: str, share: Sequence[int] = ()) -> None:
        """Start it.

        Args:
            module: its arguments are the descriptors that it reads from, that it answers to and that tells it how
                long to live, and those that it shares.
            share: descriptors.

        Raises:
            OSError: there is no memory or no descriptor left for it.
        """
        with ExitStack() as ours, ExitStack() as theirs:
            said = _bounded_log()
            ours.callback(os.close, said)
            life, _ = _pipe(theirs, ours)  # our end is closed with us
            there, to = _pipe(theirs, ours)
            answers, back = _pipe(ours, theirs)
            os.set_blocking(to, False)
            given = [there, back, life, *share]
            # Not the working folder's modules, for which `-P`: whoever runs us there may not own it.
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", module, *map(str, given)],
                pass_fds=given,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},  # numpy multiplies nothing there
                start_new_session=True,
            )
            self.pid, self.ended = self._process.pid, False
            self._to, self._from, self._log = to, answers, said
            self._watch = _watch(self.pid, ours)
            self._descriptors = ours.pop_all()

    def put(self, message: bytes, within_s: float) -> None:
        """Send it a message.

        Raises:
            ClosedError: it reads no more. TimeoutError: it does not take it in time.
        """
        protocol.put(self._to, message, time.monotonic() + within_s)

    def get(self, within_s: float, largest: int = protocol.LARGEST_ANSWER) -> bytes:
        """Receive its next message.

        Args:
            within_s: for the whole message, s.
            largest: bytes of the message, at most.

        Raises:
            ClosedError: it has ended, or writes no more. TimeoutError: nothing came in time. NonsenseError: the
                message is larger.
        """
        return protocol.get(self._from, time.monotonic() + within_s, self._watch, largest)

    def exit_reason(self) -> str:
        """Of what it died, and what it said last; it is over with it, whatever it still does."""
        how = "no longer answers"
        if self._dies(_END_S):
            self.kill()
            code = self._process.wait()
            killed = f"was killed by {signal_name(-code)}"
            how = f"crashed: its process {killed if code < 0 else f'ended by itself with exit status {code}'}"
        self.kill()
        return f"{how}{self.last_log_line()}"

    @property
    def said(self) -> int:
        """How much it has said, bytes: for `last_words`. It may begin again at 0."""
        return os.lseek(self._log, 0, os.SEEK_CUR)  # the descriptor is one, and so is the place in it

    def last_log_line(self, since: int = 0) -> str:
        """Quote what it said last, as the end of a sentence; empty: nothing.

        Args:
            since: of `said`; what it said before that is left out.
        """
        until = self.said
        begin = max(since if since <= until else 0, until - _LAST_WORDS)
        lines = os.pread(self._log, until - begin, begin).decode(errors="replace").split("\n")
        said = ["".join(filter(str.isprintable, line)).strip() for line in lines]
        said = [line for line in said if line and not line.startswith(_CHATTER)]
        return f"; it said: {said[-1][:200]}" if said else ""

    def end(self) -> None:
        """End it with all that it has started, and give back what it took."""
        if self.ended:
            return
        self.ended = True
        self.kill()
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:  # stuck in a driver: nobody can end it
            log.error("process %d cannot be killed: it hangs in the kernel", self.pid)
        self._descriptors.close()

    def _dies(self, within_s: float) -> bool:
        """Whether it ends in time. It stays a zombie, so that its group's number is nobody else's."""
        if self._process.returncode is not None:
            return True
        until = time.monotonic() + within_s
        while os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            if time.monotonic() > until:
                return False
            time.sleep(_LOOK_S)
        return True

    def kill(self) -> None:
        """Kill all of it, and do not wait for that."""
        if self._process.returncode is None:  # else its number may be another's by now
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)


def _bounded_log() -> int:
    """Memory that cannot grow: a library that never stops talking must not take the board's."""
    descriptor = os.memfd_create("log", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, LOG_BYTES)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW)
    return descriptor


def _pipe(reader: ExitStack, writer: ExitStack) -> tuple[int, int]:
    """Its ends, each closed with whom it belongs to."""
    ends = os.pipe()
    for end, owner in zip(ends, (reader, writer), strict=True):
        owner.callback(os.close, end)
    return ends


def _watch(pid: int, owner: ExitStack) -> int:
    """A descriptor that is readable when the process has ended; -1: the kernel is older than 5.3."""
    try:
        descriptor = os.pidfd_open(pid)
    except OSError:
        return -1
    owner.callback(os.close, descriptor)
    return descriptor


def signal_name(number: int) -> str:
    """Such as `SIGSEGV`."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
