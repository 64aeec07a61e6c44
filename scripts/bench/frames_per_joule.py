"""Frames handled per CPU second and per joule: gate, stride and sizes against the largest model on every frame.

The scene is that of the bench `stationary`, ten minutes of it at ten frames per second: half of the time people
walk past parked cars, of which one comes and goes, and half of the time nothing moves. It goes through the real
pipeline and the real model twice, on the scene's own time: with 416 pixels on every frame, and with the gate and
the budget (stride and size) that the governor would set under load. The budget is the cheapest that keeps the
events in the first half of the clip; it is judged on the second half, as filmed and mirrored.

Events are the beginnings and ends of visits: of tracks of the first run that live for a second or longer. A
beginning is kept if the other run follows the same sort of thing at the same place within a second after it, an
end if it does so within the last second before it. Beside it stands how many messages of all tracks, also of
those that flicker around the threshold, have a counterpart in the sense of `stationary`.

CPU time is that of gate, model, tracker and reports, without rendering the scene and without a camera. The energy
is an estimate for a Raspberry Pi 4B: idle power and power per busy core as others have measured them, and CPU
time scaled by the predicted time of NanoDet there.
"""

from __future__ import annotations

import argparse
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from statistics import median

import common
from _parking import Parking, Part, Shot
from _stillness import BEGAN
from gate import Sink
from msgspec import Struct
from stationary import SAME_IOU, THRESHOLD, VEHICLES, Run, Scene, lost, moves, of_the_scene

from agent.board.power import POWER_MODELS
from agent.comms.messages import EventMessage, ModelId
from agent.comms.reporter import Reporter
from agent.comms.topics import Topics
from agent.compute.infer.backends import open_session
from agent.compute.infer.session import CPU, SessionOptions
from agent.compute.track.association import iou
from agent.compute.vision import VideoPerception
from agent.config import DecodeConfig, GateConfig, PublishConfig, StreamConfig
from agent.daemon.pipeline import VideoPipeline
from agent.models.library import open_model
from agent.models.predict import predict_model
from agent.types import Frame, StreamBudget, Track

FPS = 10.0
FULL = StreamBudget(variant="416")
BUDGETS = tuple(
    StreamBudget(stride=stride, variant=variant) for variant in ("416", "320", "256") for stride in (1, 2, 3)
)
"""What the governor can choose of, without strides that it takes under need only."""
QUICK_BUDGETS = BUDGETS[:2]
VISIT_S = 1.0
"""Shorter tracks are no visits: they flicker around the threshold. Also the tolerance of an event, s."""
KEPT = 0.99
FACTOR = 2.7
PI4 = POWER_MODELS["raspberrypi,4-model-b"]


class Spent(Struct):
    """Costs of a run.

    Attributes:
        frames, cpu_s: by whether people pass in the part: number, and CPU time, s.
        inferences: in all.
    """

    frames: dict[bool, int]
    cpu_s: dict[bool, float]
    inferences: int = 0

    @property
    def per_s(self) -> float:
        """Frames per CPU second."""
        return sum(self.frames.values()) / sum(self.cpu_s.values())


class Outcome(Struct):
    """What a run has found.

    Attributes:
        messages: events as they were sent.
        alive: announced tracks by id after each frame.
        spent: its costs.
    """

    messages: list[EventMessage]
    alive: list[dict[str, Track]]
    spent: Spent


class MeteredScene(Scene):
    """A scene that charges CPU time to its parts, without that of rendering, and keeps each frame's tracks."""

    def __init__(
        self, shots: Iterable[Shot], parts: Sequence[Part], outcome: Outcome, vision: VideoPerception
    ) -> None:
        super().__init__(self._metered(shots), parts, Run(outcome.messages))
        self._kinds, self._outcome, self._vision = parts, outcome, vision
        self._since_s, self._busy, self._has_begun = time.process_time(), parts[0].people, False

    def _metered(self, shots: Iterable[Shot]) -> Iterator[Shot]:
        for shot in shots:
            self._busy = self._kinds[shot.part].people
            self._outcome.spent.frames[self._busy] += 1
            yield shot

    def take(self, timeout_s: float) -> Frame | None:
        self._outcome.spent.cpu_s[self._busy] += time.process_time() - self._since_s
        if self._has_begun:
            self._outcome.alive.append({track.id: track for track in self._vision.tracker.tracks()})
        self._has_begun = True
        frame = super().take(timeout_s)
        self._since_s = time.process_time()
        return frame


def main() -> None:
    args = arguments()
    budget = chosen(args) if args.budget is None else parsed(args.budget)
    tally, full, governed = Tally(), Spent({}, {}), Spent({}, {})
    for mirrored in (False, True):
        scene = Parking(args.clip, section=(0.5, 1.0), mirrored=mirrored)
        parts = scene_parts(args.seconds / 2)
        wanted = run(scene, parts, args.model, FULL, gate=False)
        found = run(scene, parts, args.model, budget, gate=True)
        full, governed = added(full, wanted.spent), added(governed, found.spent)
        tally.add(wanted, found, parts)
    conclude(budget, full, governed, tally, args.model)


class Tally(Struct):
    """Counts of events: compared and missed; only in the governed run; and of messages compared and missed."""

    compared: int = 0
    missed: int = 0
    extra: int = 0
    messages: int = 0
    messages_missed: int = 0

    def add(self, wanted: Outcome, found: Outcome, parts: Sequence[Part]) -> None:
        """Compare two runs of a scene."""
        events = visit_events(wanted, parts)
        missed = [event for event in events if not event.is_followed(wanted, found)]
        for event in missed:
            print(
                f"missed: {event.kind} {event.track.label} after {event.frame / FPS:.1f} s at {event.track.box}"
            )
        others = visit_events(found, parts)
        messages = of_the_scene(wanted.messages, parts)
        self.compared, self.missed = self.compared + len(events), self.missed + len(missed)
        self.extra += sum(not event.is_followed(found, wanted) for event in others)
        self.messages += len(messages)
        self.messages_missed += len(lost(messages, found.messages))

    @property
    def kept(self) -> float:
        """Share of the events that were kept."""
        return 1 - self.missed / max(1, self.compared)


class VisitEvent(Struct):
    """Beginning or end of a visit: the frame after which it is seen, and the track then."""

    kind: str
    frame: int
    track: Track

    def is_followed(self, wanted: Outcome, found: Outcome) -> bool:
        """Return True if another run follows this thing in the second after its beginning, or before its end."""
        reach = round(VISIT_S * FPS)
        frames = range(self.frame, self.frame + reach + 1)
        if self.kind == "end":
            frames = range(self.frame - reach, self.frame + 1)
        return any(
            is_same_thing(mine, other)
            for number in frames
            if 0 <= number < min(len(wanted.alive), len(found.alive))
            for mine in [wanted.alive[number].get(self.track.id, self.track)]
            for other in found.alive[number].values()
        )


def is_same_thing(one: Track, other: Track) -> bool:
    """Return True if two tracks have one sort of thing at one place."""
    if one.box is None or other.box is None or (one.label in VEHICLES) != (other.label in VEHICLES):
        return False
    return iou(one.box, other.box) >= SAME_IOU


def visit_events(outcome: Outcome, parts: Sequence[Part]) -> list[VisitEvent]:
    """Beginnings and ends of visits, as far as something moves then."""
    first, last = dict[str, tuple[int, Track]](), dict[str, Track]()
    for number, tracks in enumerate(outcome.alive):
        for name, track in tracks.items():
            first.setdefault(name, (number, track))
            last[name] = track
    events = []
    for name, (number, track) in first.items():
        end = last[name]
        if (end.last_seen - end.first_seen).total_seconds() < VISIT_S or not moves(track.last_seen, parts):
            continue
        events.append(VisitEvent("new", number, track))
        seen = round((end.last_seen - BEGAN).total_seconds() * FPS)
        if moves(end.last_seen, parts) and seen < len(outcome.alive) - 1:
            events.append(VisitEvent("end", seen, end))
    return events


def arguments() -> argparse.Namespace:
    parser = common.arguments(__doc__ or "")
    parser.add_argument("--clip", type=Path, default=common.CLIP, help="the packaged clip")
    parser.add_argument("--model", default="nanodet", help="name of a detector with the sizes 416, 320 and 256")
    parser.add_argument("--budget", help="VARIANT/STRIDE, such as 416/2, in place of the one that is chosen")
    parser.add_argument("--seconds", type=float, help="length of the scene, s; default: 600, with --quick 60")
    args = parser.parse_args()
    args.seconds = args.seconds or (60.0 if args.quick else 600.0)
    return args


def parsed(text: str) -> StreamBudget:
    """The budget of the switch."""
    variant, _, stride = text.partition("/")
    return StreamBudget(stride=int(stride or 1), variant=variant)


def chosen(args: argparse.Namespace) -> StreamBudget:
    """The cheapest budget that keeps the events in the first half of the clip; else 416 on every frame."""
    scene = Parking(args.clip, section=(0.0, 0.5))
    parts = scene_parts(20.0 if args.quick else 90.0)
    wanted = run(scene, parts, args.model, FULL, gate=False)
    best, best_per_s = FULL, 0.0
    for budget in QUICK_BUDGETS if args.quick else BUDGETS:
        found, tally = run(scene, parts, args.model, budget, gate=True), Tally()
        tally.add(wanted, found, parts)
        per_s = found.spent.per_s
        print(f"{budget.variant}/{budget.stride}: {per_s:.0f} frames per CPU second, {tally.kept:.1%} of events")
        if tally.kept >= KEPT and per_s > best_per_s:
            best, best_per_s = budget, per_s
    return best


def scene_parts(seconds: float) -> list[Part]:
    """Half busy, half still, in turns; the second vehicle arrives and leaves."""
    turn = seconds / 6
    return [
        Part(turn, FPS, people=True, arrives=True),
        Part(turn, FPS),
        Part(turn, FPS, people=True),
        Part(turn, FPS),
        Part(turn, FPS, people=True, leaves=True),
        Part(turn, FPS),
    ]


def run(scene: Parking, parts: Sequence[Part], model: str, budget: StreamBudget, *, gate: bool) -> Outcome:
    """Take the scene through the pipeline."""
    publish = PublishConfig(snapshot=False)
    decode = DecodeConfig(labels=("person", *VEHICLES), score_threshold=THRESHOLD)
    config = StreamConfig(source="test:", model=model, gate=GateConfig(motion=gate), decode=decode, threads=1)
    vision, sink = VideoPerception("bench", config, open_model(model)), Sink(updates=True)
    vision.set_budget(budget)
    outcome = Outcome(sink.events, [], Spent({False: 0, True: 0}, {False: 0.0, True: 0.0}))
    source = MeteredScene(scene.shots(parts), parts, outcome, vision)
    reporter = Reporter(Topics("vedette", "bench"), "bench", publish, ModelId("bench", ""), sink, sink)
    source.pipeline = VideoPipeline(source, vision, reporter, publish)
    source.pipeline.run(threading.Event())
    outcome.spent.inferences = source.pipeline.metrics.inferences
    vision.close()
    return outcome


def added(one: Spent, other: Spent) -> Spent:
    """The sum of two runs."""
    return Spent(
        {kind: one.frames.get(kind, 0) + count for kind, count in other.frames.items()},
        {kind: one.cpu_s.get(kind, 0.0) + cpu_s for kind, cpu_s in other.cpu_s.items()},
        one.inferences + other.inferences,
    )


def conclude(budget: StreamBudget, full: Spent, governed: Spent, tally: Tally, model: str) -> None:
    """Print the figures."""
    per_kind = {
        f"{name}_factor": (full.cpu_s[kind] / full.frames[kind]) / (governed.cpu_s[kind] / governed.frames[kind])
        for kind, name in ((True, "busy"), (False, "still"))
    }
    factor, kept = governed.per_s / full.per_s, tally.kept
    figures = {
        "frames_per_cpu_s_factor": factor,
        **per_kind,
        "frames_per_cpu_s": governed.per_s,
        "frames_per_cpu_s_416_always": full.per_s,
        "events_kept": kept,
        "events_compared": tally.compared,
        "events_missed": tally.missed,
        "events_extra": tally.extra,
        "messages_kept": 1 - tally.messages_missed / max(1, tally.messages),
        "messages_compared": tally.messages,
        "stride": budget.stride,
        "variant": int(budget.variant),
        "inferences": governed.inferences,
        "inferences_416_always": full.inferences,
        **energies(full, governed, model),
    }
    targets = {
        "frames_per_cpu_s_factor": f">= {FACTOR}",
        "events_kept": f">= {KEPT}",
        "events_compared": "> 0",
    }
    print(f"power of a Pi 4B: {PI4.idle_w} W idle, {PI4.core_w:.3f} W a core; source: {PI4.source}")
    common.conclude(
        "frames_per_joule", figures, targets, factor >= FACTOR and kept >= KEPT and tally.compared > 0
    )


def energies(full: Spent, governed: Spent, model: str) -> dict[str, float]:
    """Estimates for a Pi 4B: CPU time scaled by what an inference takes there, and the published power."""
    (variant,) = predict_model(model, "pi4b", variant=FULL.variant).variants
    there_s, here_s = variant.predictions[0].ms / 1e3, inference_cpu_s(model)
    found = {"estimated_pi4b_inference_ms": there_s * 1e3, "inference_cpu_ms": here_s * 1e3}
    for name, spent in (("", governed), ("_416_always", full)):
        frames, cpu_s = sum(spent.frames.values()), sum(spent.cpu_s.values()) * there_s / here_s
        joules = PI4.joules(cpu_s, frames / FPS)
        found[f"estimated_pi4b_cores{name}"] = cpu_s * FPS / frames
        found[f"estimated_pi4b_frames_per_joule{name}"] = frames / joules
        found[f"estimated_pi4b_frames_per_joule_above_idle{name}"] = frames / (PI4.core_w * cpu_s)
    return found


def inference_cpu_s(model: str) -> float:
    """CPU time of an inference at 416 here, with one thread, s: the median of some."""
    session = open_session(open_model(model), CPU, SessionOptions(variant=FULL.variant, threads=1))
    times = []
    for _ in range(31):
        began_s = time.process_time()
        session.invoke()
        times.append(time.process_time() - began_s)
    session.close()
    return median(times)


if __name__ == "__main__":
    main()
