"""Chains: faces in photographs by the bundled `face` alone, and behind `nanodet`; and shared cameras.

Photographs are those of COCO in the data folder, none of which chose a constant. A person counts as found with
a face if the middle of one lies in the upper half of the labelled box; a face in no such half is a false one. A
chain looks for faces in people only. Many people show no face, so that the share of all is no measure of its own:
the two ways are compared.

Then streams take every picture of the bundled clip, played again and again at its own pace as a camera gives it,
and give it back; no model runs. CPU time is the process's, of rounds that alternate between a camera that they
share and one for each.
"""

from __future__ import annotations

import io
import statistics
import tarfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from pathlib import Path

import common
import cv2
import numpy as np

from agent.capture.camera import Cameras
from agent.capture.streams import FrameStream
from agent.compute.vision import VideoPerception
from agent.config import CaptureConfig, StreamConfig
from agent.config.features import SecondaryConfig
from agent.daemon.streams.perception import open_perception
from agent.types import WHOLE, Box, Frame, Image

STREAMS = (1, 2, 4)
ROUNDS, SECONDS = 5, 4.0
QUICK_ROUNDS, QUICK_SECONDS = 3, 2.0
TARGETS = {2: 0.6, 4: 0.35}
"""Share of the CPU time that a shared camera may take."""
PHOTOGRAPHS, PERSON = "coco64_dev.tar", 0
MORE_FACES = 1.5
"""How many times the faces that a detector of faces alone finds."""
_SLACK = 0.02
"""A face may lie so far beside a labelled box, as a share of the picture."""


def main() -> None:
    parser = common.arguments(__doc__ or "")
    common.data_argument(parser)
    given = parser.parse_args()
    rounds, seconds = (QUICK_ROUNDS, QUICK_SECONDS) if given.quick else (ROUNDS, SECONDS)
    figures = faces(common.needed(given.data / PHOTOGRAPHS))
    for count in STREAMS:
        pairs = [(cost(count, seconds, shared=True), cost(count, seconds, shared=False)) for _ in range(rounds)]
        shared, apart = (statistics.median(each) for each in zip(*pairs, strict=True))
        ratio = statistics.median(one / other for one, other in pairs)
        print(f"{count} streams: {shared:.2f} ms of CPU a picture shared, {apart:.2f} apart, ratio {ratio:.2f}")
        figures |= {f"ms_shared_{count}": shared, f"ms_apart_{count}": apart, f"ratio_{count}": ratio}
    meets = all(figures[f"ratio_{count}"] <= most for count, most in TARGETS.items())
    meets &= figures["faces_more"] >= MORE_FACES and figures["false_chain"] <= figures["false_alone"]
    targets = {f"ratio_{count}": f"<= {most}" for count, most in TARGETS.items()}
    targets |= {"faces_more": f">= {MORE_FACES}", "false_chain": "<= false_alone"}
    common.conclude("apps/chain", figures, targets, meets)


def faces(archive: Path) -> dict[str, float]:
    """Compare the faces that are found on whole photographs and on the parts that show people."""
    behind = SecondaryConfig("face", "face", labels=("person",), square=True)
    alone, chain = opened("face"), opened("nanodet", behind)
    counts = {"people": 0, "faces_alone": 0, "faces_chain": 0, "false_alone": 0, "false_chain": 0}
    for picture, people in photographs(archive):
        counts["people"] += len(people)
        frame = Frame(picture, "", 0, 0, datetime.min)
        for way, found in (("alone", directly(alone, frame)), ("chain", by_chain(chain, frame))):
            counts[f"faces_{way}"] += sum(any(map(upper_half(one), found)) for one in people)
            counts[f"false_{way}"] += sum(not any(upper_half(one)(face) for one in people) for face in found)
    more = counts["faces_chain"] / max(1, counts["faces_alone"])
    print(
        f"{counts['people']} labelled people in 64 photographs: with a face {counts['faces_alone']} alone and "
        f"{counts['faces_chain']} by the chain; false faces {counts['false_alone']} and {counts['false_chain']}"
    )
    return {**{name: float(count) for name, count in counts.items()}, "faces_more": more}


def opened(model: str, *secondary: SecondaryConfig) -> VideoPerception:
    found = open_perception("bench", StreamConfig("test:", model, threads=1, secondary=secondary))
    assert isinstance(found, VideoPerception)
    return found


def directly(perception: VideoPerception, frame: Frame) -> list[Box]:
    return [one.box for one in perception.infer_crop(frame, WHOLE).detections if one.box]


def by_chain(perception: VideoPerception, frame: Frame) -> list[Box]:
    assert perception.secondary is not None
    told = perception.secondary.run_once(frame, perception.infer_crop(frame, WHOLE).detections)
    return [one["face"].box for one in told if "face" in one and one["face"].box]


def photographs(archive: Path) -> Iterator[tuple[Image, list[Box]]]:
    """Yield pictures with the boxes of their people."""
    with tarfile.open(archive) as file:
        names = set(file.getnames())
        for name in sorted(one for one in names if one.endswith(".jpg")):
            text = name.replace("images/", "labels/").removesuffix(".jpg") + ".txt"
            lines = read(file, text).decode().splitlines() if text in names else []
            picture = cv2.imdecode(np.frombuffer(read(file, name), np.uint8), cv2.IMREAD_COLOR)
            assert picture is not None
            yield picture.astype(np.uint8, copy=False), list(people_of(lines))


def read(file: tarfile.TarFile, name: str) -> bytes:
    return (file.extractfile(name) or io.BytesIO()).read()


def people_of(lines: Iterable[str]) -> Iterator[Box]:
    """Yield the boxes of people among labels in YOLO's format."""
    for line in lines:
        kind, x, y, width, height = (float(one) for one in line.split()[:5])
        if int(kind) == PERSON:
            yield x - width / 2, y - height / 2, x + width / 2, y + height / 2


def upper_half(person: Box) -> Callable[[Box], bool]:
    """Return a function that tells if the middle of a face lies in the upper half of a person."""

    def holds(face: Box) -> bool:
        x, y = (face[0] + face[2]) / 2, (face[1] + face[3]) / 2
        middle = (person[1] + person[3]) / 2
        return person[0] - _SLACK <= x <= person[2] + _SLACK and person[1] - _SLACK <= y <= middle

    return holds


def cost(count: int, seconds: float, *, shared: bool) -> float:
    """Return CPU milliseconds for each picture of the clip, with so many streams."""
    cameras, stop = Cameras(), threading.Event()
    streams = [
        FrameStream(
            f"s{number}",
            f"file:{common.CLIP}?pace=realtime&loop=1",
            CaptureConfig(),
            on_change=print,
            cameras=cameras if shared else Cameras(),
        )
        for number in range(count)
    ]
    threads = [threading.Thread(target=consume, args=(one, stop)) for one in streams]
    for stream, thread in zip(streams, threads, strict=True):
        stream.start()
        thread.start()
    time.sleep(1.0)  # decoders are opened
    cpu, before = time.process_time(), streams[0].stats.frames
    time.sleep(seconds)
    cpu, taken = time.process_time() - cpu, streams[0].stats.frames - before
    stop.set()
    for thread, one in zip(threads, streams, strict=True):
        thread.join()
        one.stop()
    return cpu * 1e3 / max(1, taken)


def consume(stream: FrameStream, stop: threading.Event) -> None:
    while not stop.is_set():
        if (frame := stream.take(0.1)) is not None:
            stream.give_back(frame)


if __name__ == "__main__":
    main()
