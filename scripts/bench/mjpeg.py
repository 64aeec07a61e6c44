"""Times of a camera without time stamps: the packaged clip by MJPEG over HTTP, against a real RTSP server.

The clip is shown at 2, 5, 10, 15 and 20 pictures per second by both. A number is drawn into each picture, so that
it has the detections of its picture in the clip however it was encoded, and only times differ between the two:

- Tracks: those that the tracker announces with the capture times of the pictures, the first second left out: a
  connection begins in it.
- Spacing: the median time between two pictures of a recording that the daemon made of MJPEG.

With --quick the first 12 s of the clip, of which one track more or less is 6 %, and recordings of 8 s.
"""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import timedelta
from fractions import Fraction
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import NamedTuple

import av
import common
import cv2
import numpy as np
from _stillness import BEGAN, config_for, read

from agent.capture.source import open_source
from agent.compute.track.places import Zones
from agent.compute.track.tracker import Tracker
from agent.compute.vision import VideoPerception
from agent.config import DecodeConfig, TrackConfig
from agent.errors import SourceError
from agent.models.library import open_model
from agent.types import Detection, Frame, Image

RATES = (2, 5, 10, 15, 20)
CLIP_FPS = 10
_MODEL = "nanodet"
_BITS, _BLOCK = 10, 16
"""Digits of a picture's number, and their side, pixels."""
_OPTIONS = {"preset": "ultrafast", "tune": "zerolatency"}
_PATIENCE_S = 60.0


class Shown(NamedTuple):
    """A picture that came: its number in the clip, and its capture time, ns."""

    number: int
    captured_ns: int


def main() -> None:
    args = common.arguments(__doc__ or "").parse_args()
    seconds, recorded_s = (12, 8) if args.quick else (30, 20)
    clip = read(common.CLIP, seconds * CLIP_FPS)
    pictures = [numbered(image, number) for number, image in enumerate(clip)]
    with tempfile.TemporaryDirectory() as folder, http_camera(pictures) as mjpeg:
        with rtsp_camera(pictures, Path(folder)) as rtsp:
            by_rtsp, by_mjpeg = counts([rtsp, mjpeg], detections(clip))
        spacings = recorded_spacings(Path(folder), [f"{mjpeg}/{rate}" for rate in RATES], recorded_s)
    figures: dict[str, float] = {}
    for rate, of_rtsp, of_mjpeg, spacing_s in zip(RATES, by_rtsp, by_mjpeg, spacings, strict=True):
        figures |= {
            f"tracks_rtsp_{rate}": of_rtsp,
            f"tracks_mjpeg_{rate}": of_mjpeg,
            f"spacing_{rate}_s": spacing_s,
        }
    tracks_off = max(abs(one / other - 1) for one, other in zip(by_mjpeg, by_rtsp, strict=True))
    spacing_off = max(abs(spacing_s * rate - 1) for rate, spacing_s in zip(RATES, spacings, strict=True))
    figures |= {"tracks_off": tracks_off, "spacing_off": spacing_off}
    limit = 0.10 if args.quick else 0.05
    targets = {"tracks_off": f"<= {limit}", "spacing_off": "<= 0.1"}
    common.conclude("mjpeg", figures, targets, tracks_off <= limit and spacing_off <= 0.1)


def counts(cameras: Sequence[str], found: Sequence[Sequence[Detection]]) -> list[list[int]]:
    """The number of tracks by each camera, at each rate; all are read at the same time."""
    uris = [f"{camera}/{rate}" for camera in cameras for rate in RATES]
    with ThreadPoolExecutor(len(uris)) as pool:
        numbers = [tracks(shown, found) for shown in pool.map(watch, uris)]
    return [numbers[first : first + len(RATES)] for first in range(0, len(numbers), len(RATES))]


def detections(clip: Sequence[Image]) -> list[list[Detection]]:
    """What the model finds in each picture."""
    perception = VideoPerception("bench", config_for(_MODEL, DecodeConfig()), open_model(_MODEL))
    frames = (Frame(image, "bench", number, number, BEGAN) for number, image in enumerate(clip))
    found = [perception.process(frame).detections or [] for frame in frames]
    perception.close()
    return found


def numbered(image: Image, number: int) -> Image:
    """The picture in half its size, with its number in a corner: a white block for each digit that is 1."""
    drawn = np.asarray(cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA), np.uint8)
    for bit in range(_BITS):
        drawn[:_BLOCK, bit * _BLOCK : (bit + 1) * _BLOCK] = 255 * (number >> bit & 1)
    return drawn


def number_of(image: Image) -> int:
    """The number that was drawn into a picture."""
    blocks = image[:_BLOCK, : _BITS * _BLOCK].reshape(_BLOCK, _BITS, -1).mean(axis=(0, 2))
    return sum(1 << bit for bit, level in enumerate(blocks) if level > 128)


def at_rate(pictures: Sequence[bytes] | Sequence[Image], rate: int) -> Iterator[int]:
    """Numbers of the pictures that a camera of this rate shows of the clip."""
    return (count * CLIP_FPS // rate for count in range(len(pictures) * rate // CLIP_FPS))


@contextmanager
def http_camera(pictures: Sequence[Image]) -> Iterator[str]:
    """Send the clip as MJPEG, at the rate that is the path."""
    encoded = [cv2.imencode(".jpg", image)[1].tobytes() for image in pictures]
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Mjpeg, encoded))
    server.daemon_threads = True
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


class _Mjpeg(BaseHTTPRequestHandler):
    """Sends pictures one after the other, from the first one on."""

    def __init__(self, pictures: Sequence[bytes], *args: object) -> None:
        self._pictures = pictures
        super().__init__(*args)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        rate, began_s = int(self.path[1:]), time.monotonic()
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        self.end_headers()
        with suppress(OSError):  # the viewer has gone
            for count, number in enumerate(at_rate(self._pictures, rate)):
                time.sleep(max(0.0, began_s + count / rate - time.monotonic()))
                jpeg = self._pictures[number]
                head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n"
                self.wfile.write(head.encode() + jpeg + b"\r\n")

    def log_message(self, *args: object) -> None:
        """Nothing."""


@contextmanager
def rtsp_camera(pictures: Sequence[Image], folder: Path) -> Iterator[str]:
    """Send the clip as H.264 by GStreamer's RTSP server, at the rate that is the path."""
    files = [encode(pictures, rate, folder / f"{rate}.mkv") for rate in RATES]
    port = common.free_port()
    command = ["/usr/bin/python3", str(Path(__file__).with_name("_rtsp_files.py")), str(port), *map(str, files)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    if server.stdout.readline() != "ready\n":
        raise SystemExit(
            "no RTSP server: apt-get install python3-gi gir1.2-gst-rtsp-server-1.0 gstreamer1.0-plugins-good"
        )
    try:
        yield f"rtsp://127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()


def encode(pictures: Sequence[Image], rate: int, path: Path) -> Path:
    """Encode the pictures that a camera of this rate shows."""
    with av.open(str(path), "w") as file:
        track = file.add_stream("libx264", rate=rate, options=_OPTIONS)
        track.height, track.width = pictures[0].shape[:2]
        for count, number in enumerate(at_rate(pictures, rate)):
            frame = av.VideoFrame.from_ndarray(pictures[number], format="bgr24")
            frame.pts, frame.time_base = count, Fraction(1, rate)
            file.mux(track.encode(frame))
        file.mux(track.encode(None))
    return path


def watch(uri: str) -> list[Shown]:
    """Read a camera to its end."""
    source, shown = open_source(uri, stall_s=_PATIENCE_S), list[Shown]()
    with suppress(SourceError):
        while (image := source.read(None)) is not None:
            shown.append(Shown(number_of(image), source.captured_ns))
    source.close()
    return shown


def tracks(shown: Sequence[Shown], found: Sequence[Sequence[Detection]]) -> int:
    """The number of tracks that are announced of pictures that came at these times."""
    tracker, count = Tracker(TrackConfig(), Zones(()), "bench", run="0"), 0
    for number, captured_ns in shown:
        if number < CLIP_FPS:
            continue
        at = BEGAN + timedelta(microseconds=captured_ns / 1000)
        count += sum(event.kind == "new" for event in tracker.update(found[number], captured_ns, at))
    return count


def recorded_spacings(folder: Path, uris: Sequence[str], seconds: int) -> list[float]:
    """Median times between pictures in the first recording that the daemon makes of each source, s."""
    names = [f"bench{number or ''}" for number in range(len(uris))]
    clips = f'events = false\nrecord = "continuous"\nsegment_s = {seconds}\nfps = 30.0\n'
    extra = "\n".join(f"[streams.{name}.clips]\n{clips}" for name in names)
    running = common.daemon(folder, common.free_port(), model="face", sources=uris, extra=extra)
    try:
        return [float(np.median(np.diff(recorded_s(folder / "state" / "clips" / name)))) for name in names]
    finally:
        running.terminate()
        running.wait()


def recorded_s(folder: Path) -> list[float]:
    """The times of the pictures in the first recording in a folder, s, as soon as there is one."""
    until = time.monotonic() + 2 * _PATIENCE_S
    while not (files := sorted(folder.glob("[!.]*.mp4"))):
        if time.monotonic() > until:
            raise SystemExit(f"{folder.name}: no recording in {2 * _PATIENCE_S:.0f} s")
        time.sleep(0.2)
    with av.open(str(files[0])) as file:
        return sorted(float(one.pts * one.time_base) for one in file.demux(video=0) if one.pts is not None)


if __name__ == "__main__":
    main()
