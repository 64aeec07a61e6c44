"""Ask the firmware of a Raspberry Pi through its program `vcgencmd`, which may be missing, slow, or not allowed.

Source: https://www.raspberrypi.com/documentation/computers/os.html#vcgencmd. The program needs `/dev/vcio`, which
only the kernel of Raspberry Pi OS has, and the group `video`.
"""

from __future__ import annotations

import logging
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

log = logging.getLogger(__name__)

DEVICE = "dev/vcio"
"""Below the root of the file system. Without it the program is not started."""
TIMEOUT_S = 2.0
"""The firmware answers within milliseconds; a program that takes longer hangs."""
GET_THROTTLED, READ_PMIC = "get_throttled", "pmic_read_adc"
_PROGRAM = "vcgencmd"

Ask = Callable[[str], str]
"""Returns the firmware's answer to a command; empty: there is none."""


def ask_firmware(command: str, *, program: str = _PROGRAM, timeout_s: float = TIMEOUT_S) -> str:
    """Return the firmware's answer to a command; empty: the program is missing, fails, or takes too long."""
    try:
        done = subprocess.run(
            [program, command], capture_output=True, timeout=timeout_s, check=False, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return _answer(done.stdout) if done.returncode == 0 else ""


def _answer(said: bytes) -> str:
    text = said.decode("utf-8", "replace").strip()
    return "" if text.startswith("error=") else text


def has_firmware(root: Path) -> bool:
    """Return True if the kernel lets programs ask the firmware of a Raspberry Pi."""
    return (root / DEVICE).exists()


class FirmwareQuery:
    """Asks one question again and again without waiting for the answer.

    Each `poll` returns the newest answer and starts the program once more, unless it still runs. A program that
    hangs is killed; one that fails three times in a row is not started again.
    """

    _FAILURES = 3

    def __init__(
        self, command: str, *, program: str = _PROGRAM, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._arguments, self._clock = [program, command], clock
        self._running: subprocess.Popen[bytes] | None = None
        self._began_s, self._failures, self._answer = 0.0, 0, ""

    def poll(self) -> str:
        """Return the newest answer; empty: there is none yet, or the program does not work."""
        if self._running is not None:
            self._collect(self._running)
        if self._running is None and self._failures < self._FAILURES:
            self._start()
        return self._answer

    def _start(self) -> None:
        try:
            self._running = subprocess.Popen(
                self._arguments,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
            self._began_s = self._clock()
        except OSError:
            self._fail()

    def _collect(self, running: subprocess.Popen[bytes]) -> None:
        if running.poll() is None:
            if self._clock() - self._began_s > TIMEOUT_S:
                self._kill(running)
                self._fail()
            return
        said = running.stdout.read() if running.stdout else b""
        self._close(running)
        if running.returncode == 0 and (answer := _answer(said)):
            self._answer, self._failures = answer, 0
        else:
            self._fail()

    def _kill(self, running: subprocess.Popen[bytes]) -> None:
        running.kill()
        running.wait()
        self._close(running)

    def _close(self, running: subprocess.Popen[bytes]) -> None:
        if running.stdout:
            running.stdout.close()
        self._running = None

    def _fail(self) -> None:
        self._failures, self._answer = self._failures + 1, ""
        if self._failures == self._FAILURES:
            log.info("%s: does not work; not asked again", " ".join(self._arguments))
