"""How many cameras one core carries: the daemon against a loop around OpenCV, with the same model.

Cameras of RTSP, 1080p at 15 pictures a second, come from another process (see `_cameras`); somebody is at each
place for a tenth of the time. The daemon's streams have `max_fps = 5`. The loop has a thread for each camera,
which decodes every picture with one thread of FFmpeg's, and shrinks and infers every third one; it decodes no
boxes and tells nobody. Both run at the same time, each on a core of its own, with few cameras and then with more.
Counted is the processor time of each process by the time that its cameras have shown meanwhile, which is what was
sent to the daemon and what the loop has read: on a machine that does other work they may fall behind. The
daemon's governor is off, so that it gives nothing up for that. Each number of cameras weighs the same, and the
number that fills one core is extrapolated.

With `--quick`, cameras are measured while they are still being learned, and somebody comes every 20 s for 2 s,
after which everything is decoded for as long again: its ratio is lower, and only tells that all works.

Then, not with `--quick`, the daemon runs on one core with four times as many cameras as the loop carries, with
its governor, and tells whether it keeps up: at least 0.95 of the pictures are read, and of the decoded ones
handled, in 0.95 of the streams 0.95 of them within half a second, and the governor reduces nothing. The times
are those of the histograms in `[metrics]` between two moments, so that the start, when all cameras are opened
and decoded at once, is not in them: of each stage the 95th percentile, interpolated in its bucket, and their
sum. Pictures from before somebody was noticed are decoded late, on purpose, and counted apart: the gate sees
them, and they have no time in the queue. Beside these times is told when the results of all inferred pictures,
those decoded late included, were published, in 0.95 of the streams for 0.95 of them. `--confirm` does this part
alone, with so many cameras.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import statistics
import subprocess
import tempfile
import threading
import time
import urllib.request
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import _cameras
import common
import msgspec
import numpy as np
import psutil
from msgspec import Struct

from agent.daemon.streams.counters import BOUNDS_S

EVERY = 3
"""The loop infers one of so many pictures."""
CAPTURE = f"max_fps = {_cameras.FPS // EVERY}"
STAGES = ("queue", "prepare", "infer", "decode")
"""From the capture of a picture to its detections."""
LATE_S, IN_TIME = 0.5, 0.95
TARGET = 4.0
MODEL = "nanodet"


class Point(Struct, frozen=True):
    """How many cameras the daemon and the loop have at the same time."""

    ours: int
    loop: int


QUICK = (Point(4, 1),)
POINTS = (Point(4, 1), Point(10, 2))


class Setting(Struct, frozen=True):
    """Where it is measured.

    Attributes:
        folder: for the daemon's files.
        port: of the broker.
        cameras: those of the loop are the last ones.
        warm_s: until a camera is known, s.
        seconds: repetition of what the cameras show, s.
    """

    folder: Path
    port: int
    cameras: _cameras.Served
    warm_s: float
    seconds: float

    def daemon(self, count: int, extra: str = "") -> subprocess.Popen[bytes]:
        """Start the daemon on one core with so many cameras."""
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        uris = self.cameras.uris[:count]
        return common.daemon(
            folder, self.port, model=MODEL, sources=uris, capture=CAPTURE, extra=extra, affinity=cores()[:1]
        )


def main() -> None:
    parser = common.arguments(__doc__ or "")
    parser.add_argument("--most", type=int, default=32, help="cameras that are served")
    parser.add_argument("--confirm", type=int, default=0, help="only run so many cameras on one core")
    args = parser.parse_args()
    scene, points = (_cameras.QUICK, QUICK) if args.quick else (_cameras.Scene(), POINTS)
    most = points[-1].ours + points[-1].loop if args.quick else args.confirm or args.most
    with (
        tempfile.TemporaryDirectory() as folder,
        common.mosquitto() as port,
        _cameras.served(scene, most) as served,
    ):
        setting = Setting(Path(folder), port, served, 8.0 if args.quick else 30.0, float(scene.seconds))
        figures, count = {"busy_share": scene.busy}, args.confirm
        if not count:
            found = zip(*(measured(setting, p) for p in points), strict=True)
            ours, loop = (statistics.median(one) for one in found)
            figures |= {"ours": 1.0 / ours, "loop": 1.0 / loop, "ratio": loop / ours}
            figures |= {"ours_camera_s": ours, "loop_camera_s": loop}
            print(f"one core carries {1.0 / ours:.1f} cameras, and {1.0 / loop:.1f} with a loop")
            count = 0 if args.quick else min(most, round(TARGET / loop))
        if count:
            figures |= confirmed(setting, count)
    meets = figures.get("ratio", TARGET) >= TARGET and figures.get("keeps_up", 1.0) == 1.0
    common.conclude("cameras", figures, {"ratio": f">= {TARGET:g}", "keeps_up": "== 1"}, meets)


def cores() -> list[int]:
    return sorted(os.sched_getaffinity(0))


def measured(setting: Setting, point: Point) -> tuple[float, float]:
    """Return the processor time of a camera per second of what it shows, s: of the daemon and of the loop."""
    uris, sent = setting.cameras
    daemon = setting.daemon(point.ours, "[governor]\nenabled = false")
    try:
        with looping(uris[-point.loop :], cores()[-1]) as (loop, read):
            time.sleep(setting.warm_s)
            before = cpu_s(daemon.pid), sum(sent[: point.ours]), cpu_s(loop), sum(read)
            time.sleep(setting.seconds)
            after = cpu_s(daemon.pid), sum(sent[: point.ours]), cpu_s(loop), sum(read)
    finally:
        daemon.terminate()
        daemon.wait()
    ours, frames, theirs, loop_frames = (now - then for now, then in zip(after, before, strict=True))
    shown_s, loop_s = frames / _cameras.FPS, loop_frames / _cameras.FPS
    told = f"{shown_s / point.ours:.0f} of {setting.seconds:.0f} s shown"
    print(f"{point.ours} cameras: {ours / shown_s:.4f} s of CPU per second of each ({told}); ", end="")
    told = f"{loop_s / point.loop:.0f} s read"
    print(f"a loop with {point.loop}: {theirs / loop_s:.4f} ({told})", flush=True)
    return ours / shown_s, theirs / loop_s


def cpu_s(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def core_s(core: int) -> float:
    """Return for how long a core has worked, s."""
    times = psutil.cpu_times(percpu=True)[core]
    return float(sum(times) - times.idle - times.iowait - times.guest - times.guest_nice)


@contextmanager
def looping(uris: Sequence[str], core: int) -> Iterator[tuple[int, Any]]:
    """Run the loop; give its process's number, and how many pictures of each camera it has read."""
    context = multiprocessing.get_context("spawn")
    read = context.Array("q", len(uris))
    process = context.Process(target=loop_all, args=(list(uris), core, read), daemon=True)
    process.start()
    try:
        assert process.pid is not None
        yield process.pid, read
    finally:
        process.kill()
        process.join()


def loop_all(uris: list[str], core: int, read: Any) -> None:
    """Read all cameras, as a script does."""
    os.sched_setaffinity(0, {core})
    import cv2
    from overhead import interpreter

    cv2.setNumThreads(1)
    made, turn = interpreter(MODEL), threading.Lock()
    details = made.get_input_details()[0]
    size, view = (int(details["shape"][2]), int(details["shape"][1])), made.tensor(details["index"])

    def read_one(number: int) -> None:
        capture, image = cv2.VideoCapture(uris[number], cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1]), None
        while capture.grab():
            _, image = capture.retrieve(image)
            read[number] += 1
            if read[number] % EVERY == 0:
                with turn:
                    cv2.resize(image, size, dst=view()[0])
                    made.invoke()

    threads = [threading.Thread(target=read_one, args=(number,)) for number in range(len(uris))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


StageCounts = Mapping[tuple[str, str], list[float]]
"""How many times there are in each bucket, by stream and stage."""


class Observed(Struct, frozen=True):
    """What was seen of a daemon between two moments.

    Attributes:
        messages: that it has published.
        times: of its stages.
        used_s, others_s: processor time of its core that it has used, and that others have, s.
        sent: pictures that its cameras have sent.
    """

    messages: list[Any]
    times: StageCounts
    used_s: float
    others_s: float
    sent: int


def confirmed(setting: Setting, count: int) -> dict[str, float]:
    """Run the daemon with so many cameras on one core; tell whether it keeps up, and how long it had the core."""
    seen = observed(setting, count)
    share, others = seen.used_s / setting.seconds, seen.others_s / setting.seconds
    print(f"the daemon had {share:.2f} of the core, other programs {others:.2f}")
    found = {"confirmed_core_share": share, "confirmed_others_share": others}
    health = [told for one in seen.messages if (told := one.health()) is not None]
    found |= handed_on(health, seen.sent / (count * setting.seconds * _cameras.FPS)) | delays(seen.times)
    found |= published([one for one in seen.messages if one.kind == "detections"])
    meets = min(found["confirmed_read"], found["confirmed_handled"]) >= IN_TIME
    meets = meets and found["confirmed_p95_ms"] <= 1e3 * LATE_S and not found["confirmed_reduced"]
    return found | {"keeps_up": float(meets), "confirmed": float(count)}


def observed(setting: Setting, count: int) -> Observed:
    """Run the daemon with so many cameras on one core, and observe it when they are known."""
    from agent.comms.consumer import BrokerOptions, Subscriber

    page, sent = common.free_port(), setting.cameras.sent
    tables = [f'[metrics]\nlisten = "127.0.0.1:{page}"']
    tables += [f"[streams.bench{number or ''}.publish]\ndetections = true" for number in range(count)]
    daemon = setting.daemon(count, "\n".join(tables))
    subscriber = Subscriber(BrokerOptions("127.0.0.1", setting.port))
    subscriber.start()
    try:
        time.sleep(setting.warm_s)
        earlier = stage_counts(page)
        before = cpu_s(daemon.pid), core_s(cores()[0]), sum(sent[:count])
        began_ns, until = time.monotonic_ns(), time.monotonic() + setting.seconds
        messages = [one for one in subscriber.messages(until) if one and one.received_ns >= began_ns]
        used_s, frames = cpu_s(daemon.pid) - before[0], sum(sent[:count]) - before[2]
        others_s, later = core_s(cores()[0]) - before[1] - used_s, stage_counts(page)
    finally:
        daemon.terminate()
        daemon.wait()
        subscriber.stop()
    times = {key: [now - then for now, then in zip(later[key], earlier[key], strict=True)] for key in later}
    return Observed(messages, times, used_s, others_s, frames)


def stage_counts(port: int) -> StageCounts:
    """Ask the daemon for the times of all stages since its start."""
    from prometheus_client.parser import text_string_to_metric_families

    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as answer:
        page = answer.read().decode()
    totals: defaultdict[tuple[str, str], list[float]] = defaultdict(lambda: [0.0] * (len(BOUNDS_S) + 1))
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            if sample.name == "vedette_stream_stage_seconds_bucket":
                bucket = bisect_left(BOUNDS_S, float(sample.labels["le"]))
                totals[sample.labels["stream"], sample.labels["stage"]][bucket] = sample.value
    for key, counts in totals.items():
        totals[key] = [now - before for now, before in zip(counts, [0.0, *counts], strict=False)]
    return totals


def quantile_s(counts: Sequence[float], share: float) -> float:
    """Return a quantile of times, s, interpolated in its bucket; 0 without times, infinite above all bounds."""
    rank, below = share * sum(counts), 0.0
    for lower, upper, count in zip((0.0, *BOUNDS_S), (*BOUNDS_S, math.inf), counts, strict=True):
        if count and below + count >= rank:
            return lower + (upper - lower) * (rank - below) / count
        below += count
    return 0.0


def delays(times: StageCounts) -> dict[str, float]:
    """Tell in which time pictures are handled that are decoded as they come, and how many are decoded late."""
    streams = sorted({stream for stream, _ in times})
    none = [0.0] * (len(BOUNDS_S) + 1)
    stages = {
        stage: [quantile_s(times.get((stream, stage), none), IN_TIME) for stream in streams] for stage in STAGES
    }
    waits_s = sorted(map(sum, zip(*stages.values(), strict=True)))
    late_s = waits_s[round(IN_TIME * (len(streams) - 1))]
    came, handled = (sum(sum(times[stream, stage]) for stream in streams) for stage in ("queue", "gate"))
    each = ", ".join(f"{stage} {1e3 * statistics.median(found):.0f}" for stage, found in stages.items())
    print(f"as they come: {came:.0f} pictures, p95 {1e3 * late_s:.0f} ms (medians of p95: {each}); ", end="")
    print(f"decoded late: {handled - came:.0f}")
    return {"confirmed_p95_ms": 1e3 * late_s, "confirmed_came": came, "confirmed_late": handled - came}


def published(messages: Sequence[Any]) -> dict[str, float]:
    """Tell how long after its capture the result of each inferred picture was published."""
    from agent.comms.messages import DetectionsMessage

    found: defaultdict[str, list[float]] = defaultdict(list)
    for one in messages:
        found[one.stream].append(msgspec.json.decode(one.payload, type=DetectionsMessage).latency_ms.total)
    p95_ms = sorted(float(np.percentile(one, 100.0 * IN_TIME)) for one in found.values())
    all_ms = p95_ms[round(IN_TIME * (len(p95_ms) - 1))]
    pictures = sum(map(len, found.values()))
    print(f"{pictures} pictures inferred, as they came or late: p95 until published {all_ms:.0f} ms")
    return {"confirmed_inferred": float(pictures), "confirmed_all_p95_ms": all_ms}


def handed_on(health: Sequence[Any], read: float) -> dict[str, float]:
    """Tell from health messages what became of decoded pictures; `read`: share of the sent ones that was read."""
    first, last = health[0].streams, health[-1].streams
    frames = sum(one.frames - first[name].frames for name, one in last.items())
    dropped = sum(one.dropped - first[name].dropped for name, one in last.items())
    reduced = sum(any(message.streams[name].reduced for message in health) for name in last)
    handled = frames / max(1, frames + dropped)
    print(f"{len(last)} cameras on one core: {read:.3f} of their pictures read, ", end="")
    print(f"{handled:.3f} of {frames + dropped} decoded ones handled, {reduced} reduced")
    waits_ms = sorted(sum(one.p95_ms.get(stage, 0.0) for stage in STAGES) for one in last.values())
    newest_ms = waits_ms[round(IN_TIME * (len(last) - 1))]
    print(f"p95 of each camera's newest 256 pictures, which hold the start: {newest_ms:.0f} ms")
    found = {"confirmed_read": read, "confirmed_handled": handled, "confirmed_reduced": float(reduced)}
    return found | {"confirmed_newest_p95_ms": newest_ms}


if __name__ == "__main__":
    main()
