"""The gate on a clip of 60 s of stillness and then walkers: what it saves, and whether it costs an event.

The clip is made here: the walkers' own background (the median of their frames, without what the model takes for a
person in it, since a gate rightly stays open while something is tracked) with a sensor's noise and slow drift of
light, then the walkers with the same noise, as an MJPEG file, as cheap cameras send. It goes twice
through the real pipeline and the real model, with the gate and without, at the clip's own time and as fast as it
can be read. An event is kept when the run with the gate has one of the same kind and label, at the same place
and time.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from datetime import timedelta
from pathlib import Path

import common
import cv2
import msgspec
import numpy as np
from _stillness import BEGAN, FPS, LABEL, STILL_S, config_for, make_clip, read
from msgspec import Struct

from agent.comms.messages import EventMessage, ModelId
from agent.comms.reporter import Reporter
from agent.comms.topics import Topics
from agent.compute.gate.motion import MotionGate
from agent.compute.track.state import iou
from agent.compute.vision import VideoPerception
from agent.config import DecodeConfig, GateConfig, PublishConfig
from agent.daemon.streams.pipeline import VideoPipeline
from agent.models.library import open_model
from agent.types import Frame, OpenTrack

SAME_TIME, SAME_IOU = timedelta(seconds=0.5), 0.4


class Run(Struct):
    """Results of one run of the pipeline.

    Attributes:
        events: `new` and `end`, in order.
        inferences: in all.
        still: of these, while nothing moved.
        seconds: it took.
    """

    events: list[EventMessage]
    inferences: int = 0
    still: int = 0
    seconds: float = 0.0


class Clip:
    """A frame source that is a file, stamped with its own time instead of the hour of reading.

    Attributes:
        pipeline: that takes the frames.
        still: inferences that it had made when the stillness was over.
    """

    ended = lost = False

    def __init__(self, path: Path) -> None:
        self._reader = cv2.VideoCapture(str(path))
        self._began_ns, self._taken = time.monotonic_ns(), 0
        self.pipeline: VideoPipeline | None = None
        self.still = 0

    def take(self, timeout_s: float) -> Frame | None:
        """The next frame; None at the end."""
        number, self._taken = self._taken, self._taken + 1
        if number == STILL_S * FPS and self.pipeline is not None:
            self.still = self.pipeline.metrics.inferences
        done, image = self._reader.read()
        if not done:
            self.ended = True
            return None
        at = BEGAN + timedelta(seconds=number / FPS)
        picture = np.asarray(image, np.uint8)
        return Frame(picture, "bench", number, self._began_ns + number * 10**9 // FPS, at)

    def give_back(self, frame: Frame) -> None:
        """Each frame has memory of its own."""


class Sink:
    """Keeps the events that would go to the spool, and drops what would go straight to the broker."""

    def __init__(self, *, updates: bool = False) -> None:
        self.events: list[EventMessage] = []
        self._updates = updates
        self._decoder = msgspec.json.Decoder(EventMessage)

    def put(self, topic: str, body: bytes, track: OpenTrack | None = None) -> None:
        """An event."""
        event = self._decoder.decode(body)
        if self._updates or event.kind != "update":
            self.events.append(event)

    def retain(self, topic: str, payload: bytes, *, patient: bool = False) -> None:
        """A count."""

    def send(self, topic: str, payload: bytes) -> None:
        """A frame's detections."""


def main() -> None:
    args = arguments()
    with tempfile.TemporaryDirectory() as folder:
        clip = Path(folder, "clip.avi")
        frames = make_clip(args.clip, clip, args.model, walk_s=15 if args.quick else 30)
        gated, free = run(clip, args.model, gate=True), run(clip, args.model, gate=False)
        gate_ms = look_cost(clip)
    missed = lost(free.events, gated.events)
    for event in missed:
        print(f"missed: {event.kind} {event.track.label} at {event.captured_at} {event.track.box}")
    figures = {
        "saved_while_still": 1 - gated.still / free.still,
        "still_frames": free.still,
        "still_inferences": gated.still,
        "walking_frames": frames - free.still,
        "walking_inferences": gated.inferences - gated.still,
        "events": len(free.events),
        "events_missed": len(missed),
        "look_p50_ms": gate_ms,
        "gated_s": gated.seconds,
        "free_s": free.seconds,
    }
    targets = {"saved_while_still": ">= 0.95", "events_missed": "== 0", "events": "> 0"}
    meets = figures["saved_while_still"] >= 0.95 and not missed and len(free.events) > 0
    common.conclude("gate", figures, targets, meets)


def arguments() -> argparse.Namespace:
    parser = common.arguments(__doc__ or "")
    parser.add_argument("--clip", type=Path, default=common.CLIP, help="pedestrians before a camera at rest")
    parser.add_argument("--model", default="nanodet", help="name or path of a detector of persons")
    return parser.parse_args()


def run(clip: Path, model: str, *, gate: bool) -> Run:
    """Run the pipeline on the clip."""
    publish = PublishConfig(snapshot=False)
    config = config_for(model, DecodeConfig(labels=(LABEL,)), gate=gate)
    vision, sink, source = VideoPerception("bench", config, open_model(model)), Sink(), Clip(clip)
    reporter = Reporter(Topics("vedette", "bench"), "bench", publish, ModelId("bench", ""), sink, sink)
    source.pipeline = VideoPipeline(source, vision, reporter)
    began = time.monotonic()
    source.pipeline.run(threading.Event())
    seconds = time.monotonic() - began
    vision.close()
    return Run(sink.events, source.pipeline.metrics.inferences, source.still, seconds)


def lost(wanted: list[EventMessage], found: list[EventMessage]) -> list[EventMessage]:
    """Events of one run without a counterpart in the other; each counterpart counts once."""
    left = list(found)
    missing = []
    for event in wanted:
        same = next((other for other in left if is_same(event, other)), None)
        if same is None:
            missing.append(event)
        else:
            left.remove(same)
    return missing


def is_same(one: EventMessage, other: EventMessage) -> bool:
    """Return True if both have one kind and label, at one place and time, that of the newest detection."""
    if one.kind != other.kind or one.track.label != other.track.label:
        return False
    if one.track.box is None or other.track.box is None:
        return False
    apart = abs(one.track.last_seen - other.track.last_seen)
    return apart <= SAME_TIME and iou(one.track.box, other.track.box) >= SAME_IOU


def look_cost(clip: Path) -> float:
    """Median of the gate's own time on still frames, ms."""
    gate, costs = MotionGate(GateConfig()), []
    for number, image in enumerate(read(clip, 100)):
        began = time.perf_counter_ns()
        gate.evaluate(image, number * 10**9 // FPS, watching=False)
        costs.append(time.perf_counter_ns() - began)
    return float(np.median(costs)) / 1e6


if __name__ == "__main__":
    main()
