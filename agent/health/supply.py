"""Whether a Raspberry Pi gets enough power, as its firmware tells the kernel: nothing needs `vcgencmd`.

Sources: https://www.raspberrypi.com/documentation/computers/os.html#vcgencmd (the bits of `get_throttled`),
https://docs.kernel.org/hwmon/raspberrypi-hwmon.html. The file `get_throttled` holds the bits in hexadecimal; it
is of drivers/firmware/raspberrypi.c of raspberrypi/linux, and not in the upstream kernel.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from msgspec import Struct

from agent.health.files import read_number, read_text

UNDER_VOLTAGE = "under-voltage"
_BITS = (UNDER_VOLTAGE, "the frequency is capped", "throttled", "the soft temperature limit is reached")
_EVER = 16
"""The same bits again from here on: it has happened."""
_FIRMWARE = "sys/devices/platform/soc*/*firmware*/get_throttled"
"""`soc/soc:firmware` up to a Pi 4; with addresses on a Pi 5."""


class Supply(Struct, frozen=True):
    """What the firmware complains of.

    Attributes:
        now: at present. before: earlier, since the board has started.
    """

    now: tuple[str, ...] = ()
    before: tuple[str, ...] = ()


def read_supply(root: Path = Path("/")) -> Supply | None:
    """What the firmware says; None where the kernel does not pass it on, as on every other board.

    Args:
        root: of the file system.
    """
    for path in sorted(root.glob(_FIRMWARE)):
        bits = read_number(path, 16)
        if bits is not None:
            return told(bits)
    for alarm in _alarms(root):
        return Supply((UNDER_VOLTAGE,) if alarm else ())
    return None


def told(bits: int) -> Supply:
    """What the bits of `get_throttled` say; others than the eight that are known are left out."""
    now = tuple(what for bit, what in enumerate(_BITS) if bits >> bit & 1)
    ever = tuple(what for bit, what in enumerate(_BITS) if bits >> bit + _EVER & 1)
    return Supply(now, tuple(what for what in ever if what not in now))


def _alarms(root: Path) -> Iterator[int]:
    """Of the upstream driver: whether the voltage was too low in the last two seconds."""
    for path in sorted(root.glob("sys/class/hwmon/hwmon*")):
        alarm = read_number(path / "in0_lcrit_alarm")
        if read_text(path / "name") == "rpi_volt" and alarm is not None:
            yield alarm
