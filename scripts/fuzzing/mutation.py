"""Inputs made of inputs: bytes changed, cut out, doubled, put in, and halves of two joined. No I/O."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

_SPECIAL = (0, 1, 9, 10, 32, 34, 39, 91, 92, 93, 123, 125, 127, 128, 254, 255)
_NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


class Mutator:
    """Makes new inputs of given ones."""

    def __init__(self, seeds: Sequence[bytes], tokens: Sequence[bytes], chance: random.Random) -> None:
        self._seeds, self._tokens, self._chance = list(seeds) or [b""], list(tokens) or [b"\0"], chance
        self._ways: list[Callable[[bytearray], None]] = [
            self._flip,
            self._set,
            self._number,
            self._insert,
            self._token,
            self._cut,
            self._double,
            self._join,
        ]

    def next(self) -> bytes:
        """An input that is one of the given ones, changed in one to eight ways."""
        data = bytearray(self._chance.choice(self._seeds))
        for _ in range(1 << self._chance.randrange(4)):
            self._chance.choice(self._ways)(data)
        return bytes(data)

    def _at(self, data: bytearray) -> int:
        return self._chance.randrange(len(data)) if data else 0

    def _flip(self, data: bytearray) -> None:
        if data:
            data[self._at(data)] ^= 1 << self._chance.randrange(8)

    def _set(self, data: bytearray) -> None:
        if data:
            data[self._at(data)] = self._chance.choice(_SPECIAL)

    def _number(self, data: bytearray) -> None:
        """A number at the edge of its range, as files have them."""
        at, size = self._at(data), self._chance.choice((1, 2, 4))
        number = self._chance.choice(_NUMBERS) & ((1 << 8 * size) - 1)
        data[at : at + size] = number.to_bytes(size, self._chance.choice(("little", "big")))

    def _insert(self, data: bytearray) -> None:
        at = self._at(data)
        data[at:at] = self._chance.randbytes(self._chance.randrange(1, 9))

    def _token(self, data: bytearray) -> None:
        at = self._at(data)
        data[at:at] = self._chance.choice(self._tokens) * self._chance.choice((1, 1, 1, 2, 5000))

    def _cut(self, data: bytearray) -> None:
        at = self._at(data)
        del data[at : at + self._chance.choice((1, 2, 8, 64, len(data)))]

    def _double(self, data: bytearray) -> None:
        at, size = self._at(data), self._chance.choice((1, 4, 32, 256))
        data[at:at] = data[at : at + size]

    def _join(self, data: bytearray) -> None:
        other = self._chance.choice(self._seeds)
        data[self._at(data) :] = other[self._chance.randrange(len(other) + 1) :]
