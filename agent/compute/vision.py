"""The rooms of compute in a row, for pictures: gate → infer → decode → track. Frames in, events out."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import datetime

import cv2
from msgspec import Struct
from msgspec.structs import replace

from agent.compute.decode import Decoder, build_decoder
from agent.compute.gate.motion import MotionGate
from agent.compute.infer.backend import Options, open_session
from agent.compute.infer.image import ImageInput, Placement
from agent.compute.track.tracker import Tracker
from agent.compute.track.zones import Zones
from agent.config import StreamConfig
from agent.errors import ModelError
from agent.manifest import Manifest, Model
from agent.messages import WHOLE, Box, Detection, Event, Frame, Seen, Stages, Track


class _Rung(Struct, frozen=True):
    """What a rung needs before and after its inference."""

    image: ImageInput
    decoder: Decoder


class Vision:
    """One stream's eye. For one thread."""

    def __init__(self, stream: str, config: StreamConfig, model: Model) -> None:
        """Open the model and prepare every room.

        Raises:
            ModelError: the model is broken, cannot run here, or does not fit its decoder.
            ConfigError: a zone or a label cannot be used.
        """
        # Streams are what runs in parallel. OpenCV's own threads halve the time of a resize at best, wait for
        # each other by spinning, and cost half as much CPU again.
        cv2.setNumThreads(1)
        self.model, self.alarm = model, ""
        self._config = config
        zones = Zones(config.zones)
        options = Options(rung=model.manifest.rung(config.rung).name, threads=config.threads)
        self.session = open_session(model, config.backend, options)
        self._rungs: dict[str, _Rung] = {}
        self._use(self.session.rung)
        self._gate = MotionGate(config.gate)
        self.tracker = Tracker(config.track, zones, stream)

    def look(self, frame: Frame) -> Seen:
        """Take one frame through the rooms.

        Raises:
            BackendError: the inference failed.
        """
        began = time.monotonic_ns()
        tracker = self.tracker
        keep = tracker.boxes() if self._config.gate.crop else ()
        sight = self._gate.look(frame.image, frame.captured_ns, tracks_alive=tracker.watching, keep=keep)
        gated = time.monotonic_ns()
        queue = began - frame.read_ns
        if not sight.open:
            events = tracker.tick(frame.captured_ns, frame.captured_at)
            return Seen(events, None, Stages(queue, gated - began, track=time.monotonic_ns() - gated))
        placement = self._prepare(frame, sight.crop or WHOLE)
        prepared = time.monotonic_ns()
        self.session.invoke()
        inferred = time.monotonic_ns()
        detections = self._decode(placement)
        decoded = time.monotonic_ns()
        events = tracker.update(detections, frame.captured_ns, frame.captured_at, sight.crop or WHOLE)
        tracked = time.monotonic_ns()
        return Seen(
            events,
            detections,
            Stages(
                queue,
                gated - began,
                prepared - gated,
                inferred - prepared,
                decoded - inferred,
                tracked - decoded,
            ),
        )

    @property
    def answered_by(self) -> tuple[str, str]:
        """Backend and rung of the newest answer."""
        return self.session.backend, self.session.rung

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

    def _use(self, rung: str) -> None:
        self.session.use(rung)
        if rung not in self._rungs:
            self._rungs[rung] = self._rung(self.model.manifest)
        self._rung_in_use = self._rungs[rung]

    def _rung(self, manifest: Manifest) -> _Rung:
        session = self.session
        if len(session.inputs) != 1:
            raise ModelError(
                f"{self.model.path}: expected one input, a picture; found {len(session.inputs)}: "
                f"{', '.join(map(str, session.inputs))}"
            )
        decoder = build_decoder(manifest, session.inputs, session.outputs, self._config.decode)
        return _Rung(ImageInput(session.inputs[0], manifest.input), decoder)

    def _prepare(self, frame: Frame, crop: Box) -> Placement:
        return self._rung_in_use.image.fill(self.session.input(0), frame.image, frame.order, crop)

    def _decode(self, placement: Placement) -> list[Detection]:
        session = self.session
        outputs = [session.output(index) for index in range(len(session.outputs))]
        detections = self._rung_in_use.decoder(outputs)
        return detections if placement.whole else _placed(detections, placement)


def _placed(detections: Sequence[Detection], placement: Placement) -> list[Detection]:
    """Detections in fractions of the frame instead of the model's picture."""
    return [
        replace(
            detection,
            box=placement.to_frame(detection.box) if detection.box else None,
            keypoints=tuple(
                replace(k, x=placed[0], y=placed[1])
                for k in detection.keypoints
                for placed in (placement.point(k.x, k.y),)
            ),
            outline=tuple(placement.point(x, y) for x, y in detection.outline),
        )
        for detection in detections
    ]
