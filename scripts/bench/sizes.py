"""Size by difficulty: a camera with `variant = "auto"` against one that always runs the largest size of NanoDet.

Each of 64 pictures of COCO is a scene: a camera pans over it slowly, with a sensor's noise. The bundled clip of
walkers, a crowd of small people, is one more, and a bare wall. Both ways see the same pictures in turn, through
the whole eye with the gate off. AP50 is of what is published (scores of 0.5 and more), against COCO's labels; F1
is against what the largest size sees. Scenes follow each other every 64 pictures: a camera that stays loses less
by trying.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any

import accuracy
import common
import cv2
import numpy as np
import psutil
from _coco import ARCHIVE, Picture, pan, read
from msgspec import Struct, field

from agent.compute.cascade.policy import SizeCascade
from agent.compute.cascade.resolution import answer_confidence, detection_f1
from agent.compute.tflite.model import multiply_adds
from agent.compute.tflite.read import read_modelfile
from agent.compute.vision import VideoPerception
from agent.config.stream import CascadeConfig, GateConfig, StreamConfig
from agent.models.library import open_model, open_whole_model
from agent.types import Detection, Frame, Image

_BUDGET_MS = 1000.0
"""So much that only confidence decides."""
_SCENE = 64
"""Pictures of a scene."""
_EVERY_NS = 100_000_000


class Run(Struct):
    """What one way of looking gave."""

    vision: VideoPerception
    seen: list[list[Detection]] = field(default_factory=list)
    ran: Counter[str] = field(default_factory=Counter)
    ns: int = 0

    def look(self, image: Image, number: int) -> None:
        """One more picture."""
        frame = Frame(image, "bench", number, number * _EVERY_NS, datetime.now(UTC))
        seen = self.vision.process(frame)
        assert seen.detections is not None
        self.seen.append(seen.detections)
        self.ns += seen.stages.prepare + seen.stages.infer + seen.stages.decode


def main() -> None:
    args = arguments()
    costs = effort(args.model)
    pictures = list(read(args.data / ARCHIVE))[:: 6 if args.quick else 1]
    shown = [seen for seed, picture in enumerate(pictures) for seen in pan(picture, _SCENE, seed)]
    figures = {"pictures": float(len(shown))}
    adaptive, always = compare(args.model, shown, lambda picture: picture.image)
    figures |= told("", adaptive, always, costs)
    figures["ap50_always"], figures["ap50_adaptive"] = (published(shown, run) for run in (always, adaptive))
    figures["ap50_lost"] = figures["ap50_always"] - figures["ap50_adaptive"]
    figures |= told("walkers_", *compare(args.model, walkers(quick=args.quick), lambda image: image), costs)
    figures |= told("empty_", *compare(args.model, walls(200), lambda image: image), costs)
    policy_ns = cascade_ns(args.model)
    figures["cascade_us"] = policy_ns / 1e3
    figures["cascade_share"] = policy_ns / (always.ns / len(always.seen))
    resident = {variant: common.child("sizes:resident", args.model, variant)["mb"] for variant in ("", "auto")}
    figures["resident_more_mb"] = resident["auto"] - resident[""]
    targets = {
        "multiply_adds_ratio": "<= 0.75",
        "time_ratio": "<= 0.75",
        "ap50_lost": "<= 0.01",
        "walkers_time_ratio": "<= 1.05",
        "cascade_share": "<= 0.02",
    }
    meets = all(figures[name] <= float(text[3:]) for name, text in targets.items())
    common.conclude("sizes", figures, targets, meets)


def arguments() -> argparse.Namespace:
    parser = common.arguments(__doc__ or "")
    common.data_argument(parser)
    parser.add_argument("--model", default="nanodet", help="name or path of a model of COCO's classes with sizes")
    args = parser.parse_args()
    common.needed(args.data / ARCHIVE)
    return args


def effort(name: str) -> dict[str, int]:
    """Multiply-adds of each size."""
    model = open_whole_model(name)
    file = read_modelfile(model.content)
    return {variant.name: multiply_adds(file, variant.signature) for variant in model.manifest.variants}


def opened(model: str, variant: str) -> Run:
    """An eye whose inferences are counted."""
    config = StreamConfig(
        "test:",
        model,
        variant=variant,
        threads=1,
        gate=GateConfig(motion=False),
        cascade=CascadeConfig(budget_ms=_BUDGET_MS),
    )
    run = Run(VideoPerception("bench", config, open_model(model, variant)))
    session, invoke = run.vision.session, run.vision.session.invoke

    def counted() -> None:
        run.ran[session.variant] += 1
        invoke()

    session.invoke = counted  # type: ignore[method-assign]
    return run


def compare(model: str, shown: Iterable[Any], image: Callable[[Any], Image]) -> tuple[Run, Run]:
    """Adaptive and always the largest, on the same pictures in turn."""
    adaptive, always = opened(model, "auto"), opened(model, "")
    for number, picture in enumerate(shown):
        for run in (adaptive, always) if number % 2 else (always, adaptive):
            run.look(image(picture), number)
    return adaptive, always


def told(prefix: str, adaptive: Run, always: Run, costs: dict[str, int]) -> dict[str, float]:
    """Figures of both against each other."""
    count, largest = len(always.seen), max(costs, key=lambda name: costs[name])
    spent = sum(costs[variant] * times for variant, times in adaptive.ran.items())
    matched = sum(
        detection_f1(mine, theirs) * (len(mine) + len(theirs))
        for mine, theirs in zip(adaptive.seen, always.seen, strict=True)
    )
    boxes = sum(map(len, adaptive.seen)) + sum(map(len, always.seen))
    figures = {
        "multiply_adds_ratio": spent / count / costs[largest],
        "time_ratio": adaptive.ns / always.ns,
        "ms": adaptive.ns / count / 1e6,
        "f1": matched / boxes if boxes else 1.0,
    }
    figures |= {f"share_{variant}": times / count for variant, times in adaptive.vision.used.items()}
    print(
        f"{prefix or 'pans_'}: ran {dict(adaptive.ran)}, answered {adaptive.vision.used} of {count}", flush=True
    )
    return {prefix + name: value for name, value in figures.items()}


def published(shown: list[Picture], run: Run) -> float:
    """AP50 of what was told."""
    numbers = {label: number for number, label in enumerate(run.vision.model.manifest.output.labels)}
    found = [
        accuracy.in_coco(number, numbers[detection.label], detection, picture.image.shape)
        for number, (picture, detections) in enumerate(zip(shown, run.seen, strict=True))
        for detection in detections
    ]
    return accuracy.average_precision(accuracy.ground_truth(shown), found)[1]


def walkers(*, quick: bool) -> list[Image]:
    """The bundled clip."""
    clip, images = cv2.VideoCapture(str(common.CLIP)), []
    while (read := clip.read())[0]:
        images.append(read[1].astype("uint8", copy=False))
    return images[: 100 if quick else None]


def walls(count: int) -> list[Image]:
    """Nothing but a sensor's noise."""
    random = np.random.default_rng(0)
    return [random.normal(128.0, 3.0, (480, 640, 3)).astype(np.uint8) for _ in range(count)]


def cascade_ns(model: str, rounds: int = 20_000) -> float:
    """What the policy costs a picture with six candidates on which two sizes look, ns."""
    variants = open_whole_model(model).manifest.climbed("auto")
    cascade, scores = SizeCascade(variants, 10**9), [0.9, 0.8, 0.6, 0.4, 0.3, 0.26]
    began = time.perf_counter_ns()
    for _ in range(rounds):
        first = cascade.begin(0.5)
        cascade.record_latency(first, 1000)
        sure = cascade.is_confident(first, answer_confidence(scores, 0.5))
        larger = cascade.larger(first, sure=sure, spent_ns=1000)
        if larger is not None:
            cascade.record_latency(larger, 1000)
        cascade.settle(first, larger or first, sure=sure)
    return (time.perf_counter_ns() - began) / rounds


def resident(model: str, variant: str) -> None:
    """Resident set after some pictures, MB."""
    run = opened(model, variant)
    for number, wall in enumerate(walls(20)):
        run.look(wall, number)
    print(json.dumps({"mb": psutil.Process().memory_info().rss / 1024**2}))


if __name__ == "__main__":
    main()
