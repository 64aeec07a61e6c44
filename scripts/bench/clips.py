"""What clips cost: CPU per frame and latency with them and without, memory, and what is written to the disk.

The real stream runs NanoDet on the clip of walkers, a crowd in which every moment is worth a clip: that is the
worst case. Variants take turns, each in a process of its own:

    off    no clips
    ring   the last five seconds are encoded and kept, nothing is saved
    saved  clips around events, one after the other

CPU is measured as fast as it goes, at recorded time: every other of the ten frames in a second is encoded.
Latency and memory are measured at the pace of the camera, the one from a frame's reading to its detections.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import common
import msgspec
import numpy as np

if TYPE_CHECKING:
    from agent.stream import Stream

VARIANTS = ("off", "ring", "saved")
WARM_UP = 20
MB = 1024 * 1024


class Sink:
    """An event sink and a board: keeps how long each frame took."""

    def __init__(self) -> None:
        self.totals: list[float] = []

    def put(self, topic: str, body: bytes, will: object = None) -> None:
        """An event."""

    def retain(self, topic: str, payload: bytes, *, patient: bool = False) -> None:
        """A count or a snapshot."""

    def send(self, topic: str, payload: bytes) -> None:
        """Detections."""
        self.totals.append(msgspec.json.decode(payload)["latency_ms"]["total"])


def main() -> None:
    args = common.arguments(__doc__ or "").parse_args()
    rounds, frames, seconds = (2, 200, 6) if args.quick else (5, 600, 20)
    cpu: dict[str, list[float]] = {name: [] for name in VARIANTS}
    live: dict[str, list[dict[str, float]]] = {name: [] for name in VARIANTS}
    for turn in range(rounds):
        for name in VARIANTS:
            cpu[name].append(common.child("clips:fast", name, str(frames))["cpu_ms"])
            live[name].append(common.child("clips:realtime", name, str(seconds)))
        print(f"round {turn + 1}/{rounds}", file=sys.stderr)
    middle = statistics.median
    figures = {f"{name}_cpu_ms": middle(cpu[name]) for name in VARIANTS}
    for key in ("p50_ms", "p99_ms", "rss_mb"):
        figures |= {f"{name}_{key}": middle(one[key] for one in live[name]) for name in VARIANTS}
    for name in VARIANTS[1:]:
        figures[f"{name}_cpu_ratio"] = middle(a / b for a, b in zip(cpu[name], cpu["off"], strict=True))
        pairs = zip(live[name], live["off"], strict=True)
        figures[f"{name}_p50_ratio"] = middle(a["p50_ms"] / b["p50_ms"] for a, b in pairs)
        figures[f"{name}_more_mb"] = figures[f"{name}_rss_mb"] - figures["off_rss_mb"]
    figures["clip_kb_per_s"] = middle(one["clip_kb_per_s"] for one in live["saved"])
    figures["ring_mb"] = middle(one["ring_mb"] for one in live["ring"])
    targets = {
        "saved_cpu_ratio": "<= 1.2 of the CPU per frame without clips",
        "saved_p50_ratio": "<= 1.1 of the latency without clips",
        "saved_more_mb": "<= 25",
    }
    meets = (
        figures["saved_cpu_ratio"] <= 1.2 and figures["saved_p50_ratio"] <= 1.1 and figures["saved_more_mb"] <= 25
    )
    common.conclude("clips", figures, targets, meets)


def fast(variant: str, frames: str) -> None:
    """CPU per frame, of the whole process."""
    with tempfile.TemporaryDirectory() as folder:
        stream, _, close = started(variant, "fast", Path(folder))
        while stream.frames < WARM_UP:
            time.sleep(0.05)
        first, cpu = stream.frames, time.process_time()
        while stream.frames < first + int(frames):
            time.sleep(0.05)
        spent, count = time.process_time() - cpu, stream.frames - first
        close()
    print(json.dumps({"cpu_ms": spent / count * 1e3}))


def realtime(variant: str, seconds: str) -> None:
    """Latency of frames, memory, and the bytes of a second of clip."""
    import psutil

    with tempfile.TemporaryDirectory() as folder:
        stream, sink, close = started(variant, "realtime", Path(folder))
        while stream.frames < WARM_UP:
            time.sleep(0.05)
        sink.totals.clear()
        time.sleep(float(seconds))
        totals, rss = list(sink.totals), psutil.Process().memory_info().rss / MB
        filming = stream._filming
        ring = filming._footage.bytes / MB if filming is not None else 0.0
        close()
        rate = bytes_per_s(Path(folder))
    figures = {"p50_ms": float(np.percentile(totals, 50)), "p99_ms": float(np.percentile(totals, 99))}
    print(json.dumps({**figures, "rss_mb": rss, "ring_mb": ring, "clip_kb_per_s": rate}))


def bytes_per_s(folder: Path) -> float:
    """Of the clips in a folder, kB in a second of them."""
    from agent.storage.clipscan import read_label
    from agent.storage.shelf import clips_in

    found = clips_in(folder)
    length = sum(read_label(entry.path).duration_s or 0.0 for entry in found)
    return sum(entry.bytes for entry in found) / 1e3 / length if length else 0.0


def started(variant: str, pace: str, folder: Path) -> tuple[Stream, Sink, Callable[[], None]]:
    """A stream that runs, where its detections go, and what ends it."""
    from agent.comms.topics import Topics
    from agent.config import ClipsConfig, GateConfig, PublishConfig, StorageConfig, StreamConfig
    from agent.storage.recorder import Recorder
    from agent.stream import Desk, Stream

    sink = Sink()
    recorder = Recorder(folder, StorageConfig(clips_keep_free_bytes=0), lambda clip: None)
    config = StreamConfig(
        source=f"file:{common.CLIP}?pace={pace}&loop=1",
        model="nanodet",
        threads=1,
        gate=GateConfig(motion=False),
        publish=PublishConfig(detections=True, snapshot=False),
        clips=None if variant == "off" else ClipsConfig(events=variant == "saved"),
    )
    stream = Stream("bench", config, Desk(Topics("vedette", "bench"), sink, sink, recorder=recorder))
    stream.prepare()
    stream.start()

    def close() -> None:
        stream.ask_to_stop()
        stream.join(5.0)
        recorder.close(10.0)

    return stream, sink, close


if __name__ == "__main__":
    main()
