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
handled, in 0.95 of the streams 0.95 of them within half a second, and the governor reduces nothing.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import subprocess
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
STAGES = ("queue", "prepare", "infer", "decode")
"""From the capture of a picture to its detections."""
LATE_MS, IN_TIME = 500.0, 0.95
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
    args = parser.parse_args()
    scene, points = (_cameras.QUICK, QUICK) if args.quick else (_cameras.Scene(), POINTS)
    most = points[-1].ours + points[-1].loop if args.quick else args.most
    with (
        tempfile.TemporaryDirectory() as folder,
        common.mosquitto() as port,
        _cameras.served(scene, most) as served,
    ):
        setting = Setting(Path(folder), port, served, 8.0 if args.quick else 30.0, float(scene.seconds))
        ours, loop = (statistics.median(one) for one in zip(*(measured(setting, p) for p in points), strict=True))
        figures = {"ours": 1.0 / ours, "loop": 1.0 / loop, "ratio": loop / ours, "busy_share": scene.busy}
        figures |= {"ours_camera_s": ours, "loop_camera_s": loop}
        print(f"one core carries {1.0 / ours:.1f} cameras, and {1.0 / loop:.1f} with a loop: {loop / ours:.2f} ×")
        if not args.quick:
            figures |= confirmed(setting, min(most, round(TARGET / loop)))
    meets = figures["ratio"] >= TARGET and figures.get("keeps_up", 1.0) == 1.0
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


def confirmed(setting: Setting, count: int) -> dict[str, float]:
    """Run the daemon with so many cameras on one core; tell whether it keeps up, and how long it had the core."""
    from agent.comms.consumer.client import BrokerOptions
    from agent.comms.consumer.subscribe import Subscriber
    from agent.comms.messages import HealthMessage

    daemon, sent = setting.daemon(count), setting.cameras.sent
    subscriber = Subscriber(BrokerOptions("127.0.0.1", setting.port))
    subscriber.start()
    try:
        time.sleep(setting.warm_s)
        before = cpu_s(daemon.pid), sum(sent[:count]), core_s(cores()[0])
        began_ns, until = time.monotonic_ns(), time.monotonic() + setting.seconds
        health = [
            msgspec.json.decode(message.payload, type=HealthMessage)
            for message in subscriber.messages(until)
            if message is not None and message.kind == "health" and message.received_ns >= began_ns
        ]
        used, frames = cpu_s(daemon.pid) - before[0], sum(sent[:count]) - before[1]
        others = core_s(cores()[0]) - before[2] - used
    finally:
        daemon.terminate()
        daemon.wait()
        subscriber.stop()
    read = frames / (count * setting.seconds * _cameras.FPS)
    found = {"confirmed_core_share": used / setting.seconds, "confirmed_others_share": others / setting.seconds}
    print(f"the daemon had {found['confirmed_core_share']:.2f} of the core, ", end="")
    print(f"other programs {found['confirmed_others_share']:.2f}")
    return judged(health, count, read) | found


def judged(health: Sequence[Any], count: int, read: float) -> dict[str, float]:
    """Tell from health messages, and the share of pictures that was read, whether the daemon has kept up."""
    first, last = health[0].streams, health[-1].streams
    frames = sum(one.frames - first[name].frames for name, one in last.items())
    dropped = sum(one.dropped - first[name].dropped for name, one in last.items())
    reduced = sum(any(message.streams[name].reduced for message in health) for name in last)
    waits_ms = sorted(sum(one.p95_ms.get(stage, 0.0) for stage in STAGES) for one in last.values())
    late_ms = waits_ms[round(IN_TIME * (count - 1))]
    handled = frames / max(1, frames + dropped)
    keeps_up = min(read, handled) >= IN_TIME and late_ms <= LATE_MS and not reduced
    print(
        f"{count} cameras on one core: {read:.3f} of their pictures read, {handled:.3f} of {frames + dropped} "
        f"decoded ones handled, p95 {late_ms:.0f} ms, {reduced} reduced"
    )
    found = {"keeps_up": float(keeps_up), "confirmed": float(count), "confirmed_read": read}
    return {
        **found,
        "confirmed_handled": handled,
        "confirmed_p95_ms": late_ms,
        "confirmed_reduced": float(reduced),
    }


if __name__ == "__main__":
    main()
