"""Decoding on demand: what it saves on a still camera and costs on a busy one, and what becomes of events.

Cost: cameras of 1080p (and of 4K, without `--quick`) at 15 pictures a second, the packaged clip's place scaled up
with noise, are served by RTSP from another process. Five viewers read each at the same time: ours with its gate,
the same with `max_fps = 5`, OpenCV decoding everything with one thread, FFmpeg's program with `fps=5,scale`,
whose pictures come through a pipe as they do to Frigate (see `_pipe`; left out where there is no `ffmpeg`), and
such filters behind PyAV's decoder with one thread in this process, which nobody runs, but which has the same
libraries as ours. Counted is the processor time of the threads that read and decode; of the pipe that of the
program, too; and of ours that of filling a model's input of 416×416 with each picture for which its gate is open,
which the references do not do. The targets are those against OpenCV and the pipe; without a pipe, the filters
count. With `--camera`, one camera is measured, which may be one of `OTHERS`.

Events: people who come and go (see `_visits`), encoded as H.264, taken through the real pipeline and model on
their own time, with everything decoded and on demand; not with `--quick`. A visit is kept if its person is
announced as with everything decoded; its delay is the recorded time from the one announcement to the other. The
model's answers are shared by both runs, which see mostly the same pictures.

Sizes (`--part sizes`): the policy alone on such scenes, see `_sizes`.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import _pipe
import av
import common
import cv2
import numpy as np
from _on_demand import Answers, Encoding, Watched, encode, watch
from _sizes import Noticed, notice, read_packets
from _stillness import read
from _visits import Street, Visit, Weather, plan
from msgspec import Struct

from agent.capture.source import DecodeMode, Demand
from agent.capture.streams import FrameStream
from agent.compute.gate.motion import MotionGate
from agent.compute.infer.image_input import ImageInput
from agent.compute.manifest import InputManifest
from agent.compute.tflite.model import TensorSpec
from agent.config import CaptureConfig, GateConfig
from agent.types import Image
from tests.support import packet_camera

FPS = 15
INPUT = TensorSpec("image", (1, 416, 416, 3), "uint8", 1.0, 0)
WARM_S, QUICK_WARM_S, MEASURED_S = 60.0, 14.0, 16.0
"""Time until a camera is known, and a multiple of all times between key frames, s."""
REPORTED = 1
"""Seed of the visits that are reported; the policy's constants were chosen on 0."""


class Place(Struct, frozen=True):
    """One camera of the cost part; `seconds` from one key frame to the next."""

    name: str
    size: tuple[int, int]
    codec: str
    seconds: int
    busy: bool = False


PLACES = (
    Place("1080p_h264_gop2", (1920, 1080), "libx264", 2),
    Place("1080p_h264_gop8", (1920, 1080), "libx264", 8),
    Place("1080p_h264_busy", (1920, 1080), "libx264", 2, busy=True),
    Place("4k_h264_gop8", (3840, 2160), "libx264", 8),
    Place("1080p_h265_gop2", (1920, 1080), "libx265", 2),
)
OTHERS = (
    Place("1080p_h264_gop8_busy", (1920, 1080), "libx264", 8, busy=True),
    Place("1080p_h265_busy", (1920, 1080), "libx265", 2, busy=True),
    Place("4k_h264_busy", (3840, 2160), "libx264", 2, busy=True),
)
BLOCKS: tuple[tuple[Weather, int], ...] = (
    ("day", 2),
    ("day", 8),
    ("rain", 2),
    ("rain", 8),
    ("night", 2),
    ("night", 8),
    ("lamp", 2),
    ("lamp", 8),
    ("clear", 2),
    ("clear", 8),
)
"""Weather, and seconds from one key frame to the next."""


def main() -> None:
    args = arguments()
    if args.part == "sizes":
        figures = sizes(args)
        common.conclude("decode", figures, {"all_auto_late": "== 0"})
        return
    figures = cost_figures(args) if args.part in (None, "costs") else {}
    figures |= events(args) if args.part == "events" or (args.part is None and not args.quick) else {}
    still = "<= 0.15 of OpenCV and of the pipe, while its view is being learned"
    targets = {
        "still_share": still if args.quick else "<= 0.10 of OpenCV and of the pipe",
        "busy_share": "<= 1.0 of OpenCV and of the pipe",
        "visits_kept": "== 1",
        "delay_p99_s": "<= 0.3",
    }
    common.conclude("decode", figures, targets)


def arguments() -> argparse.Namespace:
    parser = common.arguments(__doc__ or "")
    parser.add_argument("--clip", type=Path, default=common.CLIP, help="the packaged clip")
    parser.add_argument("--model", default="nanodet", help="name or path of a detector of persons")
    parser.add_argument("--seed", type=int, default=REPORTED, help="of the visits")
    parser.add_argument("--seconds", type=float, default=200.0, help="length of each of the ten scenes")
    parser.add_argument("--weathers", help="these alone, such as day,rain")
    names = [one.name for one in (*PLACES, *OTHERS)]
    parser.add_argument("--camera", choices=names, action="append", default=[], help="measure the cost of this")
    parser.add_argument("--part", choices=("costs", "events", "sizes"), help="measure this part alone")
    return parser.parse_args()


def cost_figures(args: argparse.Namespace) -> dict[str, float]:
    """Measure the cost of still and busy cameras."""
    figures, shares = dict[str, float](), dict[str, list[float]]()
    version, codec = _pipe.version(), ".".join(map(str, av.library_versions["libavcodec"]))
    print(f"FFmpeg's program: {version or 'there is none, so the pipe is left out'}; PyAV: libavcodec {codec}")
    for place, costs in all_costs(args).items():
        print(
            f"{place.name}: {', '.join(f'{kind} {1e3 * cost:.1f}' for kind, cost in costs.items())} ms/s of CPU"
        )
        kind = "busy_share" if place.busy else "still_share"
        for reference in ("opencv", "filters", "pipe"):
            if reference not in costs:
                continue
            share = figures[f"{place.name}_of_{reference}"] = costs["ours"] / costs[reference]
            figures[f"{place.name}_5fps_of_{reference}"] = costs["fifth"] / costs[reference]
            counts = reference != "filters" or not version
            shares.setdefault(kind if counts else f"{kind}_of_filters", []).append(share)
    return figures | {name: max(found) for name, found in shares.items()}


def all_costs(args: argparse.Namespace) -> dict[Place, dict[str, float]]:
    """Return the processor time per second of each camera by viewer, s.

    All cameras are watched at the same time. A second of camera is `FPS` pictures that the viewer has got: fewer
    come in a second where the machine is too busy.
    """
    places = [one for one in PLACES[:3] if args.quick] or PLACES
    places = [one for one in (*PLACES, *OTHERS) if one.name in args.camera] or places
    context = multiprocessing.get_context("spawn")
    queues: list[Any] = [context.Queue() for _ in places]
    servers = [
        context.Process(target=_serve, args=(place, args.clip, queue), daemon=True)
        for place, queue in zip(places, queues, strict=True)
    ]
    for server in servers:
        server.start()
    try:
        uris = [queue.get() for queue in queues]
        kinds = KINDS if _pipe.version() else {name: read for name, read in KINDS.items() if name != "pipe"}
        viewers = [[_Viewer(read_all, uri) for read_all in kinds.values()] for uri in uris]
        used = _measured(viewers, QUICK_WARM_S if args.quick else WARM_S)
        return {place: dict(zip(kinds, costs, strict=True)) for place, costs in zip(places, used, strict=True)}
    finally:
        for server in servers:
            server.kill()


def _measured(viewers: list[list[_Viewer]], warm_s: float) -> list[list[float]]:
    for viewer in (one for group in viewers for one in group):
        viewer.start()
    time.sleep(warm_s)
    before = [[viewer.totals() for viewer in group] for group in viewers]
    time.sleep(MEASURED_S)
    used = [
        [_cost(viewer.totals(), begun) for viewer, begun in zip(group, first, strict=True)]
        for group, first in zip(viewers, before, strict=True)
    ]
    for viewer in (one for group in viewers for one in group):
        viewer.stopped.set()
    for viewer in (one for group in viewers for one in group):
        viewer.join(10.0)  # a decoder that works while the program ends would abort it
    return used


def _cost(now: tuple[float, int], before: tuple[float, int]) -> float:
    """Return the processor time per second of camera between two `_Viewer.totals`."""
    return FPS * (now[0] - before[0]) / max(1, now[1] - before[1])


def _serve(place: Place, clip: Path, ready: Any) -> None:
    seconds = max(8, place.seconds)
    gop = f"keyint={place.seconds * FPS}:min-keyint={place.seconds * FPS}:scenecut=0"
    options = {"preset": "veryfast", "tune": "zerolatency", "x264-params": gop}
    if place.codec == "libx265":
        options = {"preset": "ultrafast", "tune": "zerolatency", "x265-params": f"{gop}:log-level=none:bframes=0"}
    units = packet_camera.encode(_pictures(place, clip, seconds * FPS), place.codec, FPS, options=options)
    name = "H265" if place.codec == "libx265" else "H264"
    with packet_camera.PacketCamera(units, codec=name, fps=FPS) as camera:
        ready.put(camera.uri)
        time.sleep(3600)


def _pictures(place: Place, clip: Path, count: int) -> Iterator[Image]:
    pictures, random = read(clip, count), np.random.default_rng(4)
    empty = np.median(np.stack(read(clip, 40, every=12)), axis=0).astype(np.uint8)
    width, height = place.size
    field = random.normal(0, 2.0, (height + 64, width + 64)).astype(np.int8)
    still = cv2.resize(empty, place.size, interpolation=cv2.INTER_CUBIC)
    for number in range(count):
        busy = pictures[number % len(pictures)]
        view = cv2.resize(busy, place.size, interpolation=cv2.INTER_CUBIC) if place.busy else still
        y, x = random.integers(64, size=2)
        noise = field[y : y + height, x : x + width, None]
        yield np.clip(view.astype(np.int16) + noise, 0, 255).astype(np.uint8)


class _Viewer(threading.Thread):
    """Reads a camera in a thread.

    Attributes:
        counted: the thread whose processor time counts, if it is not this one.
        added_s: processor time that counts besides, s.
        pictures: number of pictures that have come, decoded or not.
    """

    def __init__(self, read_all: Callable[[_Viewer], None], uri: str) -> None:
        super().__init__(daemon=True)
        self._read_all, self.uri = read_all, uri
        self.stopped, self.counted, self.added_s = threading.Event(), "", 0.0
        self.pictures = 0

    def run(self) -> None:
        self._read_all(self)

    def totals(self) -> tuple[float, int]:
        """Processor time so far, s, and number of pictures."""
        named = [one for one in threading.enumerate() if self.counted and one.name == self.counted]
        ident = (named[0] if named else self).ident
        assert ident is not None
        return time.clock_gettime(time.pthread_getcpuclockid(ident)) + self.added_s, self.pictures


def _watch_ours(viewer: _Viewer, max_fps: float = 0.0) -> None:
    name = f"{viewer.uri.rpartition(':')[2]}-{max_fps:g}"
    stream = FrameStream(name, viewer.uri, CaptureConfig(max_fps=max_fps), on_change=print)
    viewer.counted, gate = f"read-{name}", MotionGate(GateConfig())
    model, tensor = ImageInput(INPUT, InputManifest()), np.empty(INPUT.shape, np.uint8)
    stream.start()
    while not viewer.stopped.is_set():
        frame = stream.take(0.25)
        viewer.pictures = stream.stats.decoded + stream.stats.undecoded
        if frame is not None:
            picture = frame.luma or frame.image
            decision = gate.evaluate(picture, frame.captured_ns, watching=False)
            if decision.open:
                began_s = time.thread_time()
                model.fill(tensor, frame.planes or frame.model_image, frame.order)
                viewer.added_s += time.thread_time() - began_s
            stream.give_back(frame)
            busy, moved = decision.reason in ("motion", "hold"), decision.reason == "motion"
            stream.set_demand(Demand(DecodeMode.FULL if busy else DecodeMode.PACKETS, moved))
    stream.stop()


def _watch_five(viewer: _Viewer) -> None:
    _watch_ours(viewer, 5.0)


def _decode_with_opencv(viewer: _Viewer) -> None:
    capture = cv2.VideoCapture(viewer.uri, cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
    image = None
    while not viewer.stopped.is_set() and capture.grab():
        _, image = capture.retrieve(image)
        viewer.pictures += 1


def _decode_with_pipe(viewer: _Viewer) -> None:
    with _pipe.Pipe(viewer.uri) as pipe:
        while not viewer.stopped.is_set() and pipe.read():
            viewer.added_s = pipe.cpu_s()
            viewer.pictures += FPS // _pipe.FPS


def _decode_with_filters(viewer: _Viewer) -> None:
    container = av.open(viewer.uri, options={"rtsp_transport": "tcp"})
    video, graph = container.streams.video[0], av.filter.Graph()
    video.codec_context.thread_count = 1
    nodes = [graph.add_buffer(template=video), graph.add("fps", "5"), graph.add("scale", "640:-2")]
    nodes += [graph.add("format", "yuv420p"), graph.add("buffersink")]
    graph.link_nodes(*nodes).configure()
    for frame in container.decode(video):
        viewer.pictures += 1
        graph.push(frame)
        with suppress(av.error.BlockingIOError, av.error.EOFError):
            while True:
                bytes(graph.pull().planes[0])
        if viewer.stopped.is_set():
            return


KINDS: dict[str, Callable[[_Viewer], None]] = {
    "ours": _watch_ours,
    "fifth": _watch_five,
    "opencv": _decode_with_opencv,
    "filters": _decode_with_filters,
    "pipe": _decode_with_pipe,
}
"""Viewers of each camera, by their names in figures; `fifth` is ours with `max_fps = 5`."""


def sizes(args: argparse.Namespace) -> dict[str, float]:
    """Return how late visitors are noticed by the policy alone, and what is decoded while nobody is there."""
    street, found = Street(args.clip, args.model), dict[str, Noticed]()
    with tempfile.TemporaryDirectory(dir=common.ON_DISK) as folder:
        for number, (weather, gop_s) in enumerate(BLOCKS):
            if args.weathers and weather not in args.weathers.split(","):
                continue
            path = Path(folder, f"{number}.ts")
            visits = plan(args.seconds, len(street.walkers), np.random.default_rng((args.seed, number)))
            pictures = street.pictures(visits, args.seconds, weather, 100 * args.seed + number)
            encode(path, pictures, Encoding(gop=10 * gop_s))
            packets = read_packets(path)
            for choice in ("auto", "saving"):
                noticed = notice(packets, visits, choice)
                found.setdefault(f"{weather}_{choice}", Noticed()).add(noticed)
                found.setdefault(f"all_{choice}", Noticed()).add(noticed)
            path.unlink()
    return {name: value for kind, noticed in found.items() for name, value in noticed.figures(kind).items()}


class Kept(Struct):
    """What became of the visits.

    Attributes:
        visits: that were announced with everything decoded.
        lost: of these, not announced on demand.
        delays_s: of those that were, s.
        ours_s, full_s: processor time of reading and decoding.
        scene_s, decoded_s: recorded time, and of it while everything was decoded on demand.
    """

    visits: int = 0
    lost: int = 0
    delays_s: list[float] = []
    ours_s: float = 0.0
    full_s: float = 0.0
    scene_s: float = 0.0
    decoded_s: float = 0.0


def events(args: argparse.Namespace) -> dict[str, float]:
    """Take visits through the pipeline with everything decoded and on demand."""
    street, kept, shares = Street(args.clip, args.model), Kept(), dict[str, float]()
    with tempfile.TemporaryDirectory(dir=common.ON_DISK) as folder:
        for number, (weather, gop_s) in enumerate(BLOCKS):
            if args.weathers and weather not in args.weathers.split(","):
                continue
            seconds, path, answers = args.seconds, Path(folder, f"{number}.ts"), Answers()
            visits = plan(seconds, len(street.walkers), np.random.default_rng((args.seed, number)))
            pictures = street.pictures(visits, seconds, weather, 100 * args.seed + number)
            encode(path, pictures, Encoding(gop=10 * gop_s))
            full, ours = (watch(path, args.model, decode, answers) for decode in ("full", "auto"))
            _compare(kept, visits, full, ours)
            print(
                f"{weather}, key frame every {gop_s} s: {ours.camera.cpu_s / full.camera.cpu_s:.2f} of the time, "
                f"{ours.camera.full_s / seconds:.2f} of it in full; so far {kept.visits} visits, "
                f"{kept.lost} lost, delays {[round(one, 1) for one in kept.delays_s]}",
                flush=True,
            )
            kept.scene_s += seconds
            shares[weather] = ours.camera.full_s / seconds / 2 + shares.get(weather, 0.0)
            path.unlink()
    delays = np.array(kept.delays_s or [0.0])
    return {
        "visits": kept.visits,
        "visits_kept": 1.0 - kept.lost / max(1, kept.visits),
        "delay_p50_s": float(np.percentile(delays, 50)),
        "delay_p99_s": float(np.percentile(delays, 99)),
        "scenes_minutes": kept.scene_s / 60.0,
        "scenes_cpu_of_full": kept.ours_s / kept.full_s,
        "scenes_share_in_full": kept.decoded_s / kept.scene_s,
        **{f"{weather}_share_in_full": share for weather, share in shares.items()},
    }


def _compare(kept: Kept, visits: list[Visit], full: Watched, ours: Watched) -> None:
    kept.ours_s, kept.full_s = kept.ours_s + ours.camera.cpu_s, kept.full_s + full.camera.cpu_s
    kept.decoded_s += ours.camera.full_s
    for visit in visits:
        told, late = (
            [seen.told_s for seen in run.seen if visit.begins_s <= seen.captured_s < visit.ends_s]
            for run in (full, ours)
        )
        if not told:
            continue
        kept.visits += 1
        if late:
            kept.delays_s.append(max(0.0, min(late) - min(told)))
        else:
            kept.lost += 1


if __name__ == "__main__":
    main()
