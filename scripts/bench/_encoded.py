"""A recorded camera in the real pipeline, decoded on demand or by OpenCV. Part of `frames_per_joule`."""

from __future__ import annotations

import threading
import time
from datetime import timedelta
from pathlib import Path

import cv2
import numpy as np
from _on_demand import Camera
from _stillness import BEGAN
from gate import Sink
from msgspec import Struct

from agent.comms.messages import EventMessage, ModelId
from agent.comms.reporter import Reporter
from agent.comms.topics import Topics
from agent.compute.vision import VideoPerception
from agent.config import PublishConfig
from agent.daemon.streams.pipeline import VideoPipeline
from agent.types import Frame, Track


class Run(Struct):
    """What a run has found and taken.

    Attributes:
        messages: events as they were sent.
        alive: announced tracks by id after each frame of the camera, also those that were not decoded.
        cpu_s: processor time of reading, decoding, gate, model, tracker and reports, s.
        inferences: that were made.
        decoded: pictures.
    """

    messages: list[EventMessage]
    alive: list[dict[str, Track]]
    cpu_s: float = 0.0
    inferences: int = 0
    decoded: int = 0


class _Tracks:
    """Notes which tracks live after each frame; of frames that are not decoded, those of the frame before."""

    def __init__(self, vision: VideoPerception, fps: float) -> None:
        self._vision, self._fps = vision, fps
        self._at: int | None = None
        self.alive: list[dict[str, Track]] = []

    def update(self, frame: Frame | None) -> None:
        """Note the tracks after the frame that was given before, and expect this one."""
        if self._at is not None:
            self.extend(self._at)
            self.alive[self._at :] = [{one.id: one for one in self._vision.tracker.tracks()}]
        if frame is not None:
            self._at = round((frame.captured_at - BEGAN).total_seconds() * self._fps)

    def extend(self, count: int) -> None:
        """Repeat the newest tracks up to a number of frames."""
        before = self.alive[-1] if self.alive else {}
        self.alive += [before] * (count - len(self.alive))


class _OnDemand(Camera):
    """Decodes on demand."""

    tracks: _Tracks

    def take(self, timeout_s: float) -> Frame | None:
        frame = super().take(timeout_s)
        self.tracks.update(frame)
        return frame


class _OpenCV:
    """Decodes everything with OpenCV, as most programs do."""

    lost = False

    def __init__(self, path: Path, fps: float, tracks: _Tracks) -> None:
        self._capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
        self._fps, self.tracks, self.ended, self.decoded = fps, tracks, False, 0
        self._began_ns = time.monotonic_ns()

    def take(self, timeout_s: float) -> Frame | None:
        done, image = self._capture.read()
        if not done:
            self.ended = True
            self.tracks.update(None)
            return None
        at_s, self.decoded = self.decoded / self._fps, self.decoded + 1
        frame = Frame(
            np.asarray(image, np.uint8),
            "bench",
            self.decoded,
            self._began_ns + round(at_s * 1e9),
            BEGAN + timedelta(seconds=at_s),
        )
        self.tracks.update(frame)
        return frame

    def give_back(self, frame: Frame) -> None:
        """Each frame has memory of its own."""


def run_on_demand(path: Path, vision: VideoPerception, fps: float) -> Run:
    """Take a recorded camera through the pipeline, decoded on demand."""
    camera = _OnDemand(path, "auto")
    camera.tracks = _Tracks(vision, fps)
    return _run(camera, vision, camera.tracks)


def run_opencv(path: Path, vision: VideoPerception, fps: float) -> Run:
    """Take a recorded camera through the pipeline, everything decoded by OpenCV."""
    tracks = _Tracks(vision, fps)
    return _run(_OpenCV(path, fps, tracks), vision, tracks)


def _run(source: _OnDemand | _OpenCV, vision: VideoPerception, tracks: _Tracks) -> Run:
    sink, publish, began_s = Sink(updates=True), PublishConfig(snapshot=False), time.thread_time()
    reporter = Reporter(Topics("vedette", "bench"), "bench", publish, ModelId("bench", ""), sink, sink)
    pipeline = VideoPipeline(source, vision, reporter)
    if isinstance(source, Camera):
        pipeline.on_demand = source.set_demand
    pipeline.run(threading.Event())
    cpu_s = time.thread_time() - began_s
    vision.close()
    return Run(sink.events, tracks.alive, cpu_s, pipeline.metrics.inferences, source.decoded)
