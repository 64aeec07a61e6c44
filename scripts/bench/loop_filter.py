"""Decoding without the loop filter between key frames: what it saves, and what that does to pictures and models.

The packaged clip's place is scaled up to 1080p with noise at 15 pictures a second, filmed by a still camera and
by one that pans fast, and encoded as H.264 at constant rates with a key frame every 2 s. Each is decoded
with the filter for every picture, and as the daemon does: for key frames alone; the least processor time of some
rounds. Quality is the PSNR of brightness against the pictures
before encoding; `loss` is what it is lower just before a key frame. NanoDet's persons in the pictures before
encoding, of a score of 0.5 or more, are the truth for its average precision in the decoded ones. The motion
gate sees a still scene at 0.6 Mbit/s: it must not open when a key frame mends what has drifted.
"""

from __future__ import annotations

import io
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import cast

import av
import common
import cv2
import numpy as np
from _stillness import read
from av.packet import Packet
from av.stream import Stream
from msgspec import Struct

from agent.capture.source import FilteredPictures
from agent.capture.video import DecodedImage, PictureConverter, SoftwareDecoder
from agent.compute.gate.motion import MotionGate
from agent.compute.track.state import iou
from agent.compute.vision import VideoPerception
from agent.config import DecodeConfig, GateConfig, StreamConfig
from agent.models.library import open_model
from agent.types import WHOLE, Box, Frame, Image
from tests.support import packet_camera

FPS, GOP = 15, 30
SIZE = (1920, 1080)
KINDS: tuple[FilteredPictures, ...] = ("all", "keyframes")
SCORED, SAME = 0.5, 0.5
"""Least score of a person who counts, and least overlap of one with the same."""
ROUNDS = 5
Persons = list[tuple[float, Box]]


class Film(Struct, frozen=True):
    """How a scene is filmed and encoded; the rate in kbit/s."""

    name: str
    profile: str
    rate: int
    pans: bool = False
    moves: bool = True


FILMS = (
    Film("street_1500", "baseline", 1500),
    Film("street_4000", "main", 4000),
    Film("pan_1000", "main", 1000, pans=True),
    Film("pan_3000", "main", 3000, pans=True),
)
STILL = Film("still", "main", 600, moves=False)


def main() -> None:
    parser = common.arguments(__doc__ or "")
    names = [one.name for one in FILMS]
    parser.add_argument("--film", choices=names, action="append", default=[], help="measure this alone")
    args = parser.parse_args()
    films = [one for one in FILMS if one.name in args.film] or (FILMS[:1] if args.quick else FILMS)
    figures: dict[str, float] = {}
    for film in films:
        figures |= measure(film, GOP if args.quick else 4 * GOP)
    figures["gate_opened"] = openings(STILL, 4 * GOP)
    for name in ("cpu_share", "ap_change", "psnr_loss_db"):
        figures[f"{name}_max"] = max(value for key, value in figures.items() if key.endswith(name))
    targets = {"cpu_share_max": "<= 0.9", "ap_change_max": "<= 0.01", "gate_opened": "== 0"}
    meets = figures["cpu_share_max"] <= 0.9 and figures["ap_change_max"] <= 0.01 and figures["gate_opened"] == 0
    common.conclude("loop_filter", figures, targets, meets)


def measure(film: Film, count: int) -> dict[str, float]:
    """Compare both ways of decoding a film."""
    before = list(pictures(film, count))
    stream = encoded(film, before)
    rounds = [{kind: timed(stream, kind) for kind in KINDS} for _ in range(ROUNDS)]
    cpu_s = {kind: min(one[kind] for one in rounds) for kind in KINDS}
    detect = Detect()
    truth = [detect(one) for one in before[::2]]
    quality, precision = dict[str, list[float]](), dict[str, float]()
    for kind in KINDS:
        after = [picture.image() for picture in decoded(stream, kind)]
        quality[kind] = [psnr(one, other) for one, other in zip(before, after, strict=True)]
        precision[kind] = average_precision(truth, [detect(one) for one in after[::2]])
    losses = [one - other for one, other in zip(quality["all"], quality["keyframes"], strict=True)]
    figures = {
        "cpu_share": cpu_s["keyframes"] / cpu_s["all"],
        "psnr_db": float(np.mean(quality["all"])),
        "psnr_loss_db": max(losses[GOP - 1 :: GOP]),
        "ap": precision["all"],
        "ap_change": precision["all"] - precision["keyframes"],
    }
    print(film.name, {key: round(value, 4) for key, value in figures.items()}, flush=True)
    return {f"{film.name}_{key}": value for key, value in figures.items()}


def pictures(film: Film, count: int) -> Iterator[Image]:
    """What the camera films."""
    random, (width, height) = np.random.default_rng(6), SIZE
    field = random.normal(0, 2.0, (height + 64, width + 64)).astype(np.int8)
    places = read(common.CLIP, count if film.moves else 1)
    for number in range(count):
        place, scale = places[number % len(places)], 2 if film.pans else 1
        view = cv2.resize(place, (scale * width, scale * height), interpolation=cv2.INTER_CUBIC)
        x, y = (int(width * (1 + np.sin(number / 12)) / 2), int(height / 2)) if film.pans else (0, 0)
        row, column = random.integers(64, size=2)
        noise = field[row : row + height, column : column + width, None]
        yield np.clip(view[y : y + height, x : x + width].astype(np.int16) + noise, 0, 255).astype(np.uint8)


def encoded(film: Film, shown: Sequence[Image]) -> bytes:
    """Encode pictures as cameras do."""
    rate = f"bitrate={film.rate}:vbv-maxrate={film.rate}:vbv-bufsize={film.rate}"
    options = {"preset": "faster", "tune": "zerolatency", "profile": film.profile}
    options["x264-params"] = f"keyint={GOP}:min-keyint={GOP}:scenecut=0:{rate}"
    return b"".join(unit.data for unit in packet_camera.encode(shown, fps=FPS, options=options))


def decoded(stream: bytes, filtered: FilteredPictures) -> Iterator[DecodedImage]:
    """Decode a film with the filter for some pictures."""
    converter = PictureConverter("bench")
    with av.open(io.BytesIO(stream), "r", format="h264") as container:
        track = container.streams.video[0]
        decoder = SoftwareDecoder(track)
        decoder.filter_pictures(filtered)
        for packet in container.demux(track):
            for one in decoder.decode(cast("Packet[Stream]", packet) if packet.size else None):
                yield DecodedImage(one.frame, converter)


def timed(stream: bytes, filtered: FilteredPictures) -> float:
    """Return the processor time of decoding, s."""
    began_s = time.thread_time()
    for _ in decoded(stream, filtered):
        pass
    return time.thread_time() - began_s


def openings(film: Film, count: int) -> int:
    """Return how often the gate opens in a still scene for which only key frames are filtered."""
    gate, opened = MotionGate(GateConfig(hold_s=0.0)), 0
    stream = encoded(film, list(pictures(film, count)))
    for number, picture in enumerate(decoded(stream, "keyframes")):
        luma = picture.luma()
        assert luma is not None
        opened += gate.evaluate(luma, number * 1_000_000_000 // FPS, watching=False).reason == "motion"
    return opened


class Detect:
    """Finds persons with NanoDet."""

    def __init__(self) -> None:
        decode = DecodeConfig(labels=("person",), score_threshold=0.1)
        config = StreamConfig("test:", "nanodet", gate=GateConfig(motion=False), decode=decode, threads=1)
        self._vision = VideoPerception("bench", config, open_model("nanodet"))

    def __call__(self, image: Image) -> Persons:
        frame = Frame(image, "bench", 0, 0, datetime.now(UTC))
        found = self._vision.infer_crop(frame, WHOLE).detections
        return [(one.score, one.box) for one in found if one.box is not None]


def average_precision(truth: Sequence[Persons], found: Sequence[Persons]) -> float:
    """Return the area under precision over recall of all pictures together."""
    ranked: list[tuple[float, bool]] = []
    count = 0
    for known, persons in zip(truth, found, strict=True):
        left = [box for score, box in known if score >= SCORED]
        count += len(left)
        for score, box in sorted(persons, reverse=True):
            best = max(left, key=lambda one: iou(one, box), default=None)
            hit = best is not None and iou(best, box) >= SAME
            if best is not None and hit:
                left.remove(best)
            ranked.append((score, hit))
    ranked.sort(key=lambda one: -one[0])
    hits = np.cumsum([hit for _, hit in ranked])
    precision = np.maximum.accumulate((hits / np.arange(1, len(ranked) + 1))[::-1])[::-1]
    return float(np.sum(np.diff(np.concatenate(([0.0], hits / count))) * precision))


def psnr(one: Image, other: Image) -> float:
    """Return the PSNR of a picture against another, of their brightness, dB."""
    grey, known = (cv2.cvtColor(image, cv2.COLOR_BGR2GRAY).astype(np.float32) for image in (one, other))
    return float(10.0 * np.log10(255.0**2 / np.mean((grey - known) ** 2)))


if __name__ == "__main__":
    main()
