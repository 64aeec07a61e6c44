"""The gate on a clip of 60 s of stillness and then walkers: what it saves, and whether it costs an event.

The clip is made here: the walkers' own background (the median of their frames, without what the model takes for a
person in it, since a gate rightly stays open while something is tracked) with a sensor's noise and slow drift of
light, then the walkers with the same noise, as an MJPEG file, as cheap cameras send. It goes twice
through the real corridor and the real model, with the gate and without, at the clip's own time and as fast as it
can be read. An event is kept when the run with the gate has one of the same kind and label, at the same place
and time.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import common
import cv2
import msgspec
import numpy as np
from msgspec import Struct

from agent.comms.payload import EventMessage, ModelId
from agent.comms.reporter import Reporter
from agent.comms.topics import Topics
from agent.compute.gate.motion import MotionGate
from agent.compute.track.association import iou
from agent.compute.vision import Vision
from agent.config import DecodeConfig, GateConfig, PublishConfig, StreamConfig
from agent.library import open_model
from agent.messages import Frame, Image
from agent.pipeline import Pipeline

FPS = 10
STILL_S = 60
LABEL = "person"
"""Only these: the place has parked cars too, and they would be tracked all the time."""

BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
SAME_TIME, SAME_IOU = timedelta(seconds=0.5), 0.4


class Run(Struct):
    """What one way through the corridor gave.

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
    """A frame source that is a file, stamped with its own time instead of the hour of reading."""

    def __init__(self, path: Path) -> None:
        self._reader = cv2.VideoCapture(str(path))
        self._began_ns = time.monotonic_ns()
        self.taken = 0
        self.ended = False
        self.lost = False

    def take(self, timeout_s: float) -> Frame | None:
        """The next frame; None at the end."""
        done, image = self._reader.read()
        if not done:
            self.ended = True
            return None
        number, self.taken = self.taken, self.taken + 1
        at = BEGAN + timedelta(seconds=number / FPS)
        return Frame(image, "bench", number, self._began_ns + number * 10**9 // FPS, at)  # type: ignore[arg-type]

    def give_back(self, frame: Frame) -> None:
        """Each frame has memory of its own."""


class Counted(Clip):
    """A clip that notes how many inferences had been made when its stillness was over."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.pipeline: Pipeline | None = None
        self.still = 0

    def take(self, timeout_s: float) -> Frame | None:
        """The next frame; None at the end."""
        if self.taken == STILL_S * FPS and self.pipeline is not None:
            self.still = self.pipeline.tally.inferences
        return super().take(timeout_s)


class Sink:
    """Keeps the events that would go to the spool, and drops what would go straight to the broker."""

    def __init__(self) -> None:
        self.events: list[EventMessage] = []
        self._decoder = msgspec.json.Decoder(EventMessage)

    def put(self, topic: str, body: bytes) -> None:
        """An event."""
        event = self._decoder.decode(body)
        if event.kind != "update":
            self.events.append(event)

    def retain(self, topic: str, payload: bytes) -> None:
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
        "events_of_the_gated_run": len(gated.events),
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


def make_clip(walkers: Path, target: Path, model: str, walk_s: int) -> int:
    """Write stillness and then walkers; the number of frames."""
    people = read(walkers, 10_000)
    if not people:
        raise SystemExit(f"cannot read {walkers}: give a clip of pedestrians with --clip")
    median = np.median(np.stack(people[:: max(1, len(people) // 40)]), axis=0).astype(np.uint8)
    background = deserted(median, model).astype(np.float32)
    people = people[: walk_s * FPS]
    height, width = background.shape[:2]
    fourcc = cv2.VideoWriter.fourcc(*"MJPG")
    writer = cv2.VideoWriter(str(target), fourcc, FPS, (width, height))
    noise = sensor_noise(background)
    still = STILL_S * FPS
    for number in range(still + len(people)):
        scene = background if number < still else people[number - still].astype(np.float32)
        # Ten per cent of light, up and down in forty seconds: clouds.
        light = 1.0 + 0.1 * np.sin(2 * np.pi * number / (40 * FPS))
        writer.write(np.clip(scene * light + next(noise), 0, 255).astype(np.uint8))
    writer.release()
    return still + len(people)


def deserted(background: Image, model: str) -> Image:
    """The background without what the model takes for a person, even faintly."""
    eye = Vision(
        "bench", config_for(model, DecodeConfig(labels=(LABEL,), score_threshold=0.15)), open_model(model)
    )
    picture = background.copy()
    for number in range(10):
        found = eye.look(Frame(picture, "bench", number, number, BEGAN)).detections
        if not found:
            break
        height, width = picture.shape[:2]
        mask = np.zeros((height, width), np.uint8)
        for x0, y0, x1, y1 in (detection.box for detection in found if detection.box):
            mask[int(y0 * height) : int(y1 * height) + 4, int(x0 * width) : int(x1 * width) + 4] = 255
        picture = cv2.inpaint(picture, mask, 5, cv2.INPAINT_TELEA)  # type: ignore[assignment]
    eye.close()
    return picture


def config_for(model: str, decode: DecodeConfig, *, gate: bool = False) -> StreamConfig:
    return StreamConfig(source="test:", model=model, gate=GateConfig(motion=gate), decode=decode)


def sensor_noise(background: np.ndarray) -> Iterator[np.ndarray]:
    """Gaussian noise that grows with the root of the light (shot noise): sigma 2 in the dark, 5 in the light."""
    sigma = 2.0 + 3.0 * np.sqrt(background / 255.0)
    random = np.random.default_rng(20)
    fields = [(sigma * random.standard_normal(sigma.shape, np.float32)).astype(np.float32) for _ in range(16)]
    while True:
        field = fields[random.integers(len(fields))]
        yield field[:, ::-1] if random.random() < 0.5 else field


def read(path: Path, most: int) -> list[Image]:
    reader = cv2.VideoCapture(str(path))
    frames: list[Image] = []
    while len(frames) < most:
        done, image = reader.read()
        if not done:
            break
        frames.append(image)  # type: ignore[arg-type]
    return frames


def run(clip: Path, model: str, *, gate: bool) -> Run:
    """Take the clip through the corridor."""
    opened = open_model(model)
    publish = PublishConfig(snapshot=False)
    config = config_for(model, DecodeConfig(labels=(LABEL,)), gate=gate)
    vision, sink, source = Vision("bench", config, open_model(model)), Sink(), Counted(clip)
    reporter = Reporter(Topics("vedette", "bench"), "bench", publish, ModelId("bench", ""), sink, sink)
    source.pipeline = Pipeline(source, vision, reporter, publish)
    began = time.monotonic()
    source.pipeline.run(threading.Event())
    seconds = time.monotonic() - began
    vision.close()
    return Run(sink.events, source.pipeline.tally.inferences, source.still, seconds)


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
    """Of one kind and label, at one place; the time is that of the newest detection in it."""
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
        gate.look(image, number * 10**9 // FPS, tracks_alive=False)
        costs.append(time.perf_counter_ns() - began)
    return float(np.median(costs)) / 1e6


if __name__ == "__main__":
    main()
