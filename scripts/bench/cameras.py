"""How many cameras one core carries: the daemon against a loop around OpenCV, with the same model.

Cameras of RTSP, 1080p at 15 pictures a second, come from another process (see `_cameras`); somebody is at each
place for a tenth of the time. The daemon's streams have `max_fps = 5`. The loop has a thread for each camera,
which decodes every picture with one thread of FFmpeg's, and shrinks and infers every third one; it decodes no
boxes and tells nobody. Both run at the same time, each on a core of its own, with few cameras and then with more.
Counted is the processor time of each process during one repetition of what the cameras show; the number of
cameras whose time fills one core is extrapolated from it. A picture that the loop did not get is counted as if it
had.

Then, not with `--quick`, the daemon runs on one core with four times as many cameras as the loop carries, and
tells whether it keeps up: of the pictures of busy cameras at most one in twenty is dropped, at most one in twenty
comes more than half a second late, and the governor reduces nothing.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import _cameras
import common
import msgspec
import psutil
from msgspec import Struct

EVERY = 3
"""The loop infers one of so many pictures."""
CAPTURE = f"max_fps = {_cameras.FPS // EVERY}"
LATE_MS, IN_TIME = 500.0, 0.95
TARGET = 4.0
MODEL = "nanodet"


class Point(Struct, frozen=True):
    """How many cameras the daemon and the loop have at the same time."""

    ours: int
    loop: int


QUICK = (Point(4, 1),)
POINTS = (Point(4, 1), Point(12, 3))


class Cost(Struct, frozen=True):
    """Processor time per second, s: of a process with no camera, and of each camera."""

    base: float
    camera: float

    @property
    def cameras(self) -> float:
        """How many fill one core."""
        return (1.0 - self.base) / self.camera


def main() -> None:
    parser = common.arguments(__doc__ or "")
    parser.add_argument("--most", type=int, default=48, help="cameras at the end, at most")
    args = parser.parse_args()
    scene, points = (_cameras.QUICK, QUICK) if args.quick else (_cameras.Scene(), POINTS)
    warm_s = 8.0 if args.quick else 40.0
    count = max(max(point.ours, point.loop) for point in points) if args.quick else args.most
    with (
        tempfile.TemporaryDirectory() as folder,
        common.mosquitto() as port,
        _cameras.served(scene, count) as uris,
    ):
        place = Path(folder), port, uris
        used = [measured(*place, point, warm_s, float(scene.seconds)) for point in points]
        ours = fitted([point.ours for point in points], [one[0] for one in used])
        loop = fitted([point.loop for point in points], [one[1] for one in used])
        ratio = ours.cameras / loop.cameras
        figures = {"ours": ours.cameras, "loop": loop.cameras, "ratio": ratio}
        figures |= {"ours_base_s": ours.base, "ours_camera_s": ours.camera, "loop_camera_s": loop.camera}
        figures["busy_share"] = scene.busy
        print(f"one core carries {ours.cameras:.1f} cameras, and {loop.cameras:.1f} with a loop: {ratio:.2f} ×")
        if not args.quick:
            figures |= confirmed(
                *place, min(args.most, round(TARGET * loop.cameras)), warm_s, float(scene.seconds)
            )
    meets = ratio >= TARGET and figures.get("keeps_up", 1.0) == 1.0
    common.conclude("cameras", figures, {"ratio": f">= {TARGET:g}", "keeps_up": "== 1"}, meets)


def fitted(counts: Sequence[int], used: Sequence[float]) -> Cost:
    """Return the straight line through the first and the last point; through nothing, of one point."""
    if len(counts) == 1:
        return Cost(0.0, used[0] / counts[0])
    camera = (used[-1] - used[0]) / (counts[-1] - counts[0])
    return Cost(max(0.0, used[0] - counts[0] * camera), camera)


def cores() -> list[int]:
    return sorted(os.sched_getaffinity(0))


def measured(
    folder: Path, port: int, uris: Sequence[str], point: Point, warm_s: float, seconds: float
) -> tuple[float, float]:
    """Return the processor time per second of the daemon and of the loop, s."""
    state = Path(tempfile.mkdtemp(dir=folder))
    daemon = common.daemon(
        state, port, model=MODEL, sources=uris[: point.ours], capture=CAPTURE, affinity=cores()[:1]
    )
    try:
        with looping(uris[: point.loop], cores()[-1]) as (loop, read):
            time.sleep(warm_s)
            before = cpu_s(daemon.pid), cpu_s(loop), sum(read)
            time.sleep(seconds)
            ours, theirs, frames = (
                now - then for now, then in zip((cpu_s(daemon.pid), cpu_s(loop), sum(read)), before, strict=True)
            )
    finally:
        daemon.terminate()
        daemon.wait()
    share = frames / (seconds * _cameras.FPS * point.loop)
    theirs /= min(1.0, share)
    print(
        f"{point.ours} cameras: {ours / seconds:.3f} s of CPU per second; a loop with {point.loop}: "
        f"{theirs / seconds:.3f} ({share:.2f} of the pictures)",
        flush=True,
    )
    return ours / seconds, theirs / seconds


def cpu_s(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


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


def confirmed(
    folder: Path, port: int, uris: Sequence[str], count: int, warm_s: float, seconds: float
) -> dict[str, float]:
    """Run the daemon with so many cameras on one core; tell whether it keeps up, and how long it had the core."""
    from agent.comms.consumer.client import BrokerOptions
    from agent.comms.consumer.subscribe import Subscriber
    from agent.comms.messages import HealthMessage

    state = Path(tempfile.mkdtemp(dir=folder))
    daemon = common.daemon(state, port, model=MODEL, sources=uris[:count], capture=CAPTURE, affinity=cores()[:1])
    subscriber = Subscriber(BrokerOptions("127.0.0.1", port))
    subscriber.start()
    try:
        time.sleep(warm_s)
        before = cpu_s(daemon.pid)
        began_ns, until = time.monotonic_ns(), time.monotonic() + seconds
        health = [
            msgspec.json.decode(message.payload, type=HealthMessage)
            for message in subscriber.messages(until)
            if message is not None and message.kind == "health" and message.received_ns >= began_ns
        ]
        used = (cpu_s(daemon.pid) - before) / seconds
    finally:
        daemon.terminate()
        daemon.wait()
        subscriber.stop()
    return judged(health, count, used)


def judged(health: Sequence[Any], count: int, used: float) -> dict[str, float]:
    """Tell from health messages whether the daemon has kept up."""
    first, last = health[0].streams, health[-1].streams
    frames = sum(one.frames - first[name].frames for name, one in last.items())
    dropped = sum(one.dropped - first[name].dropped for name, one in last.items())
    reopened = sum(one.reopened - first[name].reopened for name, one in last.items())
    late_ms = sorted(one.p95_ms.get("total", 0.0) for one in last.values())
    reduced = sum(any(message.streams[name].reduced for message in health) for name in last)
    kept = frames / max(1, frames + dropped)
    worst_ms = late_ms[round(IN_TIME * (len(late_ms) - 1))]
    keeps_up = kept >= IN_TIME and worst_ms <= LATE_MS and not reopened and not reduced
    print(
        f"{count} cameras on one core: {used:.2f} of it, {kept:.3f} of {frames + dropped} pictures handled, "
        f"p95 {worst_ms:.0f} ms, {reopened} reopened, {reduced} reduced"
    )
    found = {"keeps_up": float(keeps_up), "confirmed": float(count), "confirmed_core_share": used}
    return {**found, "confirmed_handled": kept, "confirmed_p95_ms": worst_ms, "confirmed_reduced": float(reduced)}


if __name__ == "__main__":
    main()
