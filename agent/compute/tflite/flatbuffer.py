"""Reads untrusted FlatBuffers: every offset is checked, and the work is bounded.

The `flatbuffers` package's own reader trusts the file, and generated classes for the TFLite schema cost 150 ms to
import or a further dependency; the layout itself is small. The caller knows the slot numbers.
Source: https://flatbuffers.dev/internals/
"""

from __future__ import annotations

import struct

import numpy as np
from numpy.typing import NDArray

from agent.errors import ModelError

_WORK = 500_000
"""Most tables, vectors and strings read from one file: offsets may share targets, so that a small hostile file
could describe a huge tree. The largest models in use have some 100,000."""
_GRAIN = 256
"""Bytes of a vector or string that cost one more unit of work."""
_U8, _I8, _U16, _I32, _U32, _U64 = (struct.Struct(f"<{code}") for code in "BbHiIQ")


class ByteSource:
    """The bytes of a file, and the remaining units of work."""

    def __init__(self, content: bytes | memoryview, what: str) -> None:
        self.content = memoryview(content)
        self.what = what
        self._work = _WORK

    def unpack(self, form: struct.Struct, at: int) -> int:
        """Return the number at a byte position. Raises ModelError if it lies outside the file."""
        self.check(at, form.size)
        value: int = form.unpack_from(self.content, at)[0]
        return value

    def slice(self, at: int, size: int) -> memoryview:
        """Return `size` bytes. Raises ModelError if some lie outside the file, or it needs too much work."""
        self.check(at, size)
        self.spend(size // _GRAIN)
        return self.content[at : at + size]

    def check(self, at: int, size: int) -> None:
        """Check that `size` bytes exist. Raises ModelError if some lie outside the file."""
        if not 0 <= at <= len(self.content) - size:
            raise self.outside(at + size)

    def follow(self, at: int) -> int:
        """Return the target of the offset at a byte position."""
        return at + self.unpack(_U32, at)

    def spend(self, extra: int = 0) -> None:
        """Spend one unit of work and `extra` more. Raises ModelError if none is left."""
        self._work -= 1 + extra
        if self._work < 0:
            raise ModelError(f"{self.what} describes more than it can hold: it is damaged or hostile")

    def outside(self, at: int) -> ModelError:
        """Return the error for a byte position that does not exist."""
        size = len(self.content)
        return ModelError(f"{self.what} is truncated or damaged: invalid offset {at}; it has {size} bytes")

    def root(self) -> FlatTable:
        """Return the root table."""
        return FlatTable(self, self.follow(0))


class FlatTable:
    """One table. Its methods raise `ModelError` if the file is damaged; an absent field has a default."""

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
        """Return the byte position of a field; 0 if absent."""
        if slot >= self._slots:
            return 0
        offset = self._source.unpack(_U16, self._vtable + 4 + 2 * slot)
        return self._at + offset if offset else 0

    def _scalar(self, slot: int, form: struct.Struct, default: int) -> int:
        at = self.position(slot)
        return self._source.unpack(form, at) if at else default

    def u8(self, slot: int) -> int:
        """Read an unsigned byte, 0 by default."""
        return self._scalar(slot, _U8, 0)

    def i8(self, slot: int) -> int:
        """Read a signed byte, 0 by default."""
        return self._scalar(slot, _I8, 0)

    def i32(self, slot: int, default: int = 0) -> int:
        """Read a signed 32-bit number."""
        return self._scalar(slot, _I32, default)

    def u32(self, slot: int) -> int:
        """Read an unsigned 32-bit number, 0 by default."""
        return self._scalar(slot, _U32, 0)

    def u64(self, slot: int) -> int:
        """Read an unsigned 64-bit number, 0 by default."""
        return self._scalar(slot, _U64, 0)

    def f32(self, slot: int) -> float | None:
        """Read a 32-bit float, None if absent."""
        at = self.position(slot)
        return float(np.frombuffer(self._source.slice(at, 4), "<f4")[0]) if at else None

    def string(self, slot: int) -> str:
        """Read text, empty by default; bytes that are not UTF-8 are replaced."""
        return bytes(self.data(slot)).decode("utf-8", "replace")

    def data(self, slot: int) -> memoryview:
        """Read a vector of bytes, empty by default."""
        at, count = self.vector(slot)
        return self._source.slice(at, count)

    def length(self, slot: int) -> int:
        """Return the length of a vector of bytes after checking that it exists; 0 by default."""
        at, count = self.vector(slot)
        self._source.check(at, count)
        return count

    def array(self, slot: int, dtype: str) -> NDArray[np.generic]:
        """Read a vector of numbers of a little-endian dtype such as `<i4`; empty by default."""
        at, count = self.vector(slot)
        kind = np.dtype(dtype)
        return np.frombuffer(self._source.slice(at, count * kind.itemsize), kind)

    def table(self, slot: int) -> FlatTable | None:
        """Read a table, None if absent."""
        at = self.position(slot)
        return FlatTable(self._source, self._source.follow(at)) if at else None

    def tables(self, slot: int) -> list[FlatTable]:
        """Read a vector of tables, empty by default."""
        at, count = self.vector(slot)
        self._source.slice(at, 4 * count)
        return [FlatTable(self._source, self._source.follow(at + 4 * i)) for i in range(count)]

    def vector(self, slot: int) -> tuple[int, int]:
        """Return byte position and number of elements of a vector; zeros if absent."""
        at = self.position(slot)
        if not at:
            return 0, 0
        self._source.spend()
        start = self._source.follow(at)
        return start + 4, self._source.unpack(_U32, start)
