"""The size of a JPEG, from its header: before anything is decoded, which may need a hundred times the memory.

The format is that of ITU-T T.81, annex B: segments of a marker, a length and so many bytes; the one that is
called frame header has the size.
"""

from __future__ import annotations

_START = b"\xff\xd8"
_FRAMES = frozenset({0xC0, 0xC1, 0xC2})
"""Baseline, extended, progressive; what else there is no camera makes."""
_ALONE = frozenset({0x01, *range(0xD0, 0xD9)})
"""Markers without a length."""


def read_size(data: bytes) -> tuple[int, int] | None:
    """Width and height in pixels; None: this is no JPEG that we know."""
    if not data.startswith(_START):
        return None
    at = len(_START)
    while at + 9 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker in _FRAMES:
            height, width = int.from_bytes(data[at + 5 : at + 7]), int.from_bytes(data[at + 7 : at + 9])
            return (width, height) if width and height else None
        if marker == 0xFF:  # padding before a marker
            at += 1
        elif marker in _ALONE:
            at += 2
        else:
            at += 2 + max(2, int.from_bytes(data[at + 2 : at + 4]))
    return None
