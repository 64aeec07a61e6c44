"""The rooms of compute in a row, for pictures: gate → infer → decode → track. Frames in, events out."""

from __future__ import annotations

import time
from datetime import datetime

import cv2

from agent.compute.cascade.resolution import Detector, DetectorResult, ResolutionCascade
from agent.compute.gate.motion import MotionGate
from agent.compute.infer.backends import open_session
from agent.compute.infer.session import Opener, SessionOptions
from agent.compute.manifest import Model
from agent.compute.track.tracker import Tracker
from agent.compute.track.zones import Zones
from agent.config.stream import StreamConfig
from agent.types import WHOLE, Box, Event, Frame, StageTimes, StreamResult, Track


class VideoPerception:
    """One stream's eye. For one thread.

    Attributes:
        looked: part of the newest frame that was inferred, and its complexity.
    """

    def __init__(self, stream: str, config: StreamConfig, model: Model, opener: Opener = open_session) -> None:
        """Open the model and prepare every room.

        Args:
            stream: its name.
            config: of the stream.
            model: that it runs.
            opener: opens it.

        Raises:
            ModelError: the model is broken, cannot run here, does not fit its decoder, or has no cascade to
                climb.
            ConfigError: a zone or a label cannot be used.
        """
        # Streams are what runs in parallel. OpenCV's own threads halve the time of a resize at best, wait for
        # each other by spinning, and cost half as much CPU again.
        cv2.setNumThreads(1)
        self.model, self.alarm = model, ""
        self.looked: tuple[Box, float] = WHOLE, 1.0
        zones = Zones(config.zones)
        climbed = model.manifest.climbed(config.variant)
        variant = climbed[-1].name if climbed else model.manifest.variant(config.variant).name
        self.session = opener(model, config.backend, SessionOptions(variant=variant, threads=config.threads))
        self._eye, self._keeps = self._opened(config)
        self._gate = MotionGate(config.gate)
        self.tracker = Tracker(config.track, zones, stream)

    def _opened(self, config: StreamConfig) -> tuple[ResolutionCascade | Detector, bool]:
        """What looks, and whether what is known counts: it makes a picture hard, and belongs into its crop."""
        if self.model.manifest.climbed(config.variant):
            return ResolutionCascade(self.session, self.model, config), True
        variant = self.model.manifest.variant(config.variant).name
        return Detector(self.session, self.model, variant, config.decode), config.gate.crop

    def configure(self, config: StreamConfig) -> None:
        """Take other thresholds, zones and another variant of what is open; tracks go on.

        Raises:
            ModelError: the variant is not open.
        """
        self._eye, self._keeps = self._opened(config)
        self.tracker.use(Zones(config.zones))

    def process(self, frame: Frame) -> StreamResult:
        """Take one frame through the rooms.

        Raises:
            BackendError: the inference failed.
        """
        began = time.monotonic_ns()
        tracker = self.tracker
        keep, resting = tracker.boxes(frame.captured_ns) if self._keeps else ((), ())
        sight = self._gate.evaluate(
            frame.image,
            frame.captured_ns,
            watching=tracker.watching,
            check=tracker.check_due(frame.captured_ns),
            keep=keep,
            resting=resting,
        )
        gated = time.monotonic_ns()
        queue = began - frame.read_ns
        if not sight.open:
            events = tracker.rest(frame.captured_ns, frame.captured_at)
            return StreamResult(events, None, StageTimes(queue, gated - began, track=time.monotonic_ns() - gated))
        crop = sight.crop or WHOLE
        look = self._eye.run(frame, crop, sight.complexity)
        looked = time.monotonic_ns()
        self.looked = crop, sight.complexity
        events = tracker.update(look.detections, frame.captured_ns, frame.captured_at, crop)
        track = time.monotonic_ns() - looked
        stages = StageTimes(queue, gated - began, look.prepare, look.infer, look.decode, track)
        return StreamResult(events, look.detections, stages)

    def look_again(self, frame: Frame, crop: Box, complexity: float) -> DetectorResult:
        """Look where another eye has looked; nothing is followed over time.

        Raises:
            BackendError: the inference failed.
        """
        return self._eye.run(frame, crop, complexity)

    @property
    def answered_by(self) -> tuple[str, str]:
        """Backend and variant of the newest answer."""
        return self.session.backend, self._eye.variant

    @property
    def used(self) -> dict[str, int]:
        """How often each variant gave the answer; empty where one answers alone."""
        return self._eye.used if isinstance(self._eye, ResolutionCascade) else {}

    def tick(self, at_ns: int, at: datetime) -> list[Event]:
        """Time passes and no frame comes: ends that are due."""
        return self.tracker.tick(at_ns, at)

    def finish(self, at_ns: int, at: datetime, reason: str) -> list[Event]:
        """End every track."""
        return self.tracker.finish(at_ns, at, reason)

    def tracks(self) -> tuple[Track, ...]:
        """The tracks alive now."""
        return self.tracker.tracks()

    def close(self) -> None:
        """Give the model's memory back."""
        self.session.close()
