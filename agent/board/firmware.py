"""The firmware of a Raspberry Pi: what it answers, and its warnings of power and heat.

Sources: https://www.raspberrypi.com/documentation/computers/os.html#vcgencmd (the bits of `get_throttled`), and
https://docs.kernel.org/hwmon/raspberrypi-hwmon.html. The file `get_throttled` is of
drivers/firmware/raspberrypi.c in raspberrypi/linux, and not in the upstream kernel. The program `vcgencmd` needs
`/dev/vcio`, which only the kernel of Raspberry Pi OS has, and the group `video`.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from msgspec import Struct

from agent.backoff import Backoff
from agent.board.proc import read_number, read_text

DEVICE = "dev/vcio"
"""Below the root of the file system. Without it the program is not started."""
TIMEOUT_S = 2.0
"""The firmware answers within milliseconds; a program that takes longer hangs."""
GET_THROTTLED, READ_PMIC = "get_throttled", "pmic_read_adc"
_PROGRAM = "vcgencmd"
_REAP_S = 0.5
"""Longest wait for a killed program to end, s: one that waits for a device cannot be killed."""
_FIRST_S, _LONGEST_S = 10.0, 300.0
"""Pause after a program that failed, and the longest, s."""
Ask = Callable[[str], str]
"""Returns the firmware's answer to a command; empty: there is none."""


def ask_firmware(command: str, *, program: str = _PROGRAM, timeout_s: float = TIMEOUT_S) -> str:
    """Return the firmware's answer to a command; empty: the program is missing, fails, or takes too long."""
    try:
        process = subprocess.Popen(
            [program, command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            process_group=0,
        )
    except OSError:
        return ""
    try:
        said, _ = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        said = b""
    finally:
        with suppress(ProcessLookupError, PermissionError):  # with what it has started
            os.killpg(process.pid, signal.SIGKILL)
        with suppress(subprocess.TimeoutExpired):
            process.wait(_REAP_S)
    answer = said.decode("utf-8", "replace").strip()
    return "" if process.returncode != 0 or answer.startswith("error=") else answer


class Firmware:
    """Asks the firmware what files do not say. A program that fails is started again after a growing pause.

    For one thread.
    """

    def __init__(
        self,
        root: Path = Path("/"),
        ask: Ask = ask_firmware,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.commands = frozenset(firmware_commands(root))
        self._ask, self._clock, self._due_s = ask, clock, float("-inf")
        self._pauses = Backoff(_FIRST_S, _LONGEST_S, jitter=0.0)

    def ask(self, command: str) -> str:
        """Return the answer to a command; empty: there is none, or it is not asked now."""
        if command not in self.commands or self._clock() < self._due_s:
            return ""
        if answer := self._ask(command):
            self._pauses.reset()
        else:
            self._due_s = self._clock() + self._pauses.next_s()
        return answer


def has_firmware(root: Path) -> bool:
    """Return True if the kernel lets programs ask the firmware of a Raspberry Pi."""
    return (root / DEVICE).exists()


UNDER_VOLTAGE, THROTTLING = "under-voltage", "throttled"
_BITS = (UNDER_VOLTAGE, "the frequency is capped", THROTTLING, "the soft temperature limit is reached")
_EVER = 16
"""Shift of the bits for what has happened since the board started."""
FIRMWARE = "sys/devices/platform/soc*/*firmware*/get_throttled"
"""`soc/soc:firmware` up to a Pi 4; with addresses on a Pi 5."""


class Supply(Struct, frozen=True):
    """Warnings of a Raspberry Pi's firmware about power and throttling: now, and earlier since the start."""

    now: tuple[str, ...] = ()
    before: tuple[str, ...] = ()


def read_supply(root: Path = Path("/"), ask: Ask = lambda _: "") -> Supply | None:
    """Read the firmware's warnings; None on boards but a Raspberry Pi.

    Args:
        root: of the file system.
        ask: asks the firmware where the kernel has no file with its warnings; default: nobody does.
    """
    for path in sorted(root.glob(FIRMWARE)):
        bits = read_number(path, 16)
        if bits is not None:
            return decode_throttled(bits)
    if answer := re.fullmatch(r"throttled=0x([0-9a-fA-F]{1,8})", ask(GET_THROTTLED)):
        return decode_throttled(int(answer[1], 16))
    for alarm in _alarms(root):
        return Supply((UNDER_VOLTAGE,) if alarm else ())
    return None


def decode_throttled(bits: int) -> Supply:
    """Decode the bits of `get_throttled`; unknown bits are ignored."""
    now = tuple(what for bit, what in enumerate(_BITS) if bits >> bit & 1)
    ever = tuple(what for bit, what in enumerate(_BITS) if bits >> bit + _EVER & 1)
    return Supply(now, tuple(what for what in ever if what not in now))


def _alarms(root: Path) -> Iterator[int]:
    """Read the upstream driver's alarms: nonzero if the voltage was too low in the last two seconds."""
    for path in sorted(root.glob("sys/class/hwmon/hwmon*")):
        alarm = read_number(path / "in0_lcrit_alarm")
        if read_text(path / "name") == "rpi_volt" and alarm is not None:
            yield alarm


def firmware_commands(root: Path) -> Iterator[str]:
    """Yield the commands that are worth asking the firmware, where files do not tell."""
    if not has_firmware(root):
        return
    if not any(root.glob(FIRMWARE)):
        yield GET_THROTTLED
    if "bcm2712" in read_text(root / "proc/device-tree/compatible"):
        yield READ_PMIC
