"""Streams of H.264 that encoders here do not make: without what is optional in their parameters."""

from __future__ import annotations

import re

from msgspec.structs import replace

from tests.support.packet_camera import Unit

_HIGH = (100, 110, 122, 244)


def without_order(units: list[Unit]) -> list[Unit]:
    """Leave out of the parameters how many pictures are shown later than they are decoded.

    That is in the usability information (ITU-T H.264, E.1), which many cameras do not send.
    """
    return [replace(one, data=_without_usability(one.data)) for one in units]


def _without_usability(data: bytes) -> bytes:
    parts = re.split(b"(\0\0\1)", data)
    return b"".join(_shortened(one) if one[:1] and one[0] & 0x1F == 7 else one for one in parts)


class _Bits:
    """Reads the fields of a unit."""

    def __init__(self, data: bytes) -> None:
        self.bits, self.at = "".join(f"{one:08b}" for one in data), 0

    def flag(self) -> bool:
        self.at += 1
        return self.bits[self.at - 1] == "1"

    def number(self) -> int:
        """Read an Exp-Golomb number."""
        zeros = self.bits.index("1", self.at) - self.at
        value = int(self.bits[self.at + zeros : self.at + 2 * zeros + 1], 2) - 1
        self.at += 2 * zeros + 1
        return value

    def numbers(self, count: int) -> None:
        for _ in range(count):
            self.number()


def _shortened(unit: bytes) -> bytes:
    """Return an SPS without usability information (ITU-T H.264, 7.3.2.1.1)."""
    content, trailing = unit[1:].replace(b"\0\0\3", b"\0\0"), b"\0" if unit.endswith(b"\0") else b""
    read = _Bits(content)
    read.at = 24
    read.number()
    if content[0] in _HIGH:
        read.numbers(3)
        read.at += 2
    read.number()
    if read.number() == 0:  # the type of the order
        read.number()
    read.number()
    read.at += 1
    read.numbers(2)
    read.at += 1 if read.flag() else 2
    if read.flag():
        read.numbers(4)
    bits = read.bits[: read.at] + "01"
    bits += "0" * (-len(bits) % 8)
    made = bytes(int(bits[at : at + 8], 2) for at in range(0, len(bits), 8))
    return unit[:1] + re.sub(rb"\0\0(?=[\0-\3])", b"\0\0\3", made) + trailing
