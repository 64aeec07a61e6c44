"""Fusion of camera, microphone and text on staged scenes, through the real models and the real fusion.

The situation is somebody in view who asks for help: says "five", or sends "help" as text, or both. In other
scenes somebody is in view and says another digit or nothing, or there is nobody and the word is said or sent all
the same. Pictures of people and of other things are of COCO, seen by the bundled detector; digits are held-out
ones, in recorded noise at 0 to 20 dB, heard by small-speech; texts are of several wordings. Each of the three is
away in a tenth of the scenes, as a lost camera is; texts come up to 1.5 s late, from clocks that differ by
seconds, some by an hour.

One half of the scenes, with its own pictures and recordings, gives the thresholds of the single modalities, the
log-odds and their threshold; the other half, with others, gives the figures. Then the
halves change places; figures are means of both, the latency the longest. A scene is told if an event, or a single
modality's evidence with at least its threshold, begins in it. Latency is from the arrival of the newest evidence
that an event rests on to its `new`; CPU is for each piece of evidence, all of the fusion's work.
"""

from __future__ import annotations

import json
import random
import tarfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import _digits
import _sound
import common
import cv2
import numpy as np

from agent.compute.hearing import AudioPerception
from agent.compute.infer.backends import open_session
from agent.compute.vision import VideoPerception
from agent.config import Config, GateConfig, StreamConfig, TextConfig
from agent.errors import ConfigError
from agent.features.fusion.checks import evidence_sources
from agent.features.fusion.expression import EvidenceSource, LogOdds, Rule
from agent.features.fusion.part import ReceivedText, decode_text, said_at
from agent.features.fusion.rules import Condition, Evidence, Fusion, FusionTimes, text_evidence
from agent.features.verification.models import open_verifier
from agent.models.library import open_model
from agent.optimise.late_fusion import Recorded, Span, calibrate, replay, to_moment
from agent.types import AudioChunk, Event, Frame, Image, Samples

RULE = 'front:person and (mic:"five" or gate:"help")'
TIMES = FusionTimes.of_seconds(4.0, 1.0, 1.0, 5.0)
STREAMS = {
    "front": StreamConfig("test:", "nanodet", variant="256", threads=1, gate=GateConfig(motion=False)),
    "mic": StreamConfig("mic:default", "small-speech", threads=1),
}
SOURCES = ("front", "mic", "gate")
WORD, OTHERS = "five", ("one", "two", "four", "six", "seven", "eight", "nine", "zero", "three")
ASKING = ("please help me", "HELP!", '{"text": "need help at the gate", "at": %.3f}', "can anybody help?")
TALKING = ("helpful staff here", "all fine", '{"text": "parcel delivered", "at": %.3f}', "back at five")
SCENE_S, FRAMES, FPS = 16.0, 6, 5.0
AWAY, ABOVE, CPU_MS = 0.1, 0.05, 1.0
START = 1_800_000_000
SECOND = 1_000_000_000


class Scene(NamedTuple):
    """What happens: somebody in view or not, words said and sent, and which sources are away."""

    person: bool
    word: str
    text: str
    away: frozenset[str]

    @property
    def is_situation(self) -> bool:
        return self.person and (self.word == WORD or self.text in ASKING)


class Material(NamedTuple):
    """Pictures with and without people, digits by label, and noise."""

    people: list[Image]
    others: list[Image]
    digits: dict[str, list[Samples]]
    noise: list[Samples]


class Staged(NamedTuple):
    """Scenes, when they are, what became known in the order of arrival, and the situations."""

    scenes: list[Scene]
    spans: list[Span]
    recorded: list[Recorded]
    truth: list[Span]


def main() -> None:
    parser = common.arguments(__doc__ or "")
    common.data_argument(parser)
    given = parser.parse_args()
    count = 80 if given.quick else 300
    halves = [stage(scenes(count, seed), material(given.data, seed), seed) for seed in (0, 1)]
    figures = {"scenes": 2.0 * count, "situations": float(sum(len(half.truth) for half in halves))}
    both = [judged(*order) for order in (halves, halves[::-1])]
    for name in both[0]:
        join = np.max if name.endswith("latency_s") else np.mean
        figures[name] = float(join([one[name] for one in both]))
    singles = {name: figures[name] for name in map("f1_{}".format, SOURCES)}
    fused = {name: value for name, value in figures.items() if name.startswith("f1_") and name not in singles}
    best = max(singles.values())
    figures["best_single"] = best
    figures |= {f"{name.removeprefix('f1_')}_above": value - best for name, value in fused.items()}
    for name, value in figures.items():
        print(f"{name:24} {value:8.4f}")
    limits = {"_above": (">=", ABOVE), "_cpu_ms": ("<=", CPU_MS), "_latency_s": ("<=", TIMES.window / 1e9)}
    targets, meets = {}, True
    for name, value in figures.items():
        for suffix, (sign, limit) in limits.items():
            if name.endswith(suffix):
                targets[name] = f"{sign} {limit:g}"
                meets &= value >= limit if sign == ">=" else value <= limit
    common.conclude("apps/fusion", figures, targets, meets)


def judged(tuning: Staged, half: Staged) -> dict[str, float]:
    """F1 of each modality alone and of each fusion in one half, made on the other; CPU time and latency."""
    figures = {f"f1_{name}": single((tuning, half), name) for name in SOURCES}
    for name, condition in conditions(tuning).items():
        told, cpu_ms, waits = run(condition, half)
        figures[f"f1_{name}"] = f1(half, told)
        figures |= {f"{name}_cpu_ms": cpu_ms, f"{name}_latency_s": max(waits, default=0.0)}
    return figures


def scenes(count: int, seed: int) -> list[Scene]:
    """Draw scenes: two of five are situations."""
    chance = random.Random(seed)
    made = []
    for number in range(count):
        kind = number % 5
        asks = kind != 2  # 0 and 1: the situation; 2: somebody in view who does not ask; 3 and 4: nobody there
        person = kind < 3
        how = chance.choice(("word", "text", "both"))
        word = WORD if asks and how != "text" else chance.choice(("", *OTHERS))
        text = chance.choice(ASKING) if asks and how != "word" else chance.choice(("", *TALKING))
        if kind == 4 and chance.random() < 0.5:
            word, text = "", ""
        away = frozenset(name for name in SOURCES if chance.random() < AWAY)
        made.append(Scene(person, word, text, away))
    chance.shuffle(made)
    return made


def material(data: Path, seed: int) -> Material:
    """Read one half of the pictures, recordings and noises."""
    people, others = pictures(data)
    digits: dict[str, list[Samples]] = {}
    for label, sound in _digits.digits(data, learn=seed == 0):
        digits.setdefault(label, []).append(_sound.trimmed(sound, _digits.RATE))
    return Material(people[seed::2], others[seed::2], digits, _digits.noises(data)[seed::2])


def pictures(data: Path) -> tuple[list[Image], list[Image]]:
    """Pictures of COCO with somebody who covers 4 % or more of it, and those without anybody."""
    people, others = [], []
    with tarfile.open(common.needed(data / "coco64_dev.tar")) as archive:
        files = {member.name: archive.extractfile(member).read() for member in archive if member.isfile()}  # type: ignore[union-attr]
    for name in sorted(name for name in files if name.endswith(".jpg")):
        lines = files.get(name.replace("images/", "labels/").replace(".jpg", ".txt"), b"").decode().splitlines()
        rows = [line.split() for line in lines]
        areas = [float(row[3]) * float(row[4]) for row in rows if row[0] == "0"]
        picture = np.asarray(cv2.imdecode(np.frombuffer(files[name], np.uint8), cv2.IMREAD_COLOR), np.uint8)
        if not areas:
            others.append(picture)
        elif max(areas) >= 0.04:
            people.append(picture)
    return people, others


def stage(made: list[Scene], from_: Material, seed: int) -> Staged:
    """Let scenes happen one after the other; see and hear them."""
    chance = random.Random(seed + 100)
    vision = VideoPerception("front", STREAMS["front"], open_model("nanodet", "256"))
    digits = open_model("small-speech")
    hearing = AudioPerception("mic", STREAMS["mic"], digits)
    if (verifier := open_verifier(digits, open_session)) is not None:
        hearing.verify_with(verifier)
    recorded, spans, truth = [], [], []
    for number, scene in enumerate(made):
        at_s = START + number * SCENE_S
        spans.append((ns(at_s), ns(at_s + SCENE_S) - 1))
        if scene.is_situation:
            truth.append((ns(at_s + 2.0), ns(at_s + 6.0)))
        recorded.append(Recorded(ns(at_s), None, {name: name not in scene.away for name in SOURCES}))
        recorded += seen(vision, scene, from_, at_s + 2.0 + chance.random() * 2.0, chance)
        recorded += heard(hearing, scene, from_, number, at_s, chance)
        recorded += sent(scene, at_s + 2.0 + chance.random() * 3.0, chance)
    vision.close()
    hearing.close()
    return Staged(made, spans, sorted(recorded, key=lambda one: one.at_ns), truth)


def ns(seconds: float) -> int:
    return round(seconds * 1e6) * 1000


def seen(
    vision: VideoPerception, scene: Scene, from_: Material, at_s: float, chance: random.Random
) -> Iterator[Recorded]:
    """Show a picture for a second; what is seen comes with the delay of a network camera."""
    if "front" in scene.away:
        return
    picture = chance.choice(from_.people if scene.person else from_.others)
    delay_s = chance.uniform(0.05, 0.5)
    for number in range(FRAMES):
        captured_ns = ns(at_s + number / FPS)
        frame = Frame(picture, "front", number, captured_ns, to_moment(captured_ns), "bgr", time.monotonic_ns())
        yield from news("front", vision.process(frame).events, captured_ns, delay_s)
    gone_ns = ns(at_s + FRAMES / FPS + 3.0)
    yield from news("front", vision.tracker.tick(gone_ns, to_moment(gone_ns)), gone_ns, delay_s)


def heard(
    hearing: AudioPerception, scene: Scene, from_: Material, number: int, at_s: float, chance: random.Random
) -> Iterator[Recorded]:
    """Let a scene's sound be heard: noise, and a word in it if one is said."""
    rate = _digits.RATE
    sound = _sound.quiet(SCENE_S, rate, 4.0, number)
    begin = round((2.0 + chance.random() * 3.0) * rate)
    if scene.word:
        word = chance.choice(from_.digits[scene.word])
        noise = chance.choice(from_.noise)
        sound[begin : begin + len(word)] = _digits.mixed(word, noise, chance.uniform(0.0, 20.0), number)
    for chunk in _sound.chunks(sound, rate, number * len(sound)):
        captured_ns = ns(at_s + (chunk.end - number * len(sound)) / rate)
        placed = AudioChunk(chunk.samples, rate, "mic", chunk.first, captured_ns, to_moment(captured_ns))
        events = hearing.process(placed).events
        if "mic" not in scene.away:
            yield from news("mic", events, captured_ns, 0.05)


def news(stream: str, events: Sequence[Event], at_ns: int, delay_s: float) -> Iterator[Recorded]:
    """What a stream's events become in the daemon, at their arrival."""
    for event in events:
        from_ns = round(event.track.first_seen.timestamp() * 1e6) * 1000
        yield Recorded(at_ns + ns(delay_s), Evidence.of_event(stream, event, min(from_ns, at_ns), at_ns))


def sent(scene: Scene, at_s: float, chance: random.Random) -> Iterator[Recorded]:
    """Send a text, from a clock that differs, and some time under way."""
    if not scene.text or "gate" in scene.away:
        return
    ahead_s = 3600.0 if chance.random() < 0.1 else chance.gauss(0.0, 1.0)
    arrives_s = at_s + chance.uniform(0.0, 1.5)
    payload = scene.text % (at_s + ahead_s) if "%" in scene.text else scene.text
    text: ReceivedText = decode_text(payload.encode())
    arrived: datetime = to_moment(ns(arrives_s))
    said: datetime = said_at(text, arrived)
    said_ns = ns(arrives_s) - round((arrived - said) / timedelta(microseconds=1)) * 1000
    for evidence in text_evidence(Rule(RULE, sources()).terms, "gate", text.text, said_ns):
        yield Recorded(ns(arrives_s), evidence)


def sources() -> dict[str, EvidenceSource]:
    return evidence_sources(Config(streams=STREAMS, text={"gate": TextConfig()}))


def conditions(tuning: Staged) -> dict[str, Condition]:
    """The rule, and log-odds made on one half, with the threshold that is best there."""
    rule = Rule(RULE, sources())
    calibration = calibrate(tuning.recorded, tuning.truth, rule.terms, TIMES)
    print(json.dumps({one.term: [one.absent, one.present, one.score] for one in calibration.terms}))
    print(f"held out: log loss {calibration.log_loss}, calibration error {calibration.calibration_error}")
    odds = best_threshold(lambda threshold: LogOdds(calibration, threshold, sources()), tuning)
    return {"rule": rule, "odds": odds}


def best_threshold(make: Callable[[float], Condition], tuning: Staged) -> Condition:
    """The condition with the threshold that has the highest F1, of those that need some evidence."""
    found: list[tuple[float, Condition]] = []
    for share in range(2, 20):
        with suppress(ConfigError):
            condition = make(share / 20)
            found.append((f1(tuning, run(condition, tuning)[0]), condition))
    return max(found, key=lambda one: one[0])[1]


def run(condition: Condition, staged: Staged) -> tuple[list[Span], float, list[float]]:
    """Replay scenes; gives the events, the CPU time for each piece of evidence, ms, and the waits, s."""
    fusion = Fusion("call", condition, TIMES, run="bench")
    told: list[Span] = []
    waits: list[float] = []
    arrived = {one.evidence.key: one.at_ns for one in staged.recorded[::-1] if one.evidence}
    begun = time.process_time()
    for at_ns, event in replay(staged.recorded, fusion):
        if event is not None and event.kind == "end":
            told.append((ns(event.track.first_seen.timestamp()), ns(event.track.last_seen.timestamp())))
        elif event is not None and event.kind == "new":
            waits.append(wait_s(event, at_ns, arrived))
    spent = time.process_time() - begun
    pieces = sum(one.evidence is not None for one in staged.recorded)
    return told, 1e3 * spent / pieces, waits


def wait_s(event: Event, at_ns: int, arrived: dict[str, int]) -> float:
    """From the arrival of the last evidence until the event was told, s."""
    sources = tuple(f"{one.source}/" for one in event.track.evidence)
    newest = max(at for key, at in arrived.items() if key.startswith(sources) and at <= at_ns)
    return (at_ns - newest) / 1e9


def f1(staged: Staged, told: Sequence[Span]) -> float:
    """F1 of scenes in which an event begins."""
    begins = sorted(begin for begin, _ in told)
    hits = [any(first <= begin <= last for begin in begins) for first, last in staged.spans]
    return f1_of([(hit, scene.is_situation) for hit, scene in zip(hits, staged.scenes, strict=True)])


def f1_of(pairs: Sequence[tuple[bool, bool]]) -> float:
    right = sum(told and true for told, true in pairs)
    either = sum(told for told, _ in pairs) + sum(true for _, true in pairs)
    return 2.0 * right / either if either else 0.0


def single(halves: Sequence[Staged], source: str) -> float:
    """F1 of one modality alone: its best evidence in a scene, by the threshold that is best in the first half."""
    label = {"front": "person", "mic": WORD, "gate": "help"}[source]
    tuning, judged = (list(zip(best(half, source, label), half.scenes, strict=True)) for half in halves)

    def at(pairs: Sequence[tuple[float, Scene]], threshold: float) -> float:
        return f1_of([(score >= threshold, scene.is_situation) for score, scene in pairs])

    threshold = max((score for score, _ in tuning if score > 0), key=lambda score: at(tuning, score))
    return at(judged, threshold)


def best(staged: Staged, source: str, label: str) -> list[float]:
    """Highest score of a label in each scene; 0: there is none."""
    scores = [0.0] * len(staged.scenes)
    for one in staged.recorded:
        if one.evidence is not None and (one.evidence.source, one.evidence.label) == (source, label):
            number = int((one.evidence.from_ns - ns(START)) / ns(SCENE_S))
            scores[number] = max(scores[number], one.evidence.score)
    return scores


if __name__ == "__main__":
    main()
