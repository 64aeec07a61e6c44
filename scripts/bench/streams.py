"""Streams of one model on the cores of this machine: CPU a frame, shares, and the threads that are chosen.

One, two, four and eight streams run the perception of the daemon (resize, inference, decoding, tracks; the gate
is off) on pictures of the packaged clip, each from another picture on, as fast as they can, on shared sessions.
For each number of streams the numbers of threads take turns of half a second in one process. Only turns beside
which the cores are free count, if there are some. The number of threads that the daemon chooses is the cores'
share of a stream, or for one stream all.
"""

from __future__ import annotations

import json
import os
import sys

import common
from sharing import OTHERS, SLICE_S, WARM_UP_S, Runs

TARGETS = {
    "cpu_ratio": "<= 1.1: CPU time of a frame with equal threads, the most by the least of the counts of streams",
    "chosen_ratio": ">= 0.95: throughput with the chosen threads by the best one, the worst count of streams",
    "least_share": ">= 0.8 of the fair share, the worst count of streams",
}


def main() -> None:
    parser = common.arguments(__doc__ or "")
    parser.add_argument("--model", default="nanodet", help="name or path")
    parser.add_argument("--counts", default="", help="numbers of streams, such as 1,4")
    args = parser.parse_args()
    counts = [int(one) for one in args.counts.split(",") if one] or ([1, 4] if args.quick else [1, 2, 4, 8])
    seconds, cores = (6.0 if args.quick else 60.0), len(os.sched_getaffinity(0))
    figures: dict[str, float] = {}
    for count in counts:
        chosen = min(threads_max(), max(1, cores // count))
        found = common.child("streams:speed", args.model, str(count), str(seconds))
        best = max(found[f"fps_{threads}"] for threads in range(1, threads_max() + 1))
        figures |= {f"{name}_of_{count}": value for name, value in found.items()}
        figures |= {
            f"chosen_{count}": float(chosen),
            f"chosen_ratio_{count}": found[f"fps_{chosen}"] / best,
            f"least_share_{count}": found[f"least_share_{chosen}"],
        }
        print(f"{count} streams: {chosen} threads chosen, {json.dumps(found)}", file=sys.stderr)
    costs = [[figures[f"cpu_ms_{way}_of_{count}"] for count in counts] for way in range(1, threads_max() + 1)]
    figures["cpu_ratio"] = max(max(each) / min(each) for each in costs)
    figures["chosen_ratio"] = min(figures[f"chosen_ratio_{count}"] for count in counts)
    figures["least_share"] = min(figures[f"least_share_{count}"] for count in counts)
    meets = figures["cpu_ratio"] <= 1.1 and figures["chosen_ratio"] >= 0.95 and figures["least_share"] >= 0.8
    common.conclude("streams", figures, TARGETS, meets)


def threads_max() -> int:
    return min(4, len(os.sched_getaffinity(0)))


def speed(model: str, count: str, seconds: str) -> None:
    """Print throughput, CPU time of a frame and least share for each number of threads."""
    os.setsid()  # Linux gives a session its share of the cores (autogroup), however many threads it has
    ways = {threads: Runs("shared", model, threads, int(count)) for threads in range(1, threads_max() + 1)}
    for runs in ways.values():
        runs.run_for(WARM_UP_S["shared"])
    rounds = [[runs.run_for(SLICE_S) for runs in ways.values()] for _ in range(round(float(seconds) / SLICE_S))]
    rounds.sort(key=lambda turns: max(one.others for one in turns))
    quiet = [turns for turns in rounds if max(one.others for one in turns) <= OTHERS]
    quiet = quiet if len(quiet) >= len(rounds) / 10 else rounds
    figures: dict[str, float] = {
        "rounds": len(quiet),
        "others": sum(one.others for turns in quiet for one in turns) / len(quiet) / len(ways),
    }
    for place, threads in enumerate(ways):
        turns = [one[place] for one in quiet]
        frames = [sum(one) for one in zip(*(turn.frames for turn in turns), strict=True)]
        figures[f"fps_{threads}"] = sum(frames) / sum(turn.wall_s for turn in turns)
        figures[f"cpu_ms_{threads}"] = sum(turn.cpu_s for turn in turns) / sum(frames) * 1e3
        figures[f"least_share_{threads}"] = min(frames) * len(frames) / sum(frames)
    for runs in ways.values():
        runs.stop()
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
