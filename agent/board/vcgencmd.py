"""Ask the firmware of a Raspberry Pi through its program `vcgencmd`, which may be missing, slow, or not allowed.

Source: https://www.raspberrypi.com/documentation/computers/os.html#vcgencmd. The program needs `/dev/vcio`, which
only the kernel of Raspberry Pi OS has, and the group `video`.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from agent.backoff import Backoff

log = logging.getLogger(__name__)

DEVICE = "dev/vcio"
"""Below the root of the file system. Without it the program is not started."""
TIMEOUT_S = 2.0
"""The firmware answers within milliseconds; a program that takes longer hangs."""
GET_THROTTLED, READ_PMIC = "get_throttled", "pmic_read_adc"
_PROGRAM = "vcgencmd"
_MOST_BYTES = 65_536
"""Longest answer that is read: as much as a pipe holds."""
_REAP_S = 0.5
"""Longest wait for a killed program to end, s: one that waits for a device cannot be killed."""

Ask = Callable[[str], str]
"""Returns the firmware's answer to a command; empty: there is none."""


def ask_firmware(command: str, *, program: str = _PROGRAM, timeout_s: float = TIMEOUT_S) -> str:
    """Return the firmware's answer to a command; empty: the program is missing, fails, or takes too long."""
    return FirmwareQuery(command, program=program, timeout_s=timeout_s).wait()


def _answer(said: bytes) -> str:
    text = said.decode("utf-8", "replace").strip()
    return "" if text.startswith("error=") else text


def has_firmware(root: Path) -> bool:
    """Return True if the kernel lets programs ask the firmware of a Raspberry Pi."""
    return (root / DEVICE).exists()


class FirmwareQuery:
    """Asks one question again and again without waiting for the answer.

    Each `poll` returns the newest answer and starts the program once more, unless it still runs. A program that
    hangs is killed with what it has started; after three failures in a row it is started only now and then.
    """

    _FAILURES = 3
    _PAUSE_S, _LONGEST_S = 10.0, 300.0

    def __init__(
        self,
        command: str,
        *,
        program: str = _PROGRAM,
        clock: Callable[[], float] = time.monotonic,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        self._arguments, self._clock, self._timeout_s = [program, command], clock, timeout_s
        self._running: subprocess.Popen[bytes] | None = None
        self._is_killed = False
        self._began_s, self._due_s, self._failures, self._answer = 0.0, float("-inf"), 0, ""
        self._pauses = Backoff(self._PAUSE_S, self._LONGEST_S, jitter=0.0)

    def poll(self) -> str:
        """Return the newest answer; empty: there is none yet, or the program did not work the last time."""
        if self._running is not None:
            self._collect(self._running)
        if self._running is None and self._clock() >= self._due_s:
            self._start()
        return self._answer

    def wait(self) -> str:
        """Ask once, and return the answer; empty: there is none within the time limit."""
        self._start()
        while self._running is not None and not self._is_killed:
            time.sleep(0.005)
            self._collect(self._running)
        if self._running is not None:
            with suppress(subprocess.TimeoutExpired):
                self._running.wait(_REAP_S)
        return self._answer

    def _start(self) -> None:
        try:
            self._running = subprocess.Popen(
                self._arguments,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                process_group=0,
            )
        except OSError:
            self._fail()
        else:
            self._began_s, self._is_killed = self._clock(), False

    def _collect(self, running: subprocess.Popen[bytes]) -> None:
        if running.poll() is None:
            if not self._is_killed and self._clock() - self._began_s > self._timeout_s:
                _kill_group(running)
                self._is_killed = True
                self._fail()
            return
        self._running = None
        if self._is_killed:
            return
        answer = _answer(_read_and_close(running))
        if running.returncode == 0 and answer:
            self._succeed(answer)
        else:
            self._fail()

    def _succeed(self, answer: str) -> None:
        if self._failures >= self._FAILURES:
            log.info("%s: works again", " ".join(self._arguments))
        self._answer, self._failures = answer, 0
        self._pauses.reset()

    def _fail(self) -> None:
        self._failures, self._answer = self._failures + 1, ""
        if self._failures >= self._FAILURES:
            self._due_s = self._clock() + self._pauses.next_s()
        if self._failures == self._FAILURES:
            log.info("%s: does not work; it is tried again now and then", " ".join(self._arguments))


def _read_and_close(ended: subprocess.Popen[bytes]) -> bytes:
    """Return what a program that has ended wrote. What it has started, and still holds its pipe, is killed."""
    if ended.stdout is None:
        return b""
    said = b""
    with ended.stdout as pipe, suppress(BlockingIOError):
        os.set_blocking(pipe.fileno(), False)
        said = os.read(pipe.fileno(), _MOST_BYTES)
        if not os.read(pipe.fileno(), 1):
            return said
    _kill_group(ended)
    return said


def _kill_group(leader: subprocess.Popen[bytes]) -> None:
    """Kill a program and what it has started, without waiting; its number stays that of the group until then."""
    if leader.stdout is not None:
        leader.stdout.close()
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(leader.pid, signal.SIGKILL)
