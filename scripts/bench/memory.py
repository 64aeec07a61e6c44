"""Memory: resident set of the real daemon with one stream and with several of the same model, and its growth.

The daemon runs as its own process on the clip in a loop, at real-time pace. Then its camera is switched off and
on again and again by commands, as `vedette command` sends them, and off at last: what is more than before the
first time, and what is left without a camera. The growth over frames is watched at `pace=fast`.

Cameras of RTSP, 1080p at 15 pictures a second, come from another process (see `_cameras`): one, one of which
everything is decoded, and eight, at whose places somebody is a tenth of the time; not with `--quick`, since a
camera has to be known before less is decoded. Of them, the proportional set is told as well, to which a library
counts in part if other processes have it, too.

Modules are compiled before anything is measured, as those of an installed package are: a process that compiles
them itself keeps 1 MB more.

How much of a library's file is resident depends on the kernel and on what it has just read: the same daemon had
118 MB on one machine and 154 MB on another. So the targets compare it, in the same run, with a bare script that
captures the same clip with OpenCV and runs the same model with LiteRT.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

import _cameras
import common
import msgspec
import psutil

MB = 1024 * 1024
SETTLE_S = 6.0
OFF_S, ON_S = 0.3, 1.2
"""Between two commands: until it has stopped, and until it has seen some pictures and what starts has settled."""
DEVICE = "bench"
TARGETS = {
    "beyond_bare_mb": (25.0, "more than the bare script, with one stream"),
    "toggles_growth_mb": (5.0, "more than before the first time, after all of them"),
    "switched_off_beyond_bare_mb": (0.0, "more than the bare script after that, with the camera off"),
    "further_stream_mb": (30.0, "for each stream of the same model after the first"),
    "raw_mb": (120.0, "with one camera whose pictures are not encoded, as of V4L2"),
    "rtsp_mb": (135.0, "with one RTSP camera of 1080p"),
    "rtsp_eight_mb": (300.0, "with eight of them"),
    "hearing_mb": (72.0, "with one stream of sound and no camera"),
    "growth_mb": (2.0, "between the first and the last tenth of the frames"),
}
MODULES = (
    "agent.cli.run",
    "agent.daemon.daemon",
    "agent.daemon.streams.stream",
    "agent.capture.streams",
    "agent.capture.network",
    "agent.capture.camera_sound",
    "agent.compute.hearing",
    "agent.compute.vision",
    "agent.compute.infer.litert",
)
BARE_FRAMES = 60
CAMERAS = 8
RAW = "test:?size=1280x720&fps=10"
"""Stands for a V4L2 camera: OpenCV without PyAV."""


def main() -> None:
    parser = common.arguments(__doc__ or "")
    parser.add_argument(
        "--frames", type=int, default=0, help="frames over which growth is watched; default 20000"
    )
    parser.add_argument("--part", choices=("network",), help="measure only the cameras of RTSP")
    args = parser.parse_args()
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    common.child("memory:load_modules")
    if args.part:
        network_alone()
    frames = args.frames or (2000 if args.quick else 20000)
    toggles, seconds = (3, 3.0) if args.quick else (30, 20.0)
    with tempfile.TemporaryDirectory() as folder, common.mosquitto() as port:
        common.child("memory:bare")  # the first to read the libraries is charged for more of them
        figures = toggled(Path(folder), port, toggles, seconds)
        bare_mb = common.child("memory:bare")["mb"]
        print(f"bare script: {bare_mb:.1f} MB")
        figures["bare_mb"] = bare_mb
        figures["beyond_bare_mb"] = figures["one_stream_mb"] - bare_mb
        figures["switched_off_beyond_bare_mb"] = figures["switched_off_mb"] - bare_mb
        figures["four_streams_mb"] = steady(Path(folder), port, seconds, streams=4)
        figures["further_stream_mb"] = (figures["four_streams_mb"] - figures["one_stream_mb"]) / 3
        figures["hearing_mb"] = hearing(Path(folder), port, seconds)
        print(f"4 streams: {figures['four_streams_mb']:.1f} MB; one of sound: {figures['hearing_mb']:.1f} MB")
        figures["raw_mb"] = raw(Path(folder), port)
        if not args.quick:
            figures |= network_cameras(Path(folder), port)
        small = str(common.face_model(Path(folder)))
        figures["growth_mb"] = grown(Path(folder), port, small, frames)
    told({**figures, "toggles": toggles, "frames_watched": frames})


def network_alone() -> None:
    """Measure the cameras of RTSP, the bare script, and a camera that nobody has to decode, and end."""
    with tempfile.TemporaryDirectory() as folder, common.mosquitto() as port:
        figures = {"bare_mb": common.child("memory:bare")["mb"]}
        figures["raw_mb"] = raw(Path(folder), port)
        told(figures | network_cameras(Path(folder), port))


def raw(folder: Path, port: int) -> float:
    """Return the resident set with a camera whose pictures are not encoded, MB."""
    return statistics.median(watched(folder, port, [RAW], "", (SETTLE_S, 3.0))[0])


def told(figures: dict[str, float]) -> None:
    """End with the targets of these figures."""
    targets = {name: one for name, one in TARGETS.items() if name in figures}
    meets = all(figures[name] <= limit for name, (limit, _) in targets.items())
    limits = {name: f"<= {limit:g} {what}".rstrip() for name, (limit, what) in targets.items()}
    common.conclude("memory", figures, limits, meets)


def load_modules() -> None:
    """Import what the daemon and its streams import, so that it is compiled."""
    for module in MODULES:
        import_module(module)
    print(json.dumps({"modules": len(sys.modules)}))


def bare() -> None:
    """Capture the clip and run the model, as the shortest script does; print the resident set."""
    import cv2
    from overhead import Reader, interpreter

    cv2.setNumThreads(1)
    read, made = Reader(), interpreter("nanodet")
    details = made.get_input_details()[0]
    size, view = (int(details["shape"][2]), int(details["shape"][1])), made.tensor(details["index"])
    for _ in range(BARE_FRAMES):
        cv2.resize(read(), size, dst=view()[0])
        made.invoke()
    print(json.dumps({"mb": resident_mb(psutil.Process())}))


def resident_mb(process: psutil.Process) -> float:
    return float(process.memory_info().rss) / MB


def median_mb(process: psutil.Process, seconds: float) -> float:
    """Median resident set over a time, MB."""
    samples = []
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        samples.append(resident_mb(process))
        time.sleep(0.25)
    return statistics.median(samples)


def steady(folder: Path, port: int, seconds: float, streams: int = 1, extra: str = "") -> float:
    """Return the median resident set once the streams run, MB. `extra` is more of the configuration."""
    daemon = common.daemon(folder, port, streams=streams, extra=extra)
    try:
        time.sleep(SETTLE_S)
        return median_mb(psutil.Process(daemon.pid), seconds)
    finally:
        daemon.terminate()
        daemon.wait()


def hearing(folder: Path, port: int, seconds: float) -> float:
    """Return that of a daemon that only hears: the packaged recording in a loop, small-speech, MB."""
    source = f"wav:{common.CLIP.with_name('spoken.flac')}?pace=realtime&loop=1"
    stream = f'[streams.bench]\nsource = "{source}"\nmodel = "small-speech"'
    return steady(folder, port, seconds, streams=0, extra=stream)


def network_cameras(folder: Path, port: int) -> dict[str, float]:
    """Memory with one RTSP camera, with one of which everything is decoded, and with eight, MB."""
    figures: dict[str, float] = {}
    with _cameras.served(_cameras.Scene(), CAMERAS) as (uris, _):
        for name, sources, capture in (
            ("rtsp", uris[:1], ""),
            ("rtsp_full", uris[:1], 'decode = "full"'),
            ("rtsp_eight", uris, ""),
        ):
            resident, proportional = watched(folder, port, sources, capture, (30.0, 40.0))
            figures[f"{name}_mb"], figures[f"{name}_most_mb"] = statistics.median(resident), max(resident)
            figures[f"{name}_pss_mb"] = statistics.median(proportional)
            told = f"{figures[f'{name}_mb']:.1f} MB, at most {figures[f'{name}_most_mb']:.1f}"
            print(f"{name}: {told}, proportional {figures[f'{name}_pss_mb']:.1f}")
    return figures


def watched(
    folder: Path, port: int, sources: Sequence[str], capture: str, times_s: tuple[float, float]
) -> tuple[list[float], list[float]]:
    """Return resident and proportional sets over a time, MB; `times_s` is until it begins, and its length."""
    daemon = common.daemon(Path(tempfile.mkdtemp(dir=folder)), port, sources=sources, capture=capture)
    process, resident, proportional = psutil.Process(daemon.pid), [], []
    try:
        time.sleep(times_s[0])
        until = time.monotonic() + times_s[1]
        while time.monotonic() < until:
            memory = process.memory_full_info()
            resident.append(memory.rss / MB)
            proportional.append(memory.pss / MB)
            time.sleep(0.25)
    finally:
        daemon.terminate()
        daemon.wait()
    return resident, proportional


def toggled(folder: Path, port: int, times: int, seconds: float) -> dict[str, float]:
    """One stream's memory, how much more it is once it was off so many times, and what is left without it, MB."""
    folder = Path(tempfile.mkdtemp(dir=folder))  # what is switched off stays off in the same one
    daemon = common.daemon(folder, port, extra=f'[device]\nname = "{DEVICE}"')
    process = psutil.Process(daemon.pid)
    try:
        time.sleep(SETTLE_S)
        before = median_mb(process, seconds)
        for _ in range(times):
            switch(port, "off")
            time.sleep(OFF_S)
            switch(port, "on")
            time.sleep(ON_S)
        after = median_mb(process, seconds)
        switch(port, "off")
        time.sleep(ON_S)
        off = resident_mb(process)
    finally:
        daemon.terminate()
        daemon.wait()
    print(f"1 stream: {before:.1f} MB; after {times} times off and on {after:.1f} MB; switched off {off:.1f} MB")
    return {"one_stream_mb": before, "toggles_growth_mb": after - before, "switched_off_mb": off}


def switch(port: int, value: str) -> None:
    """Send a command as `vedette command` does."""
    from agent.comms.consumer import BrokerOptions, send_command
    from agent.comms.topics import Topics

    request = {"stream": "bench", "what": "enabled", "value": value}
    answer = send_command(BrokerOptions("127.0.0.1", port), Topics("vedette", DEVICE), "set", request, 10.0)
    if not answer.ok:
        raise SystemExit(f"the daemon refuses to switch its camera {value}: {answer.reason}")


def grown(folder: Path, port: int, model: str, frames: int) -> float:
    """How much more memory the last tenth of the frames takes than the first tenth after warming up, MB."""
    from agent.comms.consumer import BrokerOptions, Subscriber
    from agent.health import HealthMessage

    subscriber = Subscriber(BrokerOptions("127.0.0.1", port))
    subscriber.start()
    daemon = common.daemon(folder, port, model=model, pace="fast")
    process = psutil.Process(daemon.pid)
    samples: list[tuple[int, float]] = []
    try:
        for message in subscriber.messages():
            if message is not None and message.kind == "health" and not message.retained:
                health = msgspec.json.decode(message.payload, type=HealthMessage)
                samples.append((health.streams["bench"].frames, resident_mb(process)))
                if samples[-1][0] >= frames:
                    break
    finally:
        daemon.terminate()
        daemon.wait()
        subscriber.stop()
    # Health comes every half second: of a short run perhaps not once within a tenth.
    first = [mb for n, mb in samples if frames * 0.1 <= n <= frames * 0.2] or [
        next(mb for n, mb in samples if n >= frames * 0.1)
    ]
    last = [mb for n, mb in samples if n >= frames * 0.9]
    growth = statistics.median(last) - statistics.median(first)
    print(f"over {samples[-1][0]} frames: {growth:+.2f} MB")
    return growth


if __name__ == "__main__":
    main()
