"""Matroska files of JPEG pictures: each picture has its own time, and a file that is cut off can be played.

A camera's pictures are never quite regular, and AVI has one rate for all; an MP4 cannot be played before the
index at its end is written. A Matroska file is a head, clusters of pictures, and at its end cues for jumping. The
head has a fixed length, and is overwritten when the file is complete. All parts are EBML elements: an id, a size
and a body.

Sources: RFC 9559, https://www.rfc-editor.org/rfc/rfc9559, and for `V_MJPEG`
https://www.ietf.org/archive/id/draft-ietf-cellar-codec-14.html; for EBML RFC 8794,
https://www.rfc-editor.org/rfc/rfc8794.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import BinaryIO, NamedTuple

from msgspec import Struct

from agent.types import EncodedFrame

VOID = 0xEC
_UNKNOWN = (1 << 56) - 1
"""Eight-byte size of an element that extends to the end of the file."""


class Element(NamedTuple):
    """Position of an element.

    Attributes:
        id: with its length marker, as in tables of ids.
        begin: offset of its id.
        body: offset of its body.
        end: offset after its body; None: it extends to the end of the file.
    """

    id: int
    begin: int
    body: int
    end: int | None


def element(number: int, body: bytes) -> bytes:
    """Encode an element of known size."""
    return id_bytes(number) + _size(len(body)) + body


def id_bytes(number: int) -> bytes:
    """Encode an id, which begins with its own length marker."""
    return number.to_bytes((number.bit_length() + 7) // 8, "big")


def wide_size(size: int | None) -> bytes:
    """Encode a size in eight bytes, so that it can be overwritten; None: not known yet."""
    return ((1 << 56) | (_UNKNOWN if size is None else size)).to_bytes(8, "big")


def uint(number: int, value: int) -> bytes:
    """Encode an element with an unsigned integer, as short as possible."""
    return element(number, value.to_bytes(max(1, (value.bit_length() + 7) // 8), "big"))


def wide_uint(number: int, value: int) -> bytes:
    """Encode an element with an unsigned integer in eight bytes."""
    return element(number, value.to_bytes(8, "big"))


def text(number: int, value: str) -> bytes:
    """Encode an element with UTF-8; what cannot be encoded becomes a question mark."""
    return element(number, value.encode("utf-8", "replace"))


def void(length: int) -> bytes:
    """Encode a filling element of `length` bytes in all, 2 to 128."""
    return element(VOID, bytes(length - 2))


def _size(size: int) -> bytes:
    # All bits set means an unknown size, so each length holds one less.
    length = next(n for n in range(1, 9) if size < (1 << 7 * n) - 1)
    return ((1 << 7 * length) | size).to_bytes(length, "big")


def read_elements(file: BinaryIO, begin: int, end: int) -> Iterator[Element]:
    """Yield the elements between two offsets, as far as they are whole. The caller may seek meanwhile.

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
    """Decode the header of an element; None: these bytes are none."""
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


EBML, SEGMENT, SEEK_HEAD, INFO, TRACKS = 0x1A45DFA3, 0x18538067, 0x114D9B74, 0x1549A966, 0x1654AE6B
TAGS, CLUSTER, CUES = 0x1254C367, 0x1F43B675, 0x1C53BB6B
DURATION, CLUSTER_TIME, SIMPLE_BLOCK = 0x4489, 0xE7, 0xA3
TAG, TARGETS, SIMPLE_TAG, TAG_NAME, TAG_STRING = 0x7373, 0x63C0, 0x67C8, 0x45A3, 0x4487
VIDEO, TRACK_ENTRY, WIDTH, HEIGHT = 0xE0, 0xAE, 0xB0, 0xBA

BLOCK_HEAD = 4
"""Bytes before the picture in a block: track number, time in the cluster, flags."""
_APP = "Vedette"
EPOCH = datetime(2001, 1, 1, tzinfo=UTC)
"""Dates of the format count from here, in ns."""
_BLOCK_FLAGS = 0x80
"""Every JPEG is a key frame."""


class Cue(NamedTuple):
    """A cluster: time of its first picture, ms, and offset in the file."""

    at_ms: int
    offset: int


class Totals(Struct, frozen=True):
    """Totals of a complete file.

    Attributes:
        duration_ms: from the first picture to the end of the last.
        pictures: number of pictures.
        cues_at: offset of the cues.
        size: of the whole file, bytes.
    """

    duration_ms: float
    pictures: int
    cues_at: int
    size: int


def head(
    width: int, height: int, began_at: datetime, tags: dict[str, str], totals: Totals | None = None
) -> bytes:
    """Encode the head of a file, of the same length with and without totals.

    Args:
        width: of the pictures, px.
        height: of the pictures, px.
        began_at: UTC of the first picture.
        tags: values by name in capitals.
        totals: of a complete file; None: not complete yet.
    """
    info = _info(began_at, totals)
    tracks = _tracks(width, height, totals)
    tag_part = _tags(tags)
    fixed = {INFO: info, TRACKS: tracks, TAGS: tag_part}
    offset, seeks = _seek_length(), b""
    for number, part in fixed.items():
        seeks += _seek(number, offset)
        offset += len(part)
    seeks += _seek(CUES, totals.cues_at - _segment_at()) if totals else void(len(_seek(CUES, 0)))
    segment = id_bytes(SEGMENT) + wide_size(totals.size - _segment_at() if totals else None)
    return _ebml() + segment + element(SEEK_HEAD, seeks) + info + tracks + tag_part


def cluster(pictures: Sequence[EncodedFrame], first_ns: int) -> bytes:
    """Encode pictures as a cluster of a file that begins at `first_ns`. They span 32767 ms at most (16 bits)."""
    begin = milliseconds(pictures[0].captured_ns - first_ns)
    blocks = [uint(CLUSTER_TIME, begin)]
    for picture in pictures:
        at = milliseconds(picture.captured_ns - first_ns) - begin
        blocks.append(element(SIMPLE_BLOCK, struct.pack(">BhB", 0x81, at, _BLOCK_FLAGS) + picture.jpeg))
    return element(CLUSTER, b"".join(blocks))


def cues(found: Sequence[Cue]) -> bytes:
    """Encode the end of a file: the offset of each cluster, so that players can jump."""
    points = b"".join(
        element(
            0xBB, uint(0xB3, cue.at_ms) + element(0xB7, uint(0xF7, 1) + uint(0xF1, cue.offset - _segment_at()))
        )
        for cue in found
    )
    return element(CUES, points)


def milliseconds(ns: int) -> int:
    """Convert ns to the file's unit of time."""
    return round(ns / 1e6)


def _ebml() -> bytes:
    return element(
        EBML,
        uint(0x4286, 1)  # EBMLVersion
        + uint(0x42F7, 1)  # EBMLReadVersion
        + uint(0x42F2, 4)  # EBMLMaxIDLength
        + uint(0x42F3, 8)  # EBMLMaxSizeLength
        + text(0x4282, "matroska")  # DocType
        + uint(0x4287, 4)  # DocTypeVersion
        + uint(0x4285, 2),  # DocTypeReadVersion
    )


_SEGMENT_HEAD = 12
"""Bytes of the segment's id and size."""


def _segment_at() -> int:
    """Return the offset of the segment's body, from which positions in it count."""
    return len(_ebml()) + _SEGMENT_HEAD


def _seek(number: int, position: int) -> bytes:
    """Encode where a part of the segment begins."""
    return element(0x4DBB, element(0x53AB, id_bytes(number)) + wide_uint(0x53AC, position))


def _seek_length() -> int:
    return len(element(SEEK_HEAD, _seek(INFO, 0) * 4))


def _info(began_at: datetime, totals: Totals | None) -> bytes:
    since = round((began_at - EPOCH).total_seconds() * 1e9)
    duration = element(DURATION, struct.pack(">d", totals.duration_ms if totals else 0.0))
    return element(
        INFO,
        uint(0x2AD7B1, 1_000_000)  # TimestampScale: ns in a unit of time
        + text(0x4D80, _APP)  # MuxingApp
        + text(0x5741, _APP)  # WritingApp
        + element(0x4461, struct.pack(">q", since))  # DateUTC
        + (duration if totals else void(len(duration))),
    )


def _tracks(width: int, height: int, totals: Totals | None) -> bytes:
    mean_ns = round(totals.duration_ms * 1e6 / totals.pictures) if totals else 0
    every = wide_uint(0x23E383, mean_ns)  # DefaultDuration: a hint only, each picture has its time
    return element(
        TRACKS,
        element(
            TRACK_ENTRY,
            uint(0xD7, 1)  # TrackNumber
            + uint(0x73C5, 1)  # TrackUID
            + uint(0x83, 1)  # TrackType: video
            + uint(0x9C, 0)  # FlagLacing
            + (every if mean_ns else void(len(every)))
            + text(0x86, "V_MJPEG")  # CodecID
            + element(VIDEO, uint(0x9A, 2) + wide_uint(WIDTH, width) + wide_uint(HEIGHT, height)),
        ),
    )


def _tags(tags: dict[str, str]) -> bytes:
    simple = b"".join(
        element(SIMPLE_TAG, text(TAG_NAME, name) + text(TAG_STRING, value)) for name, value in tags.items()
    )
    return element(TAGS, element(TAG, element(TARGETS, b"") + simple))
