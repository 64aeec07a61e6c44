"""Reading clips: what one says about itself, and how much of one that was cut off can be played."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import BinaryIO

import msgspec
from msgspec import Struct

from agent.clips import Occasion
from agent.errors import StorageError, reason_of
from agent.storage import matroska as mkv
from agent.storage.ebml import Element, read_elements

TAG = "VEDETTE"
"""Name of the tag that holds the occasion, as JSON."""
_MAX_CLUSTER = 256 * 1024 * 1024
"""Bytes: a cluster that claims more is not ours."""
_MAX_MS = 86400_000
"""A clip is shorter than this."""
_MAX_SIDE = 65535
"""Pixels: no JPEG is larger."""
_DATE = 0x4461
_EPOCH = datetime(2001, 1, 1, tzinfo=UTC)


class Label(Struct, frozen=True):
    """What a clip says about itself in its head.

    Attributes:
        occasion: why it was made.
        width, height: of its pictures, px.
        began_at: UTC of its first picture.
        duration_s: None: it was not completed.
        head_bytes: length of the head.
    """

    occasion: Occasion
    width: int
    height: int
    began_at: datetime
    duration_s: float | None
    head_bytes: int


class Rest(Struct, frozen=True):
    """What can be played of a clip.

    Attributes:
        cues: of its whole clusters.
        end: offset after them.
        frames: pictures in them.
        last_ms: time of the last of these.
    """

    cues: tuple[mkv.Cue, ...]
    end: int
    frames: int
    last_ms: int


def read_label(path: Path) -> Label:
    """What a file says about itself.

    Raises:
        StorageError: it cannot be read, or is no clip of Vedette's.
    """
    try:
        with path.open("rb") as file:
            return label_of(file)
    except OSError as error:
        raise StorageError(f"{path}: cannot be read: {reason_of(error)}") from error
    except ValueError as error:
        raise StorageError(f"{path}: is no clip of Vedette's, or {error}") from error


def label_of(file: BinaryIO) -> Label:
    """What an open file says about itself.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not ours, or damaged.
    """
    try:
        return _label(file)
    except (ValueError, KeyError, OverflowError, struct.error, msgspec.MsgspecError) as error:
        raise ValueError("its head is damaged") from error


def _label(file: BinaryIO) -> Label:
    parts = {part.id: part for part in _parts(file) if part.id != mkv.CLUSTER}
    info = _values(file, parts[mkv.INFO])
    (entry,) = _children(file, parts[mkv.TRACKS])
    (video,) = (part for part in _children(file, entry) if part.id == mkv.VIDEO)
    size = _values(file, video)
    duration = info.get(mkv.DURATION)
    width, height = (int.from_bytes(size[number], "big") for number in (mkv.WIDTH, mkv.HEIGHT))
    if not (0 < width <= _MAX_SIDE and 0 < height <= _MAX_SIDE and len(info[_DATE]) == 8):
        raise ValueError(f"{width}x{height}, {len(info[_DATE])} bytes of date")
    return Label(
        msgspec.json.decode(_tags(file, parts[mkv.TAGS])[TAG], type=Occasion),
        width,
        height,
        _EPOCH + timedelta(microseconds=int.from_bytes(info[_DATE], "big", signed=True) / 1e3),
        round(struct.unpack(">d", duration)[0] / 1e3, 3) if duration else None,
        parts[mkv.TAGS].end or 0,
    )


def rest_of(file: BinaryIO, begin: int) -> Rest:
    """How much can be played: clusters from an offset on, up to the first that is not whole.

    A power cut may leave zeros where data was on its way, so each picture must begin and end like a JPEG.
    """
    cues, end, frames, last_ms = list[mkv.Cue](), begin, 0, 0
    for part in read_elements(file, begin, _length(file)):
        if part.id != mkv.CLUSTER or part.end is None or part.end - part.body > _MAX_CLUSTER:
            break
        times = _times(file, part)
        if times is None or times != sorted(times) or not last_ms <= times[0] <= times[-1] < _MAX_MS:
            break
        cues.append(mkv.Cue(times[0], part.begin))
        end, frames, last_ms = part.end, frames + len(times), times[-1]
    return Rest(tuple(cues), end, frames, last_ms)


def _times(file: BinaryIO, cluster: Element) -> list[int] | None:
    """Times of a cluster's pictures, ms; None: it is damaged."""
    base, times, end = 0, list[int](), cluster.body
    for part in _children(file, cluster):
        body = _body(file, part)
        if part.id == mkv.CLUSTER_TIME:
            base = int.from_bytes(body, "big")
        elif part.id == mkv.SIMPLE_BLOCK and _is_jpeg(body[mkv.BLOCK_HEAD :]):
            times.append(base + int(struct.unpack(">h", body[1:3])[0]))
        else:
            return None
        end = part.end or 0
    return times if times and end == cluster.end else None


def _is_jpeg(data: bytes) -> bool:
    return data.startswith(b"\xff\xd8") and data.endswith(b"\xff\xd9")


def _parts(file: BinaryIO) -> Iterator[Element]:
    """Elements of the segment up to the first cluster."""
    (segment,) = (part for part in read_elements(file, 0, _length(file)) if part.id == mkv.SEGMENT)
    for part in read_elements(file, segment.body, min(segment.end or _length(file), _length(file))):
        if part.id == mkv.CLUSTER:
            return
        yield part


def _children(file: BinaryIO, parent: Element) -> Iterator[Element]:
    return read_elements(file, parent.body, parent.end or parent.body)


def _values(file: BinaryIO, parent: Element) -> dict[int, bytes]:
    return {part.id: _body(file, part) for part in _children(file, parent)}


def _body(file: BinaryIO, part: Element) -> bytes:
    file.seek(part.body)
    return file.read((part.end or part.body) - part.body)


def _tags(file: BinaryIO, tags: Element) -> dict[str, str]:
    found = {}
    for tag in _children(file, tags):
        for simple in _children(file, tag):
            if simple.id == mkv.SIMPLE_TAG:
                values = _values(file, simple)
                found[values[mkv.TAG_NAME].decode()] = values[mkv.TAG_STRING].decode()
    return found


def _length(file: BinaryIO) -> int:
    return file.seek(0, 2)
