"""Clips on the disk, as the recorder leaves them, also one that is being recorded."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path

from agent.storage.clips.file import ClipFile, ClipLabel, settle
from agent.storage.clips.store import clip_path, make_clips_folder
from agent.types import ClipReason
from tests.support.clip_pictures import BEGAN, SECOND
from tests.support.media import Encoder, timed


def begin_clip(
    folder: Path,
    label: str = "person",
    *,
    stream: str = "front",
    at: datetime = BEGAN,
    pictures: int = 10,
    size: tuple[int, int] = (64, 48),
) -> ClipFile:
    """Write a clip of two pictures a second that began 2 s before its event, without completing it."""
    occasion = ClipReason(stream, "appeared", f"{stream}-1", label)
    path = clip_path(folder, occasion, at)
    make_clips_folder(path.parent)
    encoder = Encoder(size)
    packets = timed([encoder.packet(number, number * SECOND // 2) for number in range(pictures)])
    file = ClipFile(path, ClipLabel(occasion, at - timedelta(seconds=2)), packets[0], None)
    file.append(packets)
    return file


def store_clip(folder: Path, label: str = "person", *, stream: str = "front", at: datetime = BEGAN) -> Path:
    """Write a complete clip of 5 s, and return its path."""
    file = begin_clip(folder, label, stream=stream, at=at)
    file.finish(())
    settle(file.path)
    return file.path
