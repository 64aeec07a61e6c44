"""What a process that `agent.compute.infer.process` starts does first, and between its answers."""

from __future__ import annotations

import fcntl
import logging
import os
import select
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from agent.compute.infer.process import LOG_BYTES
from agent.compute.infer.stderr import keep_stderr

_OOM = "/proc/self/oom_score_adj"
_EXPENDABLE = b"500"
"""Of -1000 to 1000, see proc_pid_oom_score_adj(5): where memory runs out this ends before who started it."""


def begin(life: int) -> None:
    """Live as long as the other end does, and be the first to go where memory is short.

    Args:
        life: descriptor of a pipe that the other end holds open as long as this process is to live.
    """
    end_with(life)
    with suppress(OSError), _opened(_OOM) as setting:
        os.write(setting, _EXPENDABLE)
    # What ends a terminal's programs is the other end's to judge.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.disable()
    keep_stderr()


def end_with(life: int) -> None:
    """Have the kernel kill this process when the other end of a pipe is closed, whatever it hangs in.

    PR_SET_PDEATHSIG would not do: it goes by the parent's thread, which may end before.

    Args:
        life: see `begin`.
    """
    fcntl.fcntl(life, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(life, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(life, fcntl.F_SETFL, os.O_ASYNC)
    if select.select([life], [], [], 0)[0]:  # it is closed already
        os._exit(0)


def forget_talk() -> None:
    """Have what is said next overwrite the oldest, when half of the room for it is full."""
    if os.lseek(2, 0, os.SEEK_CUR) > LOG_BYTES // 2:
        os.lseek(2, 0, os.SEEK_SET)


@contextmanager
def _opened(setting: str) -> Iterator[int]:
    """One of the kernel's, to be written; nothing on a disk."""
    descriptor = os.open(setting, os.O_WRONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
