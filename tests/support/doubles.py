"""Doubles around real modules: a model that always sees one person, a list of frames, and sinks that record."""

from __future__ import annotations

import time
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from msgspec.structs import replace

from agent.comms.messages import EventMessage
from agent.types import Box, Frame, Lease, OpenTrack
from tests.support import tflite_builder as build

MANIFEST = """
name = "person"
[output]
decoder = "ssd"
labels = ["person"]
score_threshold = 0.4
"""


def person_model(folder: Path, score: float = 0.9, box: Box = (0.25, 0.25, 0.5, 0.75)) -> Path:
    """Write a real model that looks away and always sees one person; gives its manifest's path."""
    x0, y0, x1, y1 = box
    outputs = {
        "boxes": np.array([[[y0, x0, y1, x1]]], np.float32),
        "classes": np.zeros((1, 1), np.float32),
        "scores": np.full((1, 1), score, np.float32),
        "count": np.ones(1, np.float32),
    }
    (folder / "person.tflite").write_bytes(build.constant_model(outputs, (1, 32, 32, 3)))
    path = folder / "person.toml"
    path.write_text(MANIFEST)
    return path


def frames(count: int, stream: str = "front", every_s: float = 0.1) -> list[Frame]:
    """Grey pictures, captured one after the other up to now."""
    now = time.monotonic_ns()
    picture = np.full((48, 64, 3), 128, np.uint8)
    step = round(every_s * 1e9)
    return [
        Frame(picture, stream, n, now - (count - n) * step, datetime.now(UTC), "bgr", now) for n in range(count)
    ]


class FrameList:
    """A source that has these frames and then ends; may be lost for a while first."""

    def __init__(self, given: Iterable[Frame]) -> None:
        self._given = list(given)
        self.lost = False
        self.given_back = 0

    @property
    def ended(self) -> bool:
        return not self._given and not self.lost

    def take(self, timeout_s: float) -> Frame | None:
        if not self._given:
            return None
        frame = self._given.pop(0)
        return replace(frame, lease=Lease(lambda: self.give_back(frame)))

    def give_back(self, frame: Frame) -> None:
        self.given_back += 1


class Kept:
    """An event sink and a board that keep what they are given."""

    def __init__(self) -> None:
        self.puts: list[tuple[str, bytes]] = []
        self.crash_ends: dict[str, bytes | None] = {}
        self.retained: dict[str, bytes] = {}
        self.history: list[tuple[str, bytes]] = []
        self.sent: list[tuple[str, bytes]] = []

    def put(self, topic: str, body: bytes, track: OpenTrack | None = None) -> None:
        self.puts.append((topic, body))
        if track is not None:
            self.crash_ends[track.key] = track.body

    def retain(self, topic: str, payload: bytes, *, patient: bool = False) -> None:
        self.retained[topic] = payload
        self.history.append((topic, payload))

    def send(self, topic: str, payload: bytes) -> None:
        self.sent.append((topic, payload))

    def events(self) -> list[EventMessage]:
        return [msgspec.json.decode(body, type=EventMessage) for _, body in self.puts]

    def kinds(self) -> list[str]:
        return [event.kind for event in self.events()]


def snapshots(vision: Any, reporter: Any, publish: Any, **more: Any) -> Any:
    """The parts of a stream that publishes snapshots, and `more` parts by name."""
    from agent.daemon.parts import Parts
    from agent.features.snapshots.part import SnapshotPart

    parts = Parts()
    for name, part in more.items():
        parts.attach(name, part)
    parts.attach("snapshots", SnapshotPart(vision, reporter, publish, parts))
    return parts
