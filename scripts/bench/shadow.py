"""Measure the cost of a shadow model for its stream: latency, frames and memory, with it and without.

One daemon on the clip at its own pace, NanoDet at 416 pixels; the shadow is the same network under another
threshold, ordered and taken back as an update does it, in turns. A naive script, which has both models answer
each picture one after the other, is measured on the same machine afterwards.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import common
import msgspec
import numpy as np
from latency import percentile

EVERY = (0, 5, 1)
"""Every n-th picture is compared; 0: there is no shadow."""
KINDS = ("total_p50_ratio", "total_p95_ratio", "frames_ratio", "added_mb")
_OPENED_S = 20.0


def main() -> None:
    args = common.arguments(__doc__ or "").parse_args()
    with tempfile.TemporaryDirectory() as name, common.mosquitto() as port:
        folder = Path(name)
        prepare(folder)
        figures = compared(folder, port, rounds=2 if args.quick else 6, seconds=4.0 if args.quick else 10.0)
    figures["naive_ratio"] = naive(3.0 if args.quick else 10.0)
    for every in EVERY[1:]:
        p50, p95, frames, mb = (figures[f"{name}_every_{every}"] for name in KINDS)
        print(f"every {every}: latency x {p50:.2f} (p95 x {p95:.2f}), frames x {frames:.3f}, {mb:+.1f} MB")
    print(f"both models in turn in one thread: x {figures['naive_ratio']:.2f}")
    meets = figures["total_p50_ratio_every_5"] <= 1.1 and figures["frames_ratio_every_5"] >= 0.99
    targets = {"total_p50_ratio_every_5": "<= 1.1", "frames_ratio_every_5": ">= 0.99"}
    common.conclude("shadow", figures, targets, meets)


def prepare(folder: Path) -> None:
    """The model in use and the one beside it, where an update would have them."""
    for name, threshold in (("models", "0.5"), ("new", "0.45")):
        (folder / name).mkdir()
        for file in (common.ROOT / "agent/models/zoo").glob("nanodet*"):
            shutil.copy(file, folder / name)
        shutil.copy(common.ROOT / "agent/models/zoo/coco80.txt", folder / name)
        manifest = folder / name / "nanodet.toml"
        text = manifest.read_text(encoding="utf-8")
        assert "score_threshold = 0.5" in text
        manifest.write_text(
            text.replace("score_threshold = 0.5", f"score_threshold = {threshold}"), encoding="utf-8"
        )
    (folder / "run/vedette").mkdir(parents=True)


def compared(folder: Path, port: int, rounds: int, seconds: float) -> dict[str, float]:
    """All kinds in turns on one daemon."""
    from agent.storage.state import SHADOW_FILE, ShadowOrder, write_shadow_order

    order = folder / "run" / SHADOW_FILE
    totals: dict[int, list[float]] = {every: [] for every in EVERY}
    frames: dict[int, float] = dict.fromkeys(EVERY, 0.0)
    memory: dict[int, list[float]] = {every: [] for every in EVERY}
    with running(folder, port) as (pid, heard):
        for turn in range(rounds):
            for every in EVERY:
                if every:
                    asked = ShadowOrder(f"{turn}.{every}", str(folder / "models"), str(folder / "new"), every)
                    write_shadow_order(order, asked)
                else:
                    order.unlink(missing_ok=True)
                settle(folder / "run/vedette/health.json", bool(every))
                heard.clear()
                began = time.monotonic()
                time.sleep(seconds)
                found = list(heard)
                frames[every] += len(found) / (time.monotonic() - began) / rounds
                totals[every] += found
                memory[every].append(resident_mb(pid))
            order.unlink(missing_ok=True)
    figures: dict[str, float] = {"total_p50_ms": statistics.median(totals[0]), "frames_per_s": frames[0]}
    for every in EVERY[1:]:
        p50, p95 = (percentile(totals[every], share) / percentile(totals[0], share) for share in (50, 95))
        figures |= {f"total_p50_ratio_every_{every}": p50, f"total_p95_ratio_every_{every}": p95}
        figures[f"frames_ratio_every_{every}"] = frames[every] / frames[0]
        figures[f"added_mb_every_{every}"] = statistics.median(memory[every]) - statistics.median(memory[0])
    return figures


@contextmanager
def running(folder: Path, port: int) -> Iterator[tuple[int, list[float]]]:
    """The daemon, its process, and the latencies of the frames that it has looked at, ms."""
    from agent.comms.consumer import BrokerOptions, Subscriber
    from agent.comms.messages import DetectionsMessage

    subscriber = Subscriber(BrokerOptions("127.0.0.1", port))
    subscriber.start()
    heard, over = list[float](), threading.Event()
    decoder = msgspec.json.Decoder(DetectionsMessage)

    def listen() -> None:
        while not over.is_set():
            for message in subscriber.messages(time.monotonic() + 0.5):
                if message is not None and message.kind == "detections":
                    heard.append(decoder.decode(message.payload).latency_ms.total)

    extra = "[streams.bench.gate]\nmotion = false\n[streams.bench.publish]\ndetections = true"
    daemon = common.daemon(
        folder,
        port,
        model=str(folder / "models/nanodet.toml"),
        extra=extra,
        environment={"RUNTIME_DIRECTORY": str(folder / "run/vedette")},
    )
    thread = threading.Thread(target=listen)
    thread.start()
    try:
        yield daemon.pid, heard
    finally:
        daemon.terminate()
        daemon.wait()
        over.set()
        thread.join()
        subscriber.stop()


def settle(health: Path, beside: bool) -> None:
    """Wait until the shadow compares, or is gone, and what it did last is over."""
    until = time.monotonic() + _OPENED_S
    while time.monotonic() < until:
        time.sleep(0.2)
        told: dict[str, Any] = msgspec.json.decode(health.read_bytes()) if health.exists() else {}
        stream: dict[str, Any] = told.get("streams", {}).get("bench", {})
        shadow = stream.get("shadow")
        is_there = shadow is not None
        is_at_work = not beside or bool(shadow and shadow["compared"])
        if stream.get("state") == "running" and is_there == beside and is_at_work:
            time.sleep(1.0)
            return
    raise SystemExit(f"after {_OPENED_S:.0f} s the shadow is not as it was ordered: {told}")


def resident_mb(pid: int) -> float:
    """Return the proportional memory (PSS) of a process and its children, MB."""
    family = [pid]
    for task in Path(f"/proc/{pid}/task").iterdir():
        family += [int(one) for one in (task / "children").read_text().split()]
    total = 0
    for one in set(family):
        lines = Path(f"/proc/{one}/smaps_rollup").read_text().splitlines()
        total += next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1024


def naive(seconds: float) -> float:
    """How much longer a picture takes where both models answer it, one after the other."""
    from agent.compute.infer.backends import open_session
    from agent.compute.infer.session import SessionOptions
    from agent.models.library import open_model

    sessions = [open_session(open_model("nanodet", "416"), "cpu", SessionOptions(threads=1)) for _ in range(2)]
    for session in sessions:
        (spec,) = session.inputs
        np.copyto(session.input(0), np.random.default_rng(1).integers(0, 127, spec.shape).astype(spec.dtype))
    times: tuple[list[float], list[float]] = ([], [])
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        for count, spent in enumerate(times, 1):
            began = time.perf_counter()
            for session in sessions[:count]:
                session.invoke()
            spent.append(time.perf_counter() - began)
    for session in sessions:
        session.close()
    return statistics.median(times[1]) / statistics.median(times[0])


if __name__ == "__main__":
    main()
