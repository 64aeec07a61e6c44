"""Measure the cost of the agent: the whole pipeline against the bare interpreter loop and a naive script.

Every variant reads the same clip as fast as it can, with one inference thread and one decoding thread, in a
process of its own; the variants take turns, and the figures are medians over the rounds. OpenCV's own threads are
at its default, as users leave them, except where the agent sets them; `lean` is the bare loop with one of them.

    floor  read → invoke on a constant picture: what reading and inference alone cost
    bare   read → resize → invoke
    lean   the same with one thread for OpenCV, as the agent sets it, and the agent's own resizing, which
           averages where a picture shrinks to a third: the same work; what CPU is compared with
    linear the same with OpenCV's linear interpolation, which is cheaper there and skips pixels (see `shrink`)
    threaded  lean with the reading in a thread of its own, as the agent has it: faster, with colder caches
    agent  read → resize → invoke → decode → track → spool → publish to mosquitto, the default configuration
    naive  what users write: copying preprocessing, set_tensor, NMS in Python, json.dumps, publish per frame
"""

from __future__ import annotations

import json
import os
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
    from agent.daemon.streams.stream import Stream

WARM_UP = 20


def main() -> None:
    args = common.arguments(__doc__ or "").parse_args()
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder, common.mosquitto() as port:
        models = {"nanodet416": "nanodet", "small": str(common.face_model(Path(folder)))}
        for label, model in models.items():
            rounds = (2 if args.quick else 5) if label == "nanodet416" else (3 if args.quick else 9)
            frames = (100 if args.quick else 280) if label == "nanodet416" else (400 if args.quick else 1200)
            figures |= measure(label, model, port, frames, rounds, more=label == "small" and not args.quick)
    targets = {}
    for label in ("nanodet416", "small"):
        targets[f"{label}_fps_ratio"] = ">= 0.95 of the bare loop"
        targets[f"{label}_cpu_ratio_to_lean"] = (
            "<= 1.10 of the bare loop with one OpenCV thread and the agent's resizing"
        )
        targets[f"{label}_outside_ratio"] = "<= 0.3 of the naive script's CPU outside reading and inference"
    meets = all(
        figures[f"{label}_fps_ratio"] >= 0.95
        and figures[f"{label}_cpu_ratio_to_lean"] <= 1.10
        and figures[f"{label}_outside_ratio"] <= 0.3
        for label in ("nanodet416", "small")
    )
    common.conclude("overhead", figures, targets, meets)


def measure(label: str, model: str, port: int, frames: int, rounds: int, *, more: bool) -> dict[str, float]:
    """Medians of the ratios within each round, so that a slow spell of the machine hits all variants.

    Args:
        label: of the figures.
        model: name or manifest.
        port: of the broker.
        frames: in a round.
        rounds: of all variants.
        more: measure `linear` and `threaded`, too.
    """
    variants = ["floor", "bare", "lean", *(["linear", "threaded"] if more else []), "agent", "naive"]
    results: list[dict[str, dict[str, float]]] = []
    for turn in range(rounds):
        results.append(
            {name: common.child(f"overhead:{name}", model, str(port), str(frames)) for name in variants}
        )
        print(f"{label} round {turn + 1}/{rounds}", file=sys.stderr)
    for name in variants:
        cpu, fps = (statistics.median(one[name][what] for one in results) for what in ("cpu_ms", "fps"))
        print(f"{label:11} {name:6} {cpu:7.3f} CPU ms/frame {fps:7.1f} frames/s")

    def middle(figure: Callable[[dict[str, float]], float]) -> float:
        cpu = [{name: found["cpu_ms"] for name, found in one.items()} for one in results]
        return statistics.median(figure(one) for one in cpu)

    figures = {
        "fps_ratio": statistics.median(one["agent"]["fps"] / one["bare"]["fps"] for one in results),
        "cpu_ratio": middle(lambda cpu: cpu["agent"] / cpu["bare"]),
        "cpu_ratio_to_lean": middle(lambda cpu: cpu["agent"] / cpu["lean"]),
        "outside_ratio": middle(lambda cpu: (cpu["agent"] - cpu["floor"]) / (cpu["naive"] - cpu["floor"])),
        "agent_outside_ms": middle(lambda cpu: cpu["agent"] - cpu["floor"]),
        "naive_outside_ms": middle(lambda cpu: cpu["naive"] - cpu["floor"]),
        "bare_cpu_ms": middle(lambda cpu: cpu["bare"]),
    }
    if more:
        figures["cpu_ratio_to_linear"] = middle(lambda cpu: cpu["agent"] / cpu["linear"])
        figures["cpu_ratio_to_threaded"] = middle(lambda cpu: cpu["agent"] / cpu["threaded"])
    return {f"{label}_{name}": figure for name, figure in figures.items()}


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
    loop(model, frames, resized)


def lean(model: str, port: str, frames: str) -> None:
    """The bare loop with one thread for OpenCV and the agent's resizing."""
    import cv2

    from agent.compute.infer.image_input import Shrink

    cv2.setNumThreads(1)
    loop(model, frames, Shrink())


def linear(model: str, port: str, frames: str) -> None:
    """The bare loop with one thread for OpenCV."""
    import cv2

    cv2.setNumThreads(1)
    loop(model, frames, resized)


def threaded(model: str, port: str, frames: str) -> None:
    """The lean loop with a thread that reads ahead, one picture."""
    import queue

    import cv2
    import numpy as np

    from agent.compute.infer.image_input import Shrink

    cv2.setNumThreads(1)
    read, full, free = Reader(), queue.Queue[Any](1), queue.Queue[Any]()
    for _ in range(3):
        free.put(np.empty_like(read.picture))

    def ahead() -> None:
        while True:
            read.picture = free.get()
            full.put(read())

    def given() -> Any:
        free.put(used.pop())
        used.append(full.get())
        return used[0]

    used = [np.empty_like(read.picture)]
    threading.Thread(target=ahead, daemon=True).start()
    loop(model, frames, Shrink(), given)
    sys.stdout.flush()
    os._exit(0)  # the thread is in OpenCV


def resized(picture: Any, target: Any) -> None:
    """Resize as users do."""
    import cv2

    cv2.resize(picture, target.shape[1::-1], dst=target)


def loop(
    model: str, frames: str, resize: Callable[[Any, Any], None], read: Callable[[], Any] | None = None
) -> None:
    """Read → resize → invoke, by a way to resize a picture into another and one to read."""
    import numpy as np

    read, made = read or Reader(), interpreter(model)
    details = made.get_input_details()[0]
    view, small = made.tensor(details["index"]), np.empty(details["shape"][1:], np.uint8)

    def bytes_step() -> None:
        resize(read(), view()[0])
        made.invoke()

    def float_step() -> None:
        resize(read(), small)
        target = view()[0]
        np.multiply(small, 1 / 127.5, out=target)
        target -= 1.0
        del target
        made.invoke()

    timed(int(frames), bytes_step if details["dtype"] == np.uint8 else float_step)


def agent(model: str, port: str, frames: str) -> None:
    """The real stream: grabber, vision, reporter, spool and publisher, with the default configuration."""
    from agent.comms.mqtt.publisher import Publisher
    from agent.comms.topics import Topics
    from agent.config import GateConfig, StorageConfig, StreamConfig
    from agent.config.servers import MqttConfig
    from agent.daemon.streams.services import StreamServices
    from agent.daemon.streams.stream import Stream
    from agent.storage.spool.spool import Spool

    wanted = int(frames)
    with tempfile.TemporaryDirectory() as folder:
        topics = Topics("vedette", "bench")
        spool = Spool(Path(folder), StorageConfig(state_dir=folder))
        publisher = Publisher(MqttConfig(host="127.0.0.1", port=int(port)), topics, spool)
        config = StreamConfig(
            source=f"file:{common.CLIP}?pace=fast&loop=1",
            model=model,
            threads=1,
            gate=GateConfig(motion=False),
        )
        stream = Stream("bench", config, StreamServices(topics, spool, publisher))
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
    while stream.metrics.frames < WARM_UP:
        pause.wait(0.05)
    first, wall, cpu = stream.metrics.frames, time.perf_counter(), time.process_time()
    while stream.metrics.frames < first + wanted:
        pause.wait(0.05)
    report(stream.metrics.frames - first, time.perf_counter() - wall, time.process_time() - cpu)


def naive(model: str, port: str, frames: str) -> None:
    """Run a loop as users write it."""
    import _naive

    read, made = Reader(), interpreter(model)
    handle = _naive.make(made, int(port), nanodet=not model.endswith(".toml"))
    timed(int(frames), lambda: handle(read()))


if __name__ == "__main__":
    main()
