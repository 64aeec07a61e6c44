"""Measure the cost of parked cars: inferences while nothing moves, messages an hour, and events lost by the gate.

The scene has four vehicles, of which one arrives and leaves, and people who pass in front of them (see
`_parking`). It goes through the real pipeline and the real model, with the gate and without, on the scene's own
time; then the scene goes on, still, until an hour is full, with the gate. An event of the run without the gate is
kept when the run with it has one of the same kind, at the same place and time. A vehicle's label may differ: the
model calls one thing a car, a truck and a bus.

Detections that flicker around the threshold while nothing moves are not events of the scene. Inferences are
counted without the last part of the hour, which has fewer frames in a quick run.
"""

from __future__ import annotations

import argparse
import threading
import time
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from pathlib import Path

import common
from _parking import Parking, Part, Shot
from _stillness import BEGAN
from gate import Sink
from msgspec import Struct

from agent.comms.messages import EventMessage, ModelId
from agent.comms.reporter import Reporter
from agent.comms.topics import Topics
from agent.compute.track.state import iou
from agent.compute.vision import VideoPerception
from agent.config import DecodeConfig, GateConfig, PublishConfig, StreamConfig, TrackConfig
from agent.daemon.streams.pipeline import VideoPipeline
from agent.models.library import open_model
from agent.types import Box, Frame

VEHICLES = ("car", "truck", "bus")
THRESHOLD = 0.45
SAME_TIME, SAME_IOU = timedelta(seconds=1.0), 0.3
LOST_S = 3.0
"""When people are gone they are still followed for so long."""
SETTLED_S = TrackConfig().stationary_after_s
"""Nothing moves from so long after the people are gone and a vehicle has stopped on."""
HOUR_S = 3600.0


class Run(Struct):
    """Results of one run of the pipeline.

    Attributes:
        events: all, in order.
        still_frames, still_inferences: while nothing moved.
        moving_frames, moving_inferences: while something did.
        tail_inferences: in the last part.
        seconds: it took.
    """

    events: list[EventMessage]
    still_frames: int = 0
    still_inferences: int = 0
    moving_frames: int = 0
    moving_inferences: int = 0
    tail_inferences: int = 0
    seconds: float = 0.0


class Scene:
    """A frame source that renders, stamped with the scene's time."""

    lost = False

    def __init__(self, shots: Iterable[Shot], parts: Sequence[Part], run: Run) -> None:
        self._shots, self._parts, self._run = iter(shots), parts, run
        self._began_ns, self._number = time.monotonic_ns(), 0
        self._is_still, self._is_tail, self._before = False, False, 0
        self.ended = False
        self.pipeline: VideoPipeline | None = None

    def take(self, timeout_s: float) -> Frame | None:
        """The next frame; None at the end."""
        self._count()
        shot = next(self._shots, None)
        if shot is None:
            self.ended = True
            return None
        self._is_still = not self._parts[shot.part].people and shot.into_s >= SETTLED_S
        self._is_tail = shot.part == len(self._parts) - 1
        self._number += 1
        captured_ns = self._began_ns + round(shot.at_s * 1e9)
        return Frame(shot.image, "bench", self._number, captured_ns, BEGAN + timedelta(seconds=shot.at_s))

    def _count(self) -> None:
        if self.pipeline is None or not self._number:
            return
        made = self.pipeline.metrics.inferences - self._before
        self._before += made
        if self._is_tail:
            self._run.tail_inferences += made
        elif self._is_still:
            self._run.still_frames += 1
            self._run.still_inferences += made
        else:
            self._run.moving_frames += 1
            self._run.moving_inferences += made

    def give_back(self, frame: Frame) -> None:
        """Each frame has memory of its own."""


def main() -> None:
    args = arguments()
    parking = Parking(args.clip)
    parts = scene_parts(quick=args.quick)
    compared_s = sum(part.seconds for part in parts)
    free = run(parking.shots(parts), parts, args.model, gate=False)
    tail = [*parts, Part(HOUR_S - compared_s, 0.25 if args.quick else 5.0)]
    gated = run(parking.shots(tail), tail, args.model, gate=True)
    figures = judged(free, gated, parts, parking.places)
    targets = {
        "saved_while_still": ">= 0.95",
        "events_missed": "== 0",
        "events_compared": "> 0",
        "messages_per_hour_of_a_parked_car": "<= 2",
    }
    meets = (
        figures["saved_while_still"] >= 0.95
        and figures["events_missed"] == 0
        and figures["events_compared"] > 0
        and figures["messages_per_hour_of_a_parked_car"] <= 2
    )
    common.conclude("stationary", figures, targets, meets)


def arguments() -> argparse.Namespace:
    parser = common.arguments(__doc__ or "")
    parser.add_argument("--clip", type=Path, default=common.CLIP, help="the packaged clip")
    parser.add_argument("--model", default="nanodet", help="name or path of a detector of persons and vehicles")
    return parser.parse_args()


def scene_parts(*, quick: bool) -> list[Part]:
    """The part of the scene that is compared with the gate off."""
    walk, still = (8.0, 80.0) if quick else (25.0, 300.0)
    return [
        Part(walk, 10.0, people=True, arrives=True),
        Part(still, 5.0),
        Part(walk, 10.0, people=True),
        Part(still / 2, 5.0),
        Part(walk, 10.0, people=True, leaves=True),
        Part(still / 4, 5.0),
    ]


def run(shots: Iterable[Shot], parts: Sequence[Part], model: str, *, gate: bool) -> Run:
    """Take the scene through the pipeline."""
    publish = PublishConfig(snapshot=False)
    decode = DecodeConfig(labels=("person", *VEHICLES), score_threshold=THRESHOLD)
    config = StreamConfig(source="test:", model=model, gate=GateConfig(motion=gate), decode=decode)
    vision, sink = VideoPerception("bench", config, open_model(model)), Sink(updates=True)
    result = Run(sink.events)
    source = Scene(shots, parts, result)
    reporter = Reporter(Topics("vedette", "bench"), "bench", publish, ModelId("bench", ""), sink, sink)
    source.pipeline = VideoPipeline(source, vision, reporter)
    began = time.monotonic()
    source.pipeline.run(threading.Event())
    result.seconds = time.monotonic() - began
    vision.close()
    return result


def at_place(events: Iterable[EventMessage], place: Box) -> list[EventMessage]:
    """Events of tracks of vehicles whose newest box is there, but for the end of the bench."""
    return [
        event
        for event in events
        if event.track.label in VEHICLES
        and event.track.box is not None
        and iou(event.track.box, place) >= SAME_IOU
        and event.reason != "ended"
    ]


def judged(free: Run, gated: Run, parts: Sequence[Part], places: dict[str, Box]) -> dict[str, float]:
    """The figures of the bench."""
    compared = of_the_scene(free.events, parts)
    missed = lost(compared, gated.events)
    for event in missed:
        print(f"missed: {event.kind} {event.track.label} at {event.captured_at} {event.track.box}")
    messages = {f"messages_{name}": float(len(at_place(gated.events, box))) for name, box in places.items()}
    all_the_time = [count for name, count in messages.items() if name != "messages_comes"]
    return {
        "saved_while_still": 1 - gated.still_inferences / gated.still_frames,
        "still_frames": gated.still_frames,
        "still_inferences": gated.still_inferences,
        "moving_frames": gated.moving_frames,
        "moving_inferences": gated.moving_inferences,
        "last_part_inferences": gated.tail_inferences,
        "events_compared": len(compared),
        "events_missed": len(missed),
        **messages,
        "messages_per_hour_of_a_parked_car": max(all_the_time),
        "free_s": free.seconds,
        "gated_s": gated.seconds,
    }


def of_the_scene(events: Sequence[EventMessage], parts: Sequence[Part]) -> list[EventMessage]:
    """`new` and `end` of what appeared while something moved, as long as something does."""
    appeared = {event.track.id for event in events if event.kind == "new" and moves(event.captured_at, parts)}
    return [
        event
        for event in events
        if event.kind in ("new", "end") and event.track.id in appeared and moves(event.captured_at, parts)
    ]


def moves(at: datetime, parts: Sequence[Part]) -> bool:
    """Return True while people pass or have just passed."""
    at_s, began_s, before = (at - BEGAN).total_seconds(), 0.0, False
    for part in parts:
        if at_s < began_s + part.seconds:
            return part.people or (before and at_s < began_s + LOST_S)
        began_s, before = began_s + part.seconds, part.people
    return False


def lost(wanted: Sequence[EventMessage], found: Sequence[EventMessage]) -> list[EventMessage]:
    """Events of one run without a counterpart in the other; each counterpart counts once."""
    left, missing = list(found), []
    for event in wanted:
        same = next((other for other in left if is_same(event, other)), None)
        if same is None:
            missing.append(event)
        else:
            left.remove(same)
    return missing


def is_same(one: EventMessage, other: EventMessage) -> bool:
    """Compare kind, sort of thing, place and the time at which it was last seen."""
    if one.kind != other.kind or (one.track.label in VEHICLES) != (other.track.label in VEHICLES):
        return False
    if one.track.box is None or other.track.box is None:
        return False
    apart = abs(one.track.last_seen - other.track.last_seen)
    return apart <= SAME_TIME and iou(one.track.box, other.track.box) >= SAME_IOU


if __name__ == "__main__":
    main()
