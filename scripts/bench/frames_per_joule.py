"""Frames handled per CPU second and per joule: gate, stride and sizes against the largest model on every frame.

The scene is that of the bench `stationary`, ten minutes of it at ten frames per second: half of the time people
walk past parked cars, of which one comes and goes, and half of the time nothing moves. It goes through the real
pipeline and the real model twice, frame by frame in turns: with 416 pixels on every frame, and with the gate and
the budget (stride and size) that the governor would set under load. The budget is the mildest with which the
first half of the clip reaches the factor; it is judged on the second half, as filmed and mirrored. Beside it
stand the gate alone, and a stride of 3.

Events are the beginnings and ends of visits: of tracks of the first run that live for a second or longer. A
beginning is kept if the other run follows the same sort of thing at the same place within a second after it, an
end if it does so within the last second before it. Beside it stands how many messages of all tracks, also of
those that flicker around the threshold, have a counterpart in the sense of `stationary`.

CPU time is that of gate, model, tracker and reports, without rendering the scene and without a camera. With one
(`camera_…`), the scene is encoded as H.264 before, with a key frame every 2 s: reading and decoding counts, too,
for ours on demand, for the other of everything by OpenCV with one thread. The network is in neither. The energy
is an estimate for a Raspberry Pi 4B: idle power and power per busy core as others have measured them, and CPU
time scaled by the predicted time of NanoDet there.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from queue import Queue
from statistics import median

import common
from _encoded import Run, run_on_demand, run_opencv
from _on_demand import Encoding, encode
from _parking import Parking, Part, Shot
from _stillness import BEGAN
from board_predictor import predict_model
from gate import Sink
from msgspec import Struct
from stationary import SAME_IOU, THRESHOLD, VEHICLES, lost, moves, of_the_scene

from agent.board.power import POWER_MODELS
from agent.comms.messages import EventMessage, ModelId
from agent.comms.reporter import Reporter
from agent.comms.topics import Topics
from agent.compute.infer.backends import open_session
from agent.compute.infer.session import CPU, SessionOptions
from agent.compute.track.state import iou
from agent.compute.vision import VideoPerception
from agent.config import DecodeConfig, GateConfig, PublishConfig, StreamConfig
from agent.config.features import StreamBudget
from agent.daemon.streams.pipeline import VideoPipeline
from agent.models.library import open_model
from agent.types import Frame, Track

FPS = 10.0
FULL = StreamBudget(variant="416")
BUDGETS = (
    *(StreamBudget(stride=stride, variant="416") for stride in (1, 2, 3)),
    *(StreamBudget(stride=3, variant=variant) for variant in ("320", "256")),
)
"""Steps of the governor, the mildest first, without strides that it takes under need only."""
STRONG = BUDGETS[2]
QUICK_BUDGET = "416/3"
"""A short scene needs a stronger one: the gate stays open for seconds after the last movement."""
QUICK_PARTS = [Part(15.0, FPS, people=True, arrives=True), Part(15.0, FPS)]
TUNED_S = 300.0
PATIENCE_S = 120.0
VISIT_S = 1.0
"""Shorter tracks are no visits: they flicker around the threshold. Also the tolerance of an event, s."""
KEPT = 0.99
FACTOR, CAMERA_FACTOR = 2.7, 4.0
QUICK_CAMERA_PARTS = [Part(6.0, FPS, people=True), Part(6.0, FPS)]
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


class Contestant:
    """A pipeline in a thread of its own, as a frame source that is handed one shot after the other.

    CPU time is that of the thread from one shot to the next: the model runs in it, too.

    Attributes:
        outcome: of the shots so far.
        ended, lost: see `agent.capture.source`.
    """

    lost = False

    def __init__(self, model: str, budget: StreamBudget, parts: Sequence[Part], *, gate: bool) -> None:
        self.ended, self._parts = False, parts
        self._shots, self._waits = Queue[Shot | None](1), threading.Semaphore(0)
        self._began_ns, self._number, self._since_s, self._busy = time.monotonic_ns(), 0, 0.0, False
        sink = Sink(updates=True)
        self.outcome = Outcome(sink.events, [], Spent({False: 0, True: 0}, {False: 0.0, True: 0.0}))
        self._vision = opened(model, budget, gate=gate)
        publish = PublishConfig(snapshot=False)
        reporter = Reporter(Topics("vedette", "bench"), "bench", publish, ModelId("bench", ""), sink, sink)
        self._pipeline = VideoPipeline(self, self._vision, reporter)
        self._thread = threading.Thread(target=self._pipeline.run, args=(threading.Event(),), name=budget.variant)
        self._thread.start()
        self._wait()

    def feed(self, shot: Shot) -> None:
        """Hand it a shot, and wait until it asks for the next."""
        self._shots.put(shot)
        self._wait()

    def finish(self) -> Outcome:
        """End it; return what it has found."""
        self._shots.put(None)
        self._thread.join(PATIENCE_S)
        self.outcome.spent.inferences = self._pipeline.metrics.inferences
        self._vision.close()
        return self.outcome

    def _wait(self) -> None:
        if not self._waits.acquire(timeout=PATIENCE_S):
            raise SystemExit("a pipeline hangs or has failed")

    def take(self, timeout_s: float) -> Frame | None:
        """The next frame; None at the end."""
        if self._number:
            self.outcome.spent.cpu_s[self._busy] += time.thread_time() - self._since_s
            self.outcome.alive.append({track.id: track for track in self._vision.tracker.tracks()})
        self._waits.release()
        shot = self._shots.get()
        if shot is None:
            self.ended = True
            return None
        self._number, self._busy = self._number + 1, self._parts[shot.part].people
        self.outcome.spent.frames[self._busy] += 1
        captured_ns, at = self._began_ns + round(shot.at_s * 1e9), BEGAN + timedelta(seconds=shot.at_s)
        frame = Frame(shot.image, "bench", self._number, captured_ns, at)
        self._since_s = time.thread_time()
        return frame

    def give_back(self, frame: Frame) -> None:
        """Each frame has memory of its own."""


def opened(model: str, budget: StreamBudget, *, gate: bool) -> VideoPerception:
    """The perception with a budget."""
    decode = DecodeConfig(labels=("person", *VEHICLES), score_threshold=THRESHOLD)
    motion = GateConfig(motion=gate)
    config = StreamConfig("test:", model, variant=budget.variant, gate=motion, decode=decode, threads=1)
    vision = VideoPerception("bench", config, open_model(model, budget.variant))
    vision.set_budget(StreamBudget(stride=budget.stride))
    return vision


def compete(
    scene: Parking, parts: Sequence[Part], model: str, budgets: Sequence[StreamBudget]
) -> tuple[Outcome, list[Outcome]]:
    """Hand each frame of a scene to the full pipeline and to those with the budgets, in turns."""
    full = Contestant(model, FULL, parts, gate=False)
    others = [Contestant(model, budget, parts, gate=True) for budget in budgets]
    for shot in scene.shots(parts):
        for contestant in (full, *others):
            contestant.feed(shot)
    return full.finish(), [other.finish() for other in others]


def main() -> None:
    args = arguments()
    budget = chosen(args) if args.budget is None else parsed(args.budget)
    camera = {} if args.part == "scene" else camera_figures(args, budget)
    if args.part == "camera":
        conclude_camera(camera)
        return
    tallies = [Tally(), Tally(), Tally()]
    full, spent = Spent({}, {}), [Spent({}, {})] * 3
    for mirrored in (False,) if args.quick else (False, True):
        scene = Parking(args.clip, section=(0.5, 1.0), mirrored=mirrored)
        parts = QUICK_PARTS if args.quick else scene_parts(args.seconds / 2)
        wanted, found = compete(scene, parts, args.model, [budget, FULL, STRONG])
        full = added(full, wanted.spent)
        spent = [added(sum_, one.spent) for sum_, one in zip(spent, found, strict=True)]
        for tally, one in zip(tallies, found, strict=True):
            tally.add(wanted, one, parts)
    more = {
        f"{name}_{figure}": value
        for name, tally, one in zip(("gate_alone", "stride_3"), tallies[1:], spent[1:], strict=True)
        for figure, value in (("factor", one.per_s / full.per_s), ("events_kept", tally.kept))
    }
    more |= energies(full, spent[0], args.model) | camera
    conclude(budget, full, spent[0], tallies[0], more)


def camera_figures(args: argparse.Namespace, budget: StreamBudget) -> dict[str, float]:
    """Compare a camera that is decoded on demand with the same one of which OpenCV decodes everything."""
    seconds = args.camera_seconds
    parts = QUICK_CAMERA_PARTS if args.quick else scene_parts(seconds)
    scene, tally, strong_tally = Parking(args.clip, section=(0.5, 1.0)), Tally(), Tally()
    with tempfile.TemporaryDirectory(dir=common.ON_DISK) as folder:
        path = Path(folder, "camera.ts")
        encode(path, (shot.image for shot in scene.shots(parts)), Encoding(fps=round(FPS), gop=round(2 * FPS)))
        wanted = run_opencv(path, opened(args.model, FULL, gate=False), FPS)
        found = run_on_demand(path, opened(args.model, budget, gate=True), FPS)
        strong = run_on_demand(path, opened(args.model, STRONG, gate=True), FPS)
    tally.add(outcome_of(wanted), outcome_of(found), parts)
    strong_tally.add(outcome_of(wanted), outcome_of(strong), parts)
    return {
        "camera_factor": wanted.cpu_s / found.cpu_s,
        "camera_events_kept": tally.kept,
        "camera_events_compared": tally.compared,
        "camera_stride_3_factor": wanted.cpu_s / strong.cpu_s,
        "camera_stride_3_events_kept": strong_tally.kept,
        "camera_frames": wanted.decoded,
        "camera_frames_decoded": found.decoded,
        "camera_inferences": found.inferences,
        "camera_cpu_s": found.cpu_s,
        "camera_cpu_s_opencv_416": wanted.cpu_s,
    }


def outcome_of(run: Run) -> Outcome:
    """Return a run in the form that is compared."""
    return Outcome(run.messages, run.alive, Spent({}, {}))


def camera_meets(figures: dict[str, float]) -> bool:
    """Return True if the camera's figures reach their targets."""
    return figures["camera_factor"] >= CAMERA_FACTOR and figures["camera_events_kept"] >= KEPT


CAMERA_TARGETS = {"camera_factor": f">= {CAMERA_FACTOR}", "camera_events_kept": f">= {KEPT}"}


def conclude_camera(figures: dict[str, float]) -> None:
    """Print the camera's figures alone."""
    common.conclude("frames_per_joule", figures, CAMERA_TARGETS, camera_meets(figures))


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

    @property
    def messages_kept(self) -> float:
        """Share of the messages that have a counterpart."""
        return 1 - self.messages_missed / max(1, self.messages)


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
    parser.add_argument("--seconds", type=float, default=600.0, help="length of the scene, s; --quick: 30")
    parser.add_argument("--part", choices=("scene", "camera"), help="measure this part alone")
    parser.add_argument("--camera-seconds", type=float, default=240.0, help="length of the encoded scene, s")
    args = parser.parse_args()
    args.budget = args.budget or (QUICK_BUDGET if args.quick else None)
    return args


def parsed(text: str) -> StreamBudget:
    """The budget of the switch."""
    variant, _, stride = text.partition("/")
    return StreamBudget(stride=int(stride or 1), variant=variant)


def chosen(args: argparse.Namespace) -> StreamBudget:
    """The mildest budget with which the first half of the clip reaches the factor; else the strongest."""
    parts = scene_parts(TUNED_S)
    wanted, found = compete(Parking(args.clip, section=(0.0, 0.5)), parts, args.model, BUDGETS)
    enough = []
    for budget, outcome in zip(BUDGETS, found, strict=True):
        tally, factor = Tally(), outcome.spent.per_s / wanted.spent.per_s
        tally.add(wanted, outcome, parts)
        print(f"{budget.variant}/{budget.stride}: {factor:.2f} ×, {tally.kept:.1%} of events")
        enough += [budget] if factor >= FACTOR else []
    return (enough or BUDGETS[-1:])[0]


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


def added(one: Spent, other: Spent) -> Spent:
    """The sum of two runs."""
    return Spent(
        {kind: one.frames.get(kind, 0) + count for kind, count in other.frames.items()},
        {kind: one.cpu_s.get(kind, 0.0) + cpu_s for kind, cpu_s in other.cpu_s.items()},
        one.inferences + other.inferences,
    )


def conclude(budget: StreamBudget, full: Spent, governed: Spent, tally: Tally, more: dict[str, float]) -> None:
    """Print the figures, and `more` of them."""
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
        "messages_kept": tally.messages_kept,
        "messages_compared": tally.messages,
        "stride": budget.stride,
        "variant": int(budget.variant),
        "inferences": governed.inferences,
        "inferences_416_always": full.inferences,
        **more,
    }
    targets = {
        "frames_per_cpu_s_factor": f">= {FACTOR}",
        "events_kept": f">= {KEPT}",
        "events_compared": "> 0",
    }
    print(f"power of a Pi 4B: {PI4.idle_w} W idle, {PI4.core_w:.3f} W a core; source: {PI4.source}")
    meets = factor >= FACTOR and kept >= KEPT and tally.compared > 0
    if "camera_factor" in more:
        targets, meets = targets | CAMERA_TARGETS, meets and camera_meets(more)
    common.conclude("frames_per_joule", figures, targets, meets)


def energies(full: Spent, governed: Spent, model: str) -> dict[str, float]:
    """Estimates for a Pi 4B: CPU time scaled by what an inference takes there, and the published power."""
    one_thread = predict_model(model, "pi4b")[FULL.variant][0]
    there_s, here_s = one_thread.ms / 1e3, inference_cpu_s(model)
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
