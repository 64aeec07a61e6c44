"""What the house costs: the whole pipeline against the bare interpreter loop, and against a naive script.

Every variant reads the same clip as fast as it can, with one inference thread and one decoding thread, in a
process of its own; the variants take turns, and the figures are medians over the rounds. OpenCV's own threads are
at its default, as users leave them, except where the house sets them; `lean` is the bare loop with one of them.

    floor  read → invoke on a constant picture: what reading and inference alone cost
    bare   read → resize → invoke
    lean   the same with one thread for OpenCV, as the house sets it: what CPU is compared with
    house  read → resize → invoke → decode → track → spool → publish to mosquitto, the default configuration
    naive  what users write: copying preprocessing, set_tensor, NMS in Python, json.dumps, publish per frame
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import common

if TYPE_CHECKING:
    from agent.stream import Stream

WARM_UP = 20


def main() -> None:
    args = common.arguments(__doc__ or "").parse_args()
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder, common.mosquitto() as port:
        models = {"nanodet416": "nanodet", "small": str(common.face_model(Path(folder)))}
        for label, model in models.items():
            rounds = (2 if args.quick else 5) if label == "nanodet416" else (4 if args.quick else 9)
            frames = (120 if args.quick else 280) if label == "nanodet416" else (400 if args.quick else 1200)
            figures |= measure(label, model, port, frames, rounds)
    targets = {}
    for label in ("nanodet416", "small"):
        targets[f"{label}_fps_ratio"] = ">= 0.95 of the bare loop"
        targets[f"{label}_cpu_ratio_to_lean"] = "<= 1.10 of the bare loop with one OpenCV thread"
        targets[f"{label}_outside_ratio"] = "<= 0.5 of the naive script's CPU outside reading and inference"
    meets = all(
        figures[f"{label}_fps_ratio"] >= 0.95
        and figures[f"{label}_cpu_ratio_to_lean"] <= 1.10
        and figures[f"{label}_outside_ratio"] <= 0.5
        for label in ("nanodet416", "small")
    )
    common.conclude("overhead", figures, targets, meets)


def measure(label: str, model: str, port: int, frames: int, rounds: int) -> dict[str, float]:
    """Medians of the ratios within each round, so that a slow spell of the machine hits all variants."""
    variants = ("floor", "bare", "lean", "house", "naive")
    results: dict[str, list[dict[str, float]]] = {name: [] for name in variants}
    for turn in range(rounds):
        for name in variants:
            results[name].append(common.child(f"overhead:{name}", model, str(port), str(frames)))
        print(f"{label} round {turn + 1}/{rounds}", file=sys.stderr)
    for name in variants:
        cpu = statistics.median(r["cpu_ms"] for r in results[name])
        fps = statistics.median(r["fps"] for r in results[name])
        print(f"{label:11} {name:6} {cpu:7.3f} CPU ms/frame {fps:7.1f} frames/s")
    rows = list(zip(*(results[name] for name in variants), strict=True))
    middle = statistics.median
    return {
        f"{label}_fps_ratio": middle(h["fps"] / b["fps"] for _, b, _, h, _ in rows),
        f"{label}_cpu_ratio": middle(h["cpu_ms"] / b["cpu_ms"] for _, b, _, h, _ in rows),
        f"{label}_cpu_ratio_to_lean": middle(h["cpu_ms"] / s["cpu_ms"] for _, _, s, h, _ in rows),
        f"{label}_outside_ratio": middle(
            (h["cpu_ms"] - f["cpu_ms"]) / (n["cpu_ms"] - f["cpu_ms"]) for f, _, _, h, n in rows
        ),
        f"{label}_house_outside_ms": middle(h["cpu_ms"] - f["cpu_ms"] for f, _, _, h, _ in rows),
        f"{label}_naive_outside_ms": middle(n["cpu_ms"] - f["cpu_ms"] for f, _, _, _, n in rows),
        f"{label}_bare_cpu_ms": middle(b["cpu_ms"] for _, b, _, _, _ in rows),
    }


def timed(frames: int, step: Callable[[], object]) -> None:
    """Call a step for each frame; print frames per second and CPU milliseconds per frame after warm-up."""
    for _ in range(WARM_UP):
        step()
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(frames):
        step()
    report(frames, time.perf_counter() - wall, time.process_time() - cpu)


def report(frames: int, wall_s: float, cpu_s: float) -> None:
    print(json.dumps({"fps": frames / wall_s, "cpu_ms": cpu_s / frames * 1e3}))


class Reader:
    """The clip over and over, into one buffer."""

    def __init__(self) -> None:
        import cv2

        self._cv2 = cv2
        self._open()
        self.picture = self._capture.read()[1]

    def _open(self) -> None:
        options = [self._cv2.CAP_PROP_N_THREADS, 1]
        self._capture = self._cv2.VideoCapture(str(common.CLIP), self._cv2.CAP_FFMPEG, options)

    def __call__(self) -> Any:
        """The next picture."""
        ok, self.picture = self._capture.read(self.picture)
        if not ok:
            self._open()
            _, self.picture = self._capture.read()
        return self.picture


def interpreter(model: str) -> Any:
    """The first graph of a model, as a user opens it, with one thread."""
    from ai_edge_litert.interpreter import Interpreter

    path = (
        Path(model).with_suffix(".tflite")
        if model.endswith(".toml")
        else common.CLIP.with_name(f"{model}.tflite")
    )
    made = Interpreter(model_path=str(path), num_threads=1)
    made.allocate_tensors()
    return made


def floor(model: str, port: str, frames: str) -> None:
    """Read and invoke, nothing between."""
    read, made = Reader(), interpreter(model)

    def step() -> None:
        read()
        made.invoke()

    timed(int(frames), step)


def bare(model: str, port: str, frames: str) -> None:
    """Read → resize → invoke, straight into the tensor."""
    import cv2
    import numpy as np

    read, made = Reader(), interpreter(model)
    details = made.get_input_details()[0]
    size = (int(details["shape"][2]), int(details["shape"][1]))
    view = made.tensor(details["index"])

    def bytes_step() -> None:
        cv2.resize(read(), size, dst=view()[0])
        made.invoke()

    def float_step() -> None:
        target = view()[0]
        np.multiply(cv2.resize(read(), size), 1 / 127.5, out=target)
        target -= 1.0
        del target
        made.invoke()

    timed(int(frames), bytes_step if details["dtype"] == np.uint8 else float_step)


def lean(model: str, port: str, frames: str) -> None:
    """The bare loop with one thread for OpenCV."""
    import cv2

    cv2.setNumThreads(1)
    bare(model, port, frames)


def house(model: str, port: str, frames: str) -> None:
    """The real stream: grabber, vision, reporter, spool and publisher, with the default configuration."""
    from agent.comms.mqtt import Publisher
    from agent.comms.topics import Topics
    from agent.config import GateConfig, MqttConfig, StorageConfig, StreamConfig
    from agent.storage.spool import Spool
    from agent.stream import Desk, Stream

    wanted = int(frames)
    with tempfile.TemporaryDirectory() as folder:
        topics = Topics("vedette", "bench")
        spool = Spool(Path(folder), StorageConfig(folder=folder))
        publisher = Publisher(MqttConfig(host="127.0.0.1", port=int(port)), topics, spool)
        config = StreamConfig(
            source=f"file:{common.CLIP}?pace=fast&loop=1",
            model=model,
            threads=1,
            gate=GateConfig(motion=False),
        )
        stream = Stream("bench", config, Desk(topics, spool, publisher))
        stream.prepare()
        publisher.start()
        stream.start()
        count(stream, wanted)
        stream.ask_to_stop()
        stream.join(2.0)
        spool.flush(1.0)
        publisher.stop(1.0)
        spool.close()


def count(stream: Stream, wanted: int) -> None:
    """Wait for the warm-up and then for the wanted frames, looking twenty times a second."""
    pause = threading.Event()
    while stream.frames < WARM_UP:
        pause.wait(0.05)
    first, wall, cpu = stream.frames, time.perf_counter(), time.process_time()
    while stream.frames < first + wanted:
        pause.wait(0.05)
    report(stream.frames - first, time.perf_counter() - wall, time.process_time() - cpu)


def naive(model: str, port: str, frames: str) -> None:
    """What users write."""
    import _naive

    read, made = Reader(), interpreter(model)
    handle = _naive.make(made, int(port), nanodet=not model.endswith(".toml"))
    timed(int(frames), lambda: handle(read()))


if __name__ == "__main__":
    main()
