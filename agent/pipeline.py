"""The corridor of one stream: frames from its grabber through its vision to its reporter, and nothing else."""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime
from typing import Protocol

from msgspec import Struct

from agent.comms.reporter import Reporter
from agent.compute.annotate import annotate, jpeg
from agent.compute.track.bestshot import BestShot
from agent.compute.vision import Vision
from agent.config import PublishConfig
from agent.messages import Event, Frame, Seen, Stages

_TAKE_S = 0.25
"""Longest wait for a frame before time itself is looked at: ends that are due, a stop, a loss."""


class FrameSource(Protocol):
    """Where frames come from: `agent.capture.grabber.Grabber`, or a test's list."""

    @property
    def ended(self) -> bool:
        """Whether a finite source is over and every frame was taken."""
        ...

    @property
    def lost(self) -> bool:
        """Whether no frame has come for longer than the stall time."""
        ...

    def take(self, timeout_s: float) -> Frame | None:
        """The next frame, or None when none came in time."""
        ...

    def give_back(self, frame: Frame) -> None:
        """The frame's memory may be used again."""
        ...


class Tally(Struct):
    """Running totals of one pipeline."""

    frames: int = 0
    inferences: int = 0
    infer_ns: int = 0


class Pipeline:
    """Runs one stream until its source ends or it is told to stop."""

    def __init__(self, source: FrameSource, vision: Vision, reporter: Reporter, config: PublishConfig) -> None:
        self._source, self._vision, self._reporter = source, vision, reporter
        self._config = config
        self._best = BestShot(config.snapshot_every_s)
        self._now: tuple[int, datetime] | None = None
        self.tally = Tally()
        self.first_result = threading.Event()

    def run(self, stop: threading.Event, reason: str = "ended") -> None:
        """Move frames until the end. Tracks are always ended, whatever happens.

        Args:
            stop: checked between frames.
            reason: of the tracks' ends when the source ends by itself.

        Raises:
            VedetteError: the source or the inference failed.
        """
        why = "failure"
        try:
            while not stop.is_set() and not self._source.ended:
                self._step()
            why = reason if not stop.is_set() else "shutdown"
        finally:
            self._finish(why)

    def _step(self) -> None:
        frame = self._source.take(_TAKE_S)
        if frame is None:
            self._idle()
            return
        try:
            self._handle(frame)
        finally:
            self._source.give_back(frame)

    def _handle(self, frame: Frame) -> None:
        vision, tally = self._vision, self.tally
        self._now = frame.captured_ns, frame.captured_at
        seen = vision.look(frame)
        tally.frames += 1
        if seen.detections is not None:
            tally.inferences += 1
            tally.infer_ns += seen.stages.infer
        self._reporter.seen(frame, seen, vision.session.backend, vision.session.rung)
        if seen.events:
            self._reporter.counts(vision.tracker.counts())
        if self._config.snapshot and (seen.events or self._best.due(frame.captured_ns)):
            self._snapshot(frame, seen)
        if seen.detections is not None and not self.first_result.is_set():
            self.first_result.set()

    def _snapshot(self, frame: Frame, seen: Seen) -> None:
        tracks = self._vision.tracks()
        if self._best.consider(seen.events, tracks, frame.captured_ns):
            # One that was missed in this very frame stays in memory only: its box is where it was.
            found = [track for track in tracks if track.last_seen == frame.captured_at]
            picture = annotate(frame.image, found, order=frame.order)
            self._reporter.snapshot(jpeg(picture, self._config.snapshot_quality, frame.order))

    def _idle(self) -> None:
        """No frame: a lost source ends its tracks at once, a slow one when they are due."""
        if self._source.lost:
            self._finish("stall")
        elif self._vision.tracker.alive:
            at = datetime.now(UTC)
            self._report(self._vision.tick(time.monotonic_ns(), at), at)

    def _finish(self, reason: str) -> None:
        at_ns, at = self._now or (time.monotonic_ns(), datetime.now(UTC))
        self._report(self._vision.finish(at_ns, at, reason), at)

    def _report(self, events: list[Event], at: datetime) -> None:
        if events:
            session = self._vision.session
            self._reporter.events(events, at, Stages(), session.backend, session.rung)
            self._reporter.counts(self._vision.tracker.counts())
