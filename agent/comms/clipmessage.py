"""The news that a clip lies on the device, as a struct: see `agent.comms.payload` for the other messages."""

from __future__ import annotations

import uuid
from datetime import datetime
from pathlib import PurePath

from msgspec import Struct

from agent.clips import Clip

_IDS = uuid.UUID("c25a3c42-59d4-4e0b-9a32-2a0f1d8a77e5")
"""Namespace of the ids: names of clips are unique on a device."""


class ClipMessage(Struct, frozen=True):
    """`<device>/<stream>/clips`, QoS 1, never retained: a clip lies on the device. The clip itself is not sent.

    Attributes:
        id: unique; a repeated delivery has the same, also one after a crash.
        device, stream: where it was recorded.
        path: of the file, on the device: Matroska with JPEG pictures.
        began_at, ended_at: UTC of its first picture, and of the end of its last.
        duration_s: between the two, s.
        frames: pictures in it.
        bytes: of the file.
        track, label: that it was begun for; empty: it was asked for.
        tracks: ids of all tracks that it was made for; of one that was cut off, the first.
        reason: of the event that it began with, or `asked`: by a command.
        repaired: whether a crash or a power cut ended it.
        seq, first_seq: per device, in one row with those of events; see `EventMessage`.
    """

    id: str
    device: str
    stream: str
    path: str
    began_at: datetime
    ended_at: datetime
    duration_s: float
    frames: int
    bytes: int
    track: str
    label: str
    tracks: tuple[str, ...]
    reason: str
    repaired: bool = False
    seq: int = 0
    first_seq: int = 0


def clip_message(clip: Clip, device: str) -> ClipMessage:
    """The news of a clip; whenever they are made for one, they have the same id."""
    occasion = clip.occasion
    name = PurePath(clip.path).name.encode("utf-8", "replace").decode()
    return ClipMessage(
        uuid.uuid5(_IDS, f"{device}/{occasion.stream}/{name}").hex,
        device,
        occasion.stream,
        clip.path.encode("utf-8", "replace").decode(),  # a path may be no UTF-8
        clip.began_at,
        clip.ended_at,
        clip.duration_s,
        clip.frames,
        clip.bytes,
        occasion.track,
        occasion.label,
        clip.tracks,
        occasion.reason,
        clip.repaired,
    )
