"""Drift of a model's answers: days of staged cameras, of which some get worse, through `AnswerDrift`.

What `nanodet` finds in COCO photographs, in ordinary light (brighter, darker, noisy, compressed) and with a
fault, is drawn at random: a place is twelve photographs, some of them more frequent; a day is 30 to 120 objects
of these in one light, with weekends on which other photographs are frequent. After fourteen days or more a fault
begins: dirt, haze, a lens out of focus, noise of a bad sensor, a smaller model, or other objects. The limits were
tuned on the other half of the photographs (`--tune`).
"""

from __future__ import annotations

import io
import random
import sys
import tarfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import common
import cv2
import numpy as np

from agent.features.condition.answers import AnswerDrift
from agent.types import Event, Track

AT = datetime(2026, 11, 28, 12, tzinfo=UTC)
LIGHTS = 6
DAYS = 7
"""Days within which a fault is to be told."""
FAULTS = ("dirt", "haze", "focus", "noise", "smaller model", "others")
TARGETS = {
    "found": ">= 0.9 told within a week of faults that lower the score by 0.06 or change a quarter of the labels",
    "false_per_year": "<= 0.5 false alarms of a camera in a year",
}

Found = list[tuple[str, float]]
"""Label and score of the objects in a photograph."""


def main() -> None:
    parser = common.arguments(__doc__ or "")
    parser.add_argument("--data", type=Path, required=True, help="folder with coco64_dev.tar")
    parser.add_argument(
        "--tune", action="store_true", help="use the half of the photographs that limits are tuned on"
    )
    args = parser.parse_args()
    photographs = list(read_photographs(args.data))[0 if args.tune else 1 :: 2]
    photographs = photographs[:12] if args.quick else photographs
    answers = [answers_of(photograph) for photograph in photographs]
    places, quiet_days = (8, 60) if args.quick else (100, 150)
    figures = false_alarms(answers, places, quiet_days)
    tried = {fault: [stage(answers, fault, seed) for seed in range(places)] for fault in FAULTS}
    for fault, results in tried.items():
        counted = [told for told, is_large in results if is_large]
        name = fault.replace(" ", "_")
        figures |= {f"{name}_staged": len(counted), f"{name}_found": sum(counted) / max(1, len(counted))}
        figures[f"{name}_small_told"] = sum(told for told, is_large in results if not is_large)
    large = [told for results in tried.values() for told, is_large in results if is_large]
    figures["found"] = sum(large) / max(1, len(large))
    common.conclude("drift", figures, TARGETS, figures["found"] >= 0.9 and figures["false_per_year"] <= 0.5)


def read_photographs(folder: Any) -> Iterator[Any]:
    with tarfile.open(common.needed(folder / "coco64_dev.tar")) as tar:
        for member in sorted((one for one in tar if one.name.endswith(".jpg")), key=lambda one: one.name):
            content = tar.extractfile(member)
            assert content is not None
            yield cv2.imdecode(np.frombuffer(io.BytesIO(content.read()).read(), np.uint8), cv2.IMREAD_COLOR)


def answers_of(photograph: Any) -> dict[str, list[Found]]:
    """Return what is found in a photograph in each light, ordinary and with each fault."""
    random_ = np.random.default_rng(int(photograph.sum()) % 2**32)
    found: dict[str, list[Found]] = {"usual": [], **{fault: [] for fault in FAULTS[:-1]}}
    for light in range(LIGHTS):
        usual = in_light(photograph, light, random_)
        found["usual"].append(detect(usual, "416"))
        for fault in FAULTS[:-1]:
            found[fault].append(
                detect(spoil(usual, fault, random_), "256" if fault == "smaller model" else "416")
            )
    print(".", end="", file=sys.stderr, flush=True)
    return found


def in_light(picture: Any, light: int, random_: Any) -> Any:
    gamma = (0.6, 0.75, 0.9, 1.1, 1.35, 1.7)[light]
    bent = 255.0 * (picture / 255.0) ** gamma + random_.normal(0.0, 2.0 + light, picture.shape)
    coded = cv2.imencode(".jpg", bent.clip(0, 255).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, 60 + 6 * light])[
        1
    ]
    return cv2.imdecode(coded, cv2.IMREAD_COLOR)


def spoil(picture: Any, fault: str, random_: Any) -> Any:
    if fault == "focus":
        return cv2.GaussianBlur(picture, (0, 0), 3.0)
    if fault == "haze":
        return (picture * 0.35 + 140.0).clip(0, 255).astype(np.uint8)
    if fault == "noise":
        return (picture + random_.normal(0.0, 40.0, picture.shape)).clip(0, 255).astype(np.uint8)
    if fault == "dirt":
        spots = np.zeros(picture.shape[:2], np.float32)
        for _ in range(14):
            place = [int(random_.integers(0, side)) for side in picture.shape[1::-1]]
            cv2.circle(spots, place, int(random_.integers(20, 70)), 1.0, -1)
        spots = cv2.GaussianBlur(spots, (0, 0), 9.0)[..., None] * 0.9
        return (picture * (1.0 - spots) + 60.0 * spots).astype(np.uint8)
    return picture


_open: dict[str, Any] = {}


def detect(picture: Any, variant: str) -> Found:
    from agent.compute.vision import VideoPerception
    from agent.config import GateConfig, StreamConfig
    from agent.models.library import open_model
    from agent.types import Frame

    if variant not in _open:
        config = StreamConfig("", "nanodet", variant=variant, gate=GateConfig(motion=False))
        _open[variant] = VideoPerception("bench", config, open_model("nanodet", variant))
    result = _open[variant].process(Frame(np.ascontiguousarray(picture), "bench", 0, 1, AT))
    return [(one.label, one.score) for one in result.detections or ()]


class Place:
    """A camera: what it sees in a day."""

    def __init__(self, answers: list[dict[str, list[Found]]], seed: int) -> None:
        self._random = random.Random(seed)
        at = self._random.sample(range(len(answers)), min(12, len(answers)))
        self._photographs = [answers[number] for number in at]
        self._weights = [[self._random.uniform(0.2, 1.0) for _ in at] for _ in range(2)]
        self._other = [answers[number] for number in range(len(answers)) if number not in at][
            :4
        ] or self._photographs
        self._hours = 0

    def day(self, kind: str = "usual") -> Found:
        rest, weights = self._hours % 168 >= 120, self._weights
        count, found = self._random.randint(30, 120), []
        light = self._random.randrange(LIGHTS - 1)
        for _ in range(2000):
            pick = self._random.choices(self._photographs, weights[rest])[0]
            if kind == "others" and self._random.random() < 0.6:
                pick = self._random.choice(self._other)
            objects = pick["usual" if kind == "others" else kind][light + self._random.randrange(2)]
            if objects:
                found.append(self._random.choice(objects))
            if len(found) == count:
                break
        self._hours += 24
        return found


class Camera:
    """A place with its `AnswerDrift`."""

    def __init__(self, answers: list[dict[str, list[Found]]], seed: int) -> None:
        self.place, self.drift, self._days = Place(answers, seed), AnswerDrift("bench"), 0
        self.drift.pass_time(0)
        self.scores: dict[str, list[float]] = {}
        self.labels: dict[str, list[str]] = {}

    def live(self, kind: str = "usual") -> str:
        found = self.place.day(kind)
        self.scores.setdefault(kind, []).extend(score for _, score in found)
        self.labels.setdefault(kind, []).extend(label for label, _ in found)
        self.drift.add(
            [Event("end", Track("t", label, score, score, 3, AT, AT), "lost") for label, score in found]
        )
        self._days += 1
        self.drift.pass_time(round(self._days * 24 * 3600e9))
        return self.drift.drifted


def false_alarms(answers: list[dict[str, list[Found]]], places: int, days: int) -> dict[str, float]:
    alarms = 0
    for seed in range(places):
        camera, before = Camera(answers, 10_000 + seed), ""
        for _ in range(days):
            told = camera.live()
            alarms += bool(told) and not before
            before = told
    return {"false_alarms": alarms, "camera_days": places * days, "false_per_year": alarms * 365 / places / days}


def stage(answers: list[dict[str, list[Found]]], fault: str, seed: int) -> tuple[bool, bool]:
    """Return whether a fault is told within a week, and whether it changes much."""
    camera = Camera(answers, seed)
    for _ in range(14 + seed % 14):
        camera.live()
    if camera.drift.drifted:  # a false alarm, which is counted elsewhere
        camera = Camera(answers, seed + 100_000)
        for _ in range(14):
            camera.live()
    told = False
    for _ in range(DAYS):
        told |= bool(camera.live(fault))
    lower = np.mean(camera.scores["usual"]) - np.mean(camera.scores[fault]) if camera.scores[fault] else 1.0
    kinds = [camera.labels[kind] for kind in ("usual", fault)]
    names = {*kinds[0], *kinds[1]}
    others = (
        sum(abs(kinds[0].count(n) / len(kinds[0]) - kinds[1].count(n) / max(1, len(kinds[1]))) for n in names) / 2
    )
    return told, bool(lower >= 0.06 or others >= 0.25)


if __name__ == "__main__":
    main()
