"""Reads FlatBuffers that nobody vouches for: every offset is checked, and work is bounded.

The `flatbuffers` package's own reader trusts the file, and generated classes for the TFLite schema cost 150 ms to
import or a further dependency; the layout itself is small. Slot numbers are the caller's knowledge.
Source: https://flatbuffers.dev/internals/
"""

from __future__ import annotations

import struct

import numpy as np
from numpy.typing import NDArray

from agent.errors import ModelError

_WORK = 500_000
"""Tables, vectors and strings read from one file at most: offsets may share targets, so that a small hostile file
could describe a huge tree. The largest models in use have some 100,000."""
_GRAIN = 256
"""Bytes of a vector or string that cost one more unit of work."""

_U8, _I8, _U16, _I32, _U32, _U64 = (struct.Struct(f"<{code}") for code in "BbHiIQ")


class ByteSource:
    """The bytes, and the work that is left to be spent on them."""

    def __init__(self, content: bytes | memoryview, what: str) -> None:
        self.content = memoryview(content)
        self.what = what
        self._work = _WORK

    def unpack(self, form: struct.Struct, at: int) -> int:
        """One number at a byte position.

        Raises:
            ModelError: it lies outside of the file.
        """
        self.check(at, form.size)
        value: int = form.unpack_from(self.content, at)[0]
        return value

    def slice(self, at: int, size: int) -> memoryview:
        """`size` bytes from a byte position.

        Raises:
            ModelError: some lie outside of the file, or the file asks for too much work.
        """
        self.check(at, size)
        self.spend(size // _GRAIN)
        return self.content[at : at + size]

    def check(self, at: int, size: int) -> None:
        """That `size` bytes from a byte position are there.

        Raises:
            ModelError: some lie outside of the file.
        """
        if not 0 <= at <= len(self.content) - size:
            raise self.outside(at + size)

    def follow(self, at: int) -> int:
        """Where the offset at a byte position points to."""
        return at + self.unpack(_U32, at)

    def spend(self, extra: int = 0) -> None:
        """Take one unit of work and `extra` more."""
        self._work -= 1 + extra
        if self._work < 0:
            raise ModelError(f"{self.what} describes more than it can hold: it is damaged or hostile")

    def outside(self, at: int) -> ModelError:
        """The error for a byte position that does not exist."""
        size = len(self.content)
        return ModelError(f"{self.what} is truncated or damaged: it points to byte {at}, but has {size}")

    def root(self) -> FlatTable:
        """The root table."""
        return FlatTable(self, self.follow(0))


class FlatTable:
    """One table. Its methods raise `ModelError` where the file is broken; an absent field has a default."""

    __slots__ = ("_at", "_slots", "_source", "_vtable")

    def __init__(self, source: ByteSource, at: int) -> None:
        source.spend()
        self._source = source
        self._at = at
        self._vtable = at - source.unpack(_I32, at)
        size = source.unpack(_U16, self._vtable)
        if size < 4 or self._vtable + size > len(source.content):
            raise source.outside(self._vtable + size)
        self._slots = (size - 4) // 2

    def position(self, slot: int) -> int:
        """Byte position of a field; 0 when absent."""
        if slot >= self._slots:
            return 0
        offset = self._source.unpack(_U16, self._vtable + 4 + 2 * slot)
        return self._at + offset if offset else 0

    def _scalar(self, slot: int, form: struct.Struct, default: int) -> int:
        at = self.position(slot)
        return self._source.unpack(form, at) if at else default

    def u8(self, slot: int) -> int:
        """Unsigned byte, 0 by default."""
        return self._scalar(slot, _U8, 0)

    def i8(self, slot: int) -> int:
        """Signed byte, 0 by default."""
        return self._scalar(slot, _I8, 0)

    def i32(self, slot: int, default: int = 0) -> int:
        """Signed 32-bit number."""
        return self._scalar(slot, _I32, default)

    def u32(self, slot: int) -> int:
        """Unsigned 32-bit number, 0 by default."""
        return self._scalar(slot, _U32, 0)

    def u64(self, slot: int) -> int:
        """Unsigned 64-bit number, 0 by default."""
        return self._scalar(slot, _U64, 0)

    def f32(self, slot: int) -> float | None:
        """32-bit float, None when absent."""
        at = self.position(slot)
        return float(np.frombuffer(self._source.slice(at, 4), "<f4")[0]) if at else None

    def string(self, slot: int) -> str:
        """Text, empty by default; bytes that are not UTF-8 are replaced."""
        return bytes(self.data(slot)).decode("utf-8", "replace")

    def data(self, slot: int) -> memoryview:
        """A vector of bytes, empty by default."""
        at, count = self.vector(slot)
        return self._source.slice(at, count)

    def length(self, slot: int) -> int:
        """Number of bytes of a vector of bytes, all of them there; 0 by default."""
        at, count = self.vector(slot)
        self._source.check(at, count)
        return count

    def array(self, slot: int, dtype: str) -> NDArray[np.generic]:
        """A vector of numbers as an array, empty by default.

        Args:
            slot: of the vector.
            dtype: little-endian numpy name, such as `<i4`.
        """
        at, count = self.vector(slot)
        kind = np.dtype(dtype)
        return np.frombuffer(self._source.slice(at, count * kind.itemsize), kind)

    def table(self, slot: int) -> FlatTable | None:
        """A table, None when absent."""
        at = self.position(slot)
        return FlatTable(self._source, self._source.follow(at)) if at else None

    def tables(self, slot: int) -> list[FlatTable]:
        """A vector of tables, empty by default."""
        at, count = self.vector(slot)
        self._source.slice(at, 4 * count)
        return [FlatTable(self._source, self._source.follow(at + 4 * i)) for i in range(count)]

    def vector(self, slot: int) -> tuple[int, int]:
        """Byte position and number of elements."""
        at = self.position(slot)
        if not at:
            return 0, 0
        self._source.spend()
        start = self._source.follow(at)
        return start + 4, self._source.unpack(_U32, start)
