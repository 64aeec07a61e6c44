"""Streams that share the sessions of one model against a session each: memory, CPU, throughput and shares.

One, two, four and eight streams run the perception of the daemon (resize, inference, decoding, tracks; the gate
is off) on pictures of the packaged clip, each from another picture on, as fast as they can. Memory is that of
processes with one variant. The rest is measured in one process with both, which take turns of half a second.
Only turns beside which the cores are free count, if there are some.

    own     every stream opens a session, as before sessions were shared
    shared  the daemon's opener: the streams take turns, on as many sessions as run side by side

The least share is the number of frames of the slowest stream by the mean of all.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import common

if TYPE_CHECKING:
    from agent.compute.infer.session import Opener
    from agent.compute.vision import VideoPerception
    from agent.types import Frame

OPENERS = ("own", "shared")
PICTURES = 40
WARM_UP_S = {"own": 0.5, "shared": 2.8}
"""The latter longer than the span over which a pool measures whether streams wait, s."""
SLICE_S = 0.5
OTHERS = 0.1
"""Share of the cores that other programs may use in a pair of turns that counts; all count if few are so."""
TARGETS = {
    "memory_ratio": "<= 0.5 of a session each: what the most streams need more than one stream",
    "cpu_ratio": "<= 1.05 of a session each, the worst count of streams",
    "throughput_ratio": ">= 0.97 of a session each, the worst count of streams",
    "shared_least_share": ">= 0.8 of the fair share, the worst count of streams",
}


def main() -> None:
    parser = common.arguments(__doc__ or "")
    parser.add_argument("--model", default="nanodet", help="name or path")
    parser.add_argument("--threads", type=int, default=0, help="of an inference; default: as the daemon chooses")
    parser.add_argument("--counts", default="", help="numbers of streams, such as 1,4")
    args = parser.parse_args()
    counts = [int(one) for one in args.counts.split(",") if one] or ([1, 8] if args.quick else [1, 2, 4, 8])
    given, seconds = (args.model, str(args.threads)), 5.0 if args.quick else 90.0
    figures: dict[str, float] = {}
    for count in counts:
        found = common.child("sharing:speed", *given, str(count), str(seconds))
        found |= {
            f"{name}_mb": common.child("sharing:memory", *given, str(count), name)["mb"] for name in OPENERS
        }
        print(f"{count} streams: {json.dumps(found)}", file=sys.stderr)
        figures |= {f"{name}_{count}": figure for name, figure in found.items()}
    conclude(figures, counts)


def conclude(figures: dict[str, float], counts: list[int]) -> None:
    for name, worst in (("cpu_ratio", max), ("throughput_ratio", min), ("shared_least_share", min)):
        figures[name] = worst(figures[f"{name}_{count}"] for count in counts)
    first, last = counts[0], counts[-1]
    own_mb = figures[f"own_mb_{last}"] - figures[f"own_mb_{first}"]
    figures["memory_ratio"] = (figures[f"shared_mb_{last}"] - figures[f"shared_mb_{first}"]) / own_mb
    meets = (
        figures["cpu_ratio"] <= 1.05
        and figures["throughput_ratio"] >= 0.97
        and figures["shared_least_share"] >= 0.8
        and figures["memory_ratio"] <= 0.5
    )
    common.conclude("sharing", figures, TARGETS, meets)


def memory(model: str, threads: str, count: str, name: str) -> None:
    """Print the resident set with so many streams of one variant, MB."""
    import psutil

    runs = Runs(name, model, int(threads), int(count))
    runs.run_for(WARM_UP_S[name])
    print(json.dumps({"mb": psutil.Process().memory_info().rss / 2**20}))
    runs.stop()


def speed(model: str, threads: str, count: str, seconds: str) -> None:
    """Run both variants in turns, and print how the shared one compares."""
    os.setsid()  # Linux gives a session its share of the cores (autogroup), however many threads it has
    both = {name: Runs(name, model, int(threads), int(count)) for name in OPENERS}
    for name, runs in both.items():
        runs.run_for(WARM_UP_S[name])
    pairs = [
        [runs.run_for(SLICE_S) for runs in both.values()] for _ in range(round(float(seconds) / SLICE_S / 2))
    ]
    pairs.sort(key=lambda pair: max(one.others for one in pair))
    quiet = [pair for pair in pairs if max(one.others for one in pair) <= OTHERS]
    quiet = quiet if len(quiet) >= len(pairs) / 10 else pairs
    figures = {"pairs": len(quiet), "others": sum(one.others for pair in quiet for one in pair) / len(quiet) / 2}
    for number, name in enumerate(OPENERS):
        turns = [pair[number] for pair in quiet]
        frames = [sum(one) for one in zip(*(turn.frames for turn in turns), strict=True)]
        figures[f"{name}_fps"] = sum(frames) / sum(turn.wall_s for turn in turns)
        figures[f"{name}_cpu_ms"] = sum(turn.cpu_s for turn in turns) / sum(frames) * 1e3
        figures[f"{name}_least_share"] = min(frames) * len(frames) / sum(frames)
    figures["throughput_ratio"] = figures["shared_fps"] / figures["own_fps"]
    figures["cpu_ratio"] = figures["shared_cpu_ms"] / figures["own_cpu_ms"]
    for runs in both.values():
        runs.stop()
    print(json.dumps(figures))


class Turn(NamedTuple):
    """What streams did in a while: frames of each, time, CPU time of this process, and of others by the cores."""

    frames: list[int]
    wall_s: float
    cpu_s: float
    others: float


def busy_s() -> float:
    """CPU time of all programs since the start of the machine, s."""
    words = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:9]
    ticks = sum(map(int, words)) - int(words[3]) - int(words[4])
    return ticks / os.sysconf("SC_CLK_TCK")


def openers(name: str) -> Opener:
    """Return what opens the streams' sessions."""
    from agent.compute.infer.backends import open_session
    from agent.compute.infer.sharing import SessionPools
    from agent.compute.infer.vetting import VETTING

    if name == "own":
        return open_session
    pools = SessionPools()
    return lambda model, _, options: pools.open_cpu(model, options, VETTING)


def read_pictures() -> list[Any]:
    """Return the first pictures of the clip."""
    import cv2

    clip = cv2.VideoCapture(str(common.CLIP))
    return [clip.read()[1] for _ in range(PICTURES)]


class Runs:
    """Streams of one variant, each in a thread of its own, which run when they are let."""

    def __init__(self, name: str, model: str, threads: int, count: int) -> None:
        from agent.compute.vision import VideoPerception
        from agent.config import GateConfig, StreamConfig
        from agent.models.library import open_model

        config = StreamConfig("", model, threads=threads, gate=GateConfig(motion=False))
        opener, self._pictures = openers(name), read_pictures()
        self.frames = [0] * count
        self._idle = threading.Semaphore(0)
        self._let, self._stopped = [threading.Semaphore(0) for _ in range(count)], False
        self._until = 0.0
        visions = [VideoPerception(f"bench{n}", config, open_model(model), opener) for n in range(count)]
        for number, vision in enumerate(visions):
            threading.Thread(target=self._run, args=(number, vision), daemon=True).start()

    def run_for(self, seconds: float) -> Turn:
        """Let all streams run, and wait until each has finished its frame."""
        before, began_s, cpu_s, all_s = list(self.frames), time.perf_counter(), time.process_time(), busy_s()
        self._until = began_s + seconds
        for let in self._let:
            let.release()
        for _ in self._let:
            self._idle.acquire()
        wall_s, cpu_s, all_s = time.perf_counter() - began_s, time.process_time() - cpu_s, busy_s() - all_s
        frames = [now - then for now, then in zip(self.frames, before, strict=True)]
        return Turn(frames, wall_s, cpu_s, max(0.0, all_s - cpu_s) / (wall_s * (os.cpu_count() or 1)))

    def stop(self) -> None:
        self._stopped = True
        self.run_for(0.0)

    def _run(self, number: int, vision: VideoPerception) -> None:
        while True:
            self._let[number].acquire()
            while time.perf_counter() < self._until:
                vision.process(self._frame(number))
                self.frames[number] += 1
            if self._stopped:
                vision.close()
            self._idle.release()

    def _frame(self, number: int) -> Frame:
        from datetime import UTC, datetime

        from agent.types import Frame

        seq, now_ns = self.frames[number], time.monotonic_ns()
        picture = self._pictures[(seq + 5 * number) % len(self._pictures)]
        return Frame(picture, f"bench{number}", seq, now_ns, datetime.now(UTC), "bgr", now_ns)


if __name__ == "__main__":
    main()
