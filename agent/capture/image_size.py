"""The size of a picture, from its header, and the largest size that is taken.

Decoding may need a hundred times the memory of the file, so the size is checked before.

A JPEG is as ITU-T T.81, annex B, defines it: segments of a marker, a length and so many bytes; the one that is
called frame header has the size. A PNG begins with its IHDR chunk (ISO/IEC 15948), a BMP with BITMAPFILEHEADER
and BITMAPINFOHEADER.
"""

from __future__ import annotations

from agent.errors import SourceError

LARGEST_PIXELS = 50_000_000
"""Decoded to three bytes a pixel, a picture of this size takes 150 MB, and a stream holds several."""

_START = b"\xff\xd8"
_FRAMES = frozenset({0xC0, 0xC1, 0xC2})
"""Baseline, extended, progressive; what else there is no camera makes."""
_ALONE = frozenset({0x01, *range(0xD0, 0xD9)})
"""Markers without a length."""
_PNG_START, _BMP_START = b"\x89PNG\r\n\x1a\n", b"BM"
_BMP_INFO_HEADER = 40
"""Bytes of the shortest BMP header whose sides have four bytes each."""


def check_size(shown: str, width: int, height: int) -> None:
    """Refuse a picture that is too large to be decoded here.

    Args:
        shown: name of the source, for the message.
        width: of the picture, pixels; 0 where it is not known yet.
        height: of the picture, pixels; 0 where it is not known yet.

    Raises:
        SourceError: it has more than `LARGEST_PIXELS` pixels.
    """
    if width * height > LARGEST_PIXELS:
        raise SourceError(
            f"{shown}: its pictures have {width}x{height} pixels, {width * height / 1e6:.3g} megapixels; expected"
            f" at most {LARGEST_PIXELS / 1e6:.0f} megapixels; choose a smaller size"
        )


def header_size(data: bytes) -> tuple[int, int] | None:
    """Return width and height of a JPEG, PNG or BMP in pixels; None: the data begins with no such header."""
    if data.startswith(_PNG_START) and len(data) >= 24:
        return int.from_bytes(data[16:20]), int.from_bytes(data[20:24])
    if (
        data.startswith(_BMP_START)
        and len(data) >= 26
        and int.from_bytes(data[14:18], "little") >= _BMP_INFO_HEADER
    ):
        width, height = (int.from_bytes(data[at : at + 4], "little", signed=True) for at in (18, 22))
        return abs(width), abs(height)  # a negative height: the rows are stored from the top down
    return read_size(data)


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
