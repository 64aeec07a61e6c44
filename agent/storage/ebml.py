"""EBML, the binary form of Matroska: elements of an id, a size and a body, written and read.

Source: RFC 8794, https://www.rfc-editor.org/rfc/rfc8794.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

VOID = 0xEC
_UNKNOWN = (1 << 56) - 1
"""Of a size of eight bytes: the element goes on to the end of the file."""


class Element(NamedTuple):
    """Where an element lies.

    Attributes:
        id: with its length marker, as tables of ids give it.
        begin: offset of its id.
        body: offset of its body.
        end: offset after its body; None: it has no size, and goes on to the end.
    """

    id: int
    begin: int
    body: int
    end: int | None


def element(number: int, body: bytes) -> bytes:
    """An element of known size."""
    return id_bytes(number) + _size(len(body)) + body


def id_bytes(number: int) -> bytes:
    """An id as it is written: it begins with its own length marker."""
    return number.to_bytes((number.bit_length() + 7) // 8, "big")


def wide_size(size: int | None) -> bytes:
    """A size in eight bytes, so that another can be written over it; None: not known yet."""
    return ((1 << 56) | (_UNKNOWN if size is None else size)).to_bytes(8, "big")


def uint(number: int, value: int) -> bytes:
    """An element with an unsigned integer, as short as it can be."""
    return element(number, value.to_bytes(max(1, (value.bit_length() + 7) // 8), "big"))


def wide_uint(number: int, value: int) -> bytes:
    """An element with an unsigned integer in eight bytes."""
    return element(number, value.to_bytes(8, "big"))


def text(number: int, value: str) -> bytes:
    """An element with UTF-8; what cannot be encoded becomes a question mark."""
    return element(number, value.encode("utf-8", "replace"))


def void(length: int) -> bytes:
    """An element without meaning, of so many bytes in all; 2 to 128."""
    return element(VOID, bytes(length - 2))


def _size(size: int) -> bytes:
    # All bits set means an unknown size, so each length holds one less.
    length = next(n for n in range(1, 9) if size < (1 << 7 * n) - 1)
    return ((1 << 7 * length) | size).to_bytes(length, "big")


def read_elements(file: BinaryIO, begin: int, end: int) -> Iterator[Element]:
    """The elements between two offsets, as far as they are whole; the file may be moved meanwhile.

    Raises:
        OSError: the file cannot be read.
    """
    while begin < end:
        file.seek(begin)
        found = _read_header(file.read(12), begin)
        if found is None or found.body > end or (found.end is not None and found.end > end):
            return
        yield found
        if found.end is None:
            return
        begin = found.end


def _read_header(data: bytes, begin: int) -> Element | None:
    """The element whose first bytes these are; None: they are none's."""
    if not data or data[0] < 0x10:
        return None
    id_length = 9 - data[0].bit_length()
    if len(data) <= id_length or data[id_length] == 0:
        return None
    size_length = 9 - data[id_length].bit_length()
    body = id_length + size_length
    if len(data) < body:
        return None
    size = int.from_bytes(data[id_length:body], "big") & ((1 << 7 * size_length) - 1)
    unknown = size == (1 << 7 * size_length) - 1
    number = int.from_bytes(data[:id_length], "big")
    return Element(number, begin, begin + body, None if unknown else begin + body + size)
