"""What flows of clips: the pictures that they are made of, what they are made for, and what became of them."""

from __future__ import annotations

from datetime import datetime

from msgspec import Struct


class Picture(Struct, frozen=True, gc=False):
    """A frame as a JPEG, as clips are made of.

    Attributes:
        jpeg: the file.
        width, height: in pixels.
        captured_ns: as the frame's, ns.
        captured_at: as the frame's, UTC.
    """

    jpeg: bytes
    width: int
    height: int
    captured_ns: int
    captured_at: datetime


class Occasion(Struct, frozen=True):
    """Why a clip is made.

    Attributes:
        stream: its name.
        reason: of the event that it began with; `asked`: by a command.
        track: id of that event's track; empty: it was asked for.
        label: of that track.
    """

    stream: str
    reason: str
    track: str = ""
    label: str = ""


class Clip(Struct, frozen=True):
    """A clip that lies on the disk.

    Attributes:
        path: of its file, absolute.
        occasion: why it was made.
        tracks: ids of all tracks that it was made for, the occasion's first.
        began_at, ended_at: UTC of its first picture, and of the end of its last.
        duration_s: between the two, s.
        frames: pictures in it.
        bytes: of the file.
        repaired: whether a crash or a power cut ended it.
    """

    path: str
    occasion: Occasion
    tracks: tuple[str, ...]
    began_at: datetime
    ended_at: datetime
    duration_s: float
    frames: int
    bytes: int
    repaired: bool = False
