"""Measure the cost of clips: CPU per frame and latency with and without, memory, and bytes written to the disk.

The real stream runs NanoDet on the walkers at the pace of their camera, a crowd in which every moment is worth a
clip: that is the worst case. With clips and without take turns of two seconds within one process, so that a slow
spell of the machine hits both; memory is that of processes of their own.
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
    from agent.daemon.streams.stream import Stream

WARM_UP = 20
TURN_S = 2.0
MB = 1024 * 1024
TARGETS = {
    "cpu_ratio": ("of the CPU per frame without clips", 1.2),
    "p50_ratio": ("of the latency without clips, reading a frame to its detections", 1.1),
    "more_mb": ("of resident set", 25.0),
}


class Sink:
    """An event sink and a board: keeps how long each frame took."""

    def __init__(self) -> None:
        self.totals: list[float] = []
        self.quick_bytes = 1 << 30

    def put(self, topic: str, body: bytes, track: object = None) -> None:
        """An event."""

    def retain(self, topic: str, payload: bytes, *, patient: bool = False) -> None:
        """A count or a snapshot."""

    def send(self, topic: str, payload: bytes) -> None:
        """Detections."""
        self.totals.append(msgspec.json.decode(payload)["latency_ms"]["total"])


def main() -> None:
    args = common.arguments(__doc__ or "").parse_args()
    turns, rounds = (12, 1) if args.quick else (80, 3)
    figures = common.child("clips:in_turns", str(turns))
    memory = {variant: [] for variant in ("off", "ring", "saved")}  # type: dict[str, list[float]]
    for turn in range(rounds):
        for variant, found in memory.items():
            found.append(common.child("clips:resident", variant)["rss_mb"])
        print(f"memory {turn + 1}/{rounds}", file=sys.stderr)
    middle = {variant: statistics.median(found) for variant, found in memory.items()}
    figures |= {"ring_more_mb": middle["ring"] - middle["off"], "more_mb": middle["saved"] - middle["off"]}
    targets = {name: f"<= {limit:g} {what}" for name, (what, limit) in TARGETS.items()}
    common.conclude(
        "clips", figures, targets, all(figures[name] <= limit for name, (_, limit) in TARGETS.items())
    )


def in_turns(turns: str) -> None:
    """CPU and latency per frame, with clips and without by turns."""
    spent: dict[bool, list[float]] = {True: [], False: []}
    took: dict[bool, list[float]] = {True: [], False: []}
    with tempfile.TemporaryDirectory() as folder:
        stream, sink, close = started("saved", Path(folder))
        pipeline, clips = stream._pipeline, stream._clips
        for turn in range(int(turns)):
            on = turn % 2 == 0
            pipeline._clips = clips if on else None  # type: ignore[union-attr]
            time.sleep(TURN_S / 4)  # what the turn before left to be written
            sink.totals.clear()
            cpu = time.process_time()
            time.sleep(TURN_S)
            spent[on].append((time.process_time() - cpu) / len(sink.totals) * 1e3)
            took[on] += sink.totals
        pipeline._clips = clips  # type: ignore[union-attr]
        close()
        rate = bytes_per_s(Path(folder))
    figures = {"cpu_ms": statistics.median(spent[True]), "off_cpu_ms": statistics.median(spent[False])}
    for share in (50, 99):
        figures |= {
            f"p{share}_ms": percentile(took[True], share),
            f"off_p{share}_ms": percentile(took[False], share),
        }
    figures["cpu_ratio"] = statistics.median(a / b for a, b in zip(spent[True], spent[False], strict=True))
    figures["p50_ratio"] = figures["p50_ms"] / figures["off_p50_ms"]
    print(json.dumps({**figures, "clip_kb_per_s": rate}))


def percentile(values: list[float], share: int) -> float:
    return float(np.percentile(values, share))


def resident(variant: str) -> None:
    """Resident set, once the ring is full."""
    import psutil

    with tempfile.TemporaryDirectory() as folder:
        _, _, close = started(variant, Path(folder))
        time.sleep(10.0)
        rss = psutil.Process().memory_info().rss / MB
        close()
    print(json.dumps({"rss_mb": rss}))


def bytes_per_s(folder: Path) -> float:
    """Return the size of five clips in a folder, kB for each second with pictures."""
    from agent.storage.clips.file import header_of, playable_part
    from agent.storage.clips.retention import clips_in

    size = pictures = 0
    for entry in clips_in(folder):
        with entry.path.open("rb") as file:
            pictures += playable_part(file, header_of(file).head_bytes).frames
        size += entry.bytes
    return size / 1e3 / (pictures / 5) if pictures else 0.0


def started(variant: str, folder: Path) -> tuple[Stream, Sink, Callable[[], None]]:
    """A stream that runs, warm; where its detections go; and what ends it.

    Args:
        variant: `off`: no clips; `ring`: pictures are kept and none saved; `saved`: clips around events.
        folder: of the clips.
    """
    from agent.comms.topics import Topics
    from agent.config import ClipsConfig, GateConfig, PublishConfig, StorageConfig, StreamConfig
    from agent.daemon.streams.services import StreamServices
    from agent.daemon.streams.stream import Stream
    from agent.storage.clips.recorder import Recorder

    sink = Sink()
    recorder = Recorder(folder, StorageConfig(clips_keep_free_bytes=0), lambda clip: None)
    config = StreamConfig(
        source=f"file:{common.CLIP}?loop=1",
        model="nanodet",
        threads=1,
        gate=GateConfig(motion=False),
        publish=PublishConfig(detections=True, snapshot=False),
        clips=None if variant == "off" else ClipsConfig(events=variant == "saved"),
    )
    stream = Stream("bench", config, StreamServices(Topics("vedette", "bench"), sink, sink, recorder=recorder))
    stream.prepare()
    stream.start()
    while stream.metrics.frames < WARM_UP:
        time.sleep(0.05)

    def close() -> None:
        stream.ask_to_stop()
        stream.join(5.0)
        recorder.close(10.0)

    return stream, sink, close


if __name__ == "__main__":
    main()
