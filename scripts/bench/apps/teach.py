"""Teach states from 5 and 10 pictures of each value with the bundled detector, as `vedette teach` does.

Staged scenes in photographs of COCO: a gate, a bin, a light. The pictures of a lesson are taken one after the
other in one light; it is measured by day with shadows and people, at night, which no lesson shows, and with
something strange in front. A head on 16×16 pixels, scaled to one length, is beside it. Then the bundled clip of
a public camera: a place is free or occupied, learned from its first half, measured on the second; a place is
occupied where it differs from the median picture of the clip. Then ten classes of CIFAR-10 from 10 pictures
each, for what the features know of things. Times and memory are those of one thread here. Then words, see
`_words.py`; --float FILE adds the figures of another embedding, such as the float one that
`scripts/build_models/speech_embedding --float FILE` writes. With --quick fewer scenes and speakers.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tarfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import _words
import common
import cv2
import numpy as np
from _scenes import KINDS, NIGHT, WIDTH, Scene
from numpy.typing import NDArray

from agent.compute.states import UNSURE, StateHead, confused_values, leave_one_out, vary
from agent.compute.vision import VideoPerception
from agent.config import GateConfig, StreamConfig
from agent.models.library import open_model
from agent.types import WHOLE, Box, Frame

COCO, CIFAR = "coco64_dev.tar", "cifar10_dev.npz"
SHOTS = (5, 10)
TUNED = 42
"""The first photographs chose the constants of `agent.compute.states`; the others are reported."""
SEED = 2026
SIDE = 0.25
"""Of a place in the bundled clip, as a share of the picture."""
VALUES = ("free", "occupied")
TARGETS = {
    "states_5": ">= 0.95",
    "states_10": ">= 0.98",
    "clip_5": ">= 0.95",
    "clip_10": ">= 0.98",
    "learn_s": "<= 10",
    "cost": "<= 0.05",
    "memory_mb": "<= 6",
    "words_10_at_5_percent": "> 0.76",
    "words_learn_s": "<= 10",
    "words_memory_mb": "<= 6",
}


class Eyes:
    """The bundled detector, one thread, whose features are used."""

    def __init__(self) -> None:
        config = StreamConfig("test:", "nanodet", gate=GateConfig(motion=False), threads=1)
        self.vision = VideoPerception("bench", config, open_model("nanodet"))
        self.infer_s = self.embed_s = 0.0
        self.count = 0

    def embed(self, picture: NDArray[Any], region: Box) -> NDArray[Any]:
        """Embedding of a region of a picture, BGR."""
        frame = Frame(np.ascontiguousarray(picture), "bench", self.count, 0, datetime.now(UTC))
        began = time.perf_counter()
        self.vision.infer_crop(frame, WHOLE)
        inferred = time.perf_counter()
        found = self.vision.embed(region)
        self.infer_s, self.embed_s = (
            self.infer_s + inferred - began,
            self.embed_s + time.perf_counter() - inferred,
        )
        self.count += 1
        return found

    def example(self, picture: NDArray[Any], region: Box) -> NDArray[Any]:
        """A picture with its variations, as a lesson takes it."""
        return np.stack([self.embed(one, region) for one in (picture, *vary(picture))])


def pixels(picture: NDArray[Any], region: Box) -> NDArray[Any]:
    """A region as 16×16 pixels of length 1."""
    height, width = picture.shape[:2]
    x0, y0, x1, y1 = (round(edge * size) for edge, size in zip(region, (width, height) * 2, strict=True))
    small = cv2.resize(picture[y0:y1, x0:x1], (16, 16), interpolation=cv2.INTER_AREA).ravel().astype(np.float32)
    return np.asarray(small / max(1.0, float(np.linalg.norm(small))))


class Tally:
    """Answers by the name of a figure."""

    def __init__(self) -> None:
        self._kept: dict[str, list[float]] = defaultdict(list)

    def add(self, name: str, value: str, nearest: str, right: str) -> None:
        """Count one answer."""
        self._kept[name].append(nearest == right)
        self._kept[f"{name}_unsure"].append(value == UNSURE)
        if value != UNSURE:
            self._kept[f"{name}_when_sure"].append(value == right)

    def add_strange(self, name: str, value: str) -> None:
        """Count an answer to a picture that shows no value."""
        self._kept[name].append(value == UNSURE)

    def figures(self) -> dict[str, float]:
        """Shares."""
        return {name: float(np.mean(some)) for name, some in self._kept.items()}


def learn(taught: Mapping[str, Sequence[NDArray[Any]]]) -> StateHead:
    """A head as the daemon makes it of the examples of each value, which checks them."""
    return StateHead({name: np.concatenate(some) for name, some in taught.items()}, confused_values(taught))


def photographs(data: Path) -> list[NDArray[Any]]:
    """The pictures of COCO in the order of their names, BGR, `WIDTH` wide."""
    found = []
    with tarfile.open(common.needed(data / COCO)) as archive:
        for member in sorted(archive.getmembers(), key=lambda one: one.name):
            file = archive.extractfile(member) if member.name.endswith(".jpg") else None
            if file is not None:
                picture = cv2.imdecode(np.frombuffer(file.read(), np.uint8), cv2.IMREAD_COLOR)
                assert picture is not None
                size = WIDTH, round(picture.shape[0] * WIDTH / picture.shape[1])
                found.append(cv2.resize(picture, size, interpolation=cv2.INTER_AREA))
    return found


def staged(eyes: Eyes, pictures: Sequence[NDArray[Any]], numbers: Sequence[int], tally: Tally) -> None:
    """Teach and ask in every scene."""
    for number in numbers:
        for kind in KINDS:
            scene = Scene(pictures, number, kind, SEED)
            lessons = {name: scene.lesson(value, max(SHOTS)) for value, name in enumerate(("off", "on"))}
            taught = {name: [eyes.example(one, scene.region) for one in some] for name, some in lessons.items()}
            asked = [("day", name, scene.picture(value)) for value, name in enumerate(lessons) for _ in range(8)]
            asked += [
                ("night", name, scene.picture(value, NIGHT))
                for value, name in enumerate(lessons)
                for _ in range(6)
            ]
            seen = [(when, name, eyes.embed(one, scene.region), one) for when, name, one in asked]
            strange = [eyes.embed(scene.covered(), scene.region) for _ in range(4)]
            for shots in SHOTS:
                head = learn({name: some[:shots] for name, some in taught.items()})
                plain = StateHead(
                    {
                        name: np.stack([pixels(one, scene.region) for one in some[:shots]])
                        for name, some in lessons.items()
                    }
                )
                for when, name, embedding, picture in seen:
                    answer, simple = head.classify(embedding), plain.classify(pixels(picture, scene.region))
                    for figure in (f"states_{shots}", f"states_{shots}_{when}", f"{kind}_{shots}"):
                        tally.add(figure, answer.value, answer.nearest, name)
                    tally.add(f"pixels_{shots}", simple.value, simple.nearest, name)
                for embedding in strange:
                    tally.add_strange(f"strange_{shots}_unsure", head.classify(embedding).value)


def clip(eyes: Eyes, tally: Tally) -> None:
    """Places of the bundled clip, free or occupied: all of a grid that are both ten times in either half."""
    capture = cv2.VideoCapture(str(common.CLIP))
    frames = [frame for ok, frame in iter(capture.read, (False, None)) if ok][::3]
    half, median = len(frames) // 2, np.median(np.stack(frames[::4]), axis=0)
    for left, top in ((x, y) for x in np.arange(0, 0.76, 0.125) for y in np.arange(0.1, 0.61, 0.125)):
        place = (float(left), float(top), float(left) + SIDE, float(top) + SIDE)
        named = list(occupied(frames, median, place))
        numbers = {
            (name, late): [n for n, one in named if one == name and (n >= half) is late]
            for name in VALUES
            for late in (False, True)
        }
        if min(map(len, numbers.values())) < max(SHOTS):
            continue
        for shots in SHOTS:
            taught = {name: spread(numbers[name, False], shots) for name in VALUES}
            head = learn({name: [eyes.example(frames[n], place) for n in some] for name, some in taught.items()})
            for name in VALUES:
                for number in numbers[name, True]:
                    answer = head.classify(eyes.embed(frames[number], place))
                    tally.add(f"clip_{shots}", answer.value, answer.nearest, name)


def occupied(frames: Sequence[NDArray[Any]], median: NDArray[Any], place: Box) -> Iterator[tuple[int, str]]:
    """Numbers of frames in which a place is clearly free or occupied, with which of the two."""
    height, width = median.shape[:2]
    x0, y0, x1, y1 = (round(edge * size) for edge, size in zip(place, (width, height) * 2, strict=True))
    for number, frame in enumerate(frames):
        changed = float((np.abs(frame[y0:y1, x0:x1] - median[y0:y1, x0:x1]).max(axis=2) > 40).mean())
        if changed <= 0.001 or changed > 0.015:
            yield number, VALUES[changed > 0.015]


def spread(numbers: Sequence[int], count: int) -> list[int]:
    """So many of them, evenly apart."""
    return [numbers[at] for at in np.linspace(0, len(numbers) - 1, count).astype(int)]


def cifar(eyes: Eyes, data: Path, count: int) -> dict[str, float]:
    """Share of CIFAR-10's test pictures that are told from 10 of each class, of three draws."""
    with np.load(common.needed(data / CIFAR)) as kept:
        sets = {
            part: (kept[f"{part}_jpeg"], kept[f"{part}_offsets"], kept[f"{part}_labels"])
            for part in ("train", "test")
        }
    random, shares = np.random.default_rng(SEED), []

    def read(part: str, index: int) -> NDArray[Any]:
        coded, offsets, _ = sets[part]
        return np.asarray(cv2.imdecode(coded[offsets[index] : offsets[index + 1]], cv2.IMREAD_COLOR))

    tested = random.choice(len(sets["test"][2]), count, replace=False)
    seen = [eyes.embed(read("test", one), WHOLE) for one in tested]
    for _ in range(3):
        taught = {}
        for label in range(10):
            chosen = random.choice(np.flatnonzero(sets["train"][2] == label), 10, replace=False)
            taught[str(label)] = np.stack([eyes.embed(read("train", one), WHOLE) for one in chosen])
        head = StateHead(taught)
        right = [
            head.classify(one).nearest == str(sets["test"][2][at]) for one, at in zip(seen, tested, strict=True)
        ]
        shares.append(float(np.mean(right)))
    return {"cifar10_10": float(np.mean(shares)), "cifar10_10_spread": float(np.ptp(shares))}


def costs(eyes: Eyes, pictures: Sequence[NDArray[Any]]) -> dict[str, float]:
    """Time of a lesson without the wait for its pictures, and what a state costs beside the detector."""
    scene = Scene(pictures, 0, "gate", SEED)
    shown = {name: scene.lesson(value, 10) for value, name in enumerate(("off", "on"))}
    began = time.perf_counter()
    taught = {name: [eyes.example(one, scene.region) for one in some] for name, some in shown.items()}
    head = learn(taught)
    leave_one_out(taught)
    learn_s = time.perf_counter() - began
    eyes.infer_s = eyes.embed_s = 0.0
    told_s = 0.0
    for _ in range(100):
        embedding = eyes.embed(shown["on"][0], scene.region)
        began = time.perf_counter()
        head.classify(embedding)
        told_s += time.perf_counter() - began
    return {"learn_s": learn_s, "cost": (eyes.embed_s + told_s) / eyes.infer_s}


def memory_mb(what: str) -> float:
    """Growth of the resident memory by 16 states of 48 examples, or by 128 words, in a process of its own, MB."""
    done = subprocess.run(
        [sys.executable, __file__, "--memory", what], capture_output=True, text=True, check=True, cwd=common.ROOT
    )
    return float(done.stdout.splitlines()[-1])


def grown() -> float:
    """Memory that the heads of 16 states take after their lessons, MB."""
    random = np.random.default_rng(0)
    eyes = Eyes()
    eyes.example(np.zeros((480, 640, 3), np.uint8), WHOLE)
    before = resident_mb()
    heads = []
    for _ in range(16):
        taught = {
            name: [random.normal(size=(3, 2304)).astype(np.float32) + at for _ in range(24)]
            for at, name in enumerate("ab")
        }
        leave_one_out(taught)
        heads.append(learn(taught))
    return resident_mb() - before


def grown_by_words() -> float:
    """Memory that 16 lessons of eight words leave, MB."""
    ears = _words.Ears()
    ears.hear(np.random.default_rng(0).normal(0, 3000, 8000).astype(np.int16), 16_000)
    before = resident_mb()
    heads = _words.heads()
    assert heads
    return resident_mb() - before


def resident_mb() -> float:
    """Resident memory of this process, MB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6


def main() -> None:
    parser = common.arguments(__doc__ or "")
    common.data_argument(parser)
    parser.add_argument("--memory", choices=("states", "words"), help="print what these take, MB")
    parser.add_argument("--float", default="", metavar="FILE", help="measure words with this embedding as well")
    given = parser.parse_args()
    cv2.setNumThreads(1)
    if given.memory:
        print(grown() if given.memory == "states" else grown_by_words())
        return
    eyes, tally = Eyes(), Tally()
    pictures = photographs(given.data)
    numbers = range(TUNED, len(pictures))
    staged(eyes, pictures, numbers[:1] if given.quick else numbers, tally)
    clip(eyes, tally)
    figures = tally.figures() | cifar(eyes, given.data, 100 if given.quick else 1000)
    figures |= costs(eyes, pictures) | {"memory_mb": memory_mb("states")}
    figures |= _words.measured(given.data, _words.Ears(), given.quick) | {
        "words_learn_s": _words.learn_s(),
        "words_memory_mb": memory_mb("words"),
    }
    if given.float:
        other = _words.measured(given.data, _words.Ears(given.float), given.quick)
        figures |= {f"float_{name}": value for name, value in other.items()}
    meets = figures["words_10_at_5_percent"] > 0.76 and figures["words_learn_s"] <= 10.0
    meets = meets and figures["words_memory_mb"] <= 6.0
    meets = meets and figures["states_5"] >= 0.95 and figures["states_10"] >= 0.98 and figures["memory_mb"] <= 6.0
    common.conclude(
        "apps/teach", figures, TARGETS, meets and figures["learn_s"] <= 10.0 and figures["cost"] <= 0.05
    )


if __name__ == "__main__":
    main()
