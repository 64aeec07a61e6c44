"""Privacy masks: secret patterns in masked areas, searched for in everything that the daemon gives, and the cost.

Pictures of the packaged clip get two patterns of black and white squares. The real daemon runs streams that hide
one, the other, both or none of them on one shared camera, and one whose pictures change their size, with
snapshots, clips, kept pictures of parts, a learned view and lessons, at a real broker. Every picture that it
publishes or writes is decoded and correlated with both patterns; the stream without masks shows that they are
found where they are. All other files and messages are searched for their bytes.

What `blur` hides is measured on the clip, and on people in photographs of COCO, which chose its threshold, where
`--data` has them.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import common
import cv2
import msgspec
import numpy as np
import paho.mqtt.client as paho
from numpy.typing import NDArray
from paho.mqtt.enums import CallbackAPIVersion

from agent.capture.privacy import MaskPainter
from agent.compute.blur import BlurFinder
from agent.compute.infer.backends import open_session
from agent.config.places import BLUR_VARIANTS, PrivacyMask, blur_models
from agent.config.toml import to_toml
from agent.features.condition.camera import CameraMemory
from agent.features.condition.view import LearnedView
from agent.models.library import open_model
from agent.types import Box

Gray = NDArray[np.uint8]
WIDTH, HEIGHT, CELL = 768, 576, 24
FPS, PICTURES = 5, 60
SIZES = ((768, 576), (641, 479), (384, 288))
PLACES = {"a": (456, 24), "b": (24, 360)}
"""Left and top of each pattern in the picture, px."""
CELLS = (10, 7)
FOUND = 0.5
"""Correlation from which a pattern is in a picture; what is hidden has some 0.1, by boxes drawn across."""
DARK = 40
"""Grey level from which a pixel of a mask, away from its border, has leaked: JPEG leaves a few."""
HIDDEN = {"open": "", "left": "a", "right": "b", "both": "ab", "sees": "ab", "sizes": "ab", "parts": "ab"}
TARGETS = {
    "outputs": ("pictures decoded and searched", 1000.0, True),
    "leaks": ("pictures with a hidden pattern", 0.0, False),
    "leaked_pixels": ("pixels brighter than black in masks", 0.0, False),
    "leaks_in_bytes": ("files and messages with bytes of a hidden pattern", 0.0, False),
    "found_share": ("of the pictures that may show a pattern, and where it is found", 0.95, True),
    "mask_ms": ("for three masks of a 720p frame", 0.3, False),
}


def main() -> None:
    parser = common.arguments(__doc__ or "")
    common.data_argument(parser)
    args = parser.parse_args()
    figures = (
        costs()
        | blurs(Path() if args.quick else args.data / "coco64_dev.tar", 60 if args.quick else 300)
        | run(28.0 if args.quick else 120.0)
    )
    meets = [
        figures[name] >= limit if least else figures[name] <= limit for name, (_, limit, least) in TARGETS.items()
    ]
    targets = {
        name: f"{'>=' if least else '<='} {limit:g} {what}" for name, (what, limit, least) in TARGETS.items()
    }
    common.conclude("privacy", figures, targets, all(meets))


def pattern(name: str) -> Gray:
    """The secret squares, 0 and 255."""
    bits = np.random.default_rng(ord(name)).integers(0, 2, CELLS[::-1]).astype(np.uint8) * 255
    return np.repeat(np.repeat(bits, CELL, 0), CELL, 1)


def polygon(name: str) -> list[list[float]]:
    """A slanted quadrilateral around a pattern, fractions."""
    left, top = PLACES[name]
    right, bottom = left + CELLS[0] * CELL, top + CELLS[1] * CELL
    corners = ((left - 12, top - 4), (right + 3, top - 14), (right + 14, bottom + 3), (left - 2, bottom + 12))
    return [[x / WIDTH, y / HEIGHT] for x, y in corners]


def write_pictures(folder: Path, sizes: tuple[tuple[int, int], ...]) -> None:
    """Pictures of the clip with both patterns; the sizes take turns of five pictures."""
    folder.mkdir()
    clip = cv2.VideoCapture(str(common.CLIP))
    for number in range(PICTURES):
        read, image = clip.read()
        assert read, "the clip is too short"
        image = cv2.resize(image, (WIDTH, HEIGHT))
        for name, (left, top) in PLACES.items():
            secret = pattern(name)
            image[top : top + secret.shape[0], left : left + secret.shape[1]] = secret[:, :, None]
        size = sizes[number // 5 % len(sizes)]
        if size != (WIDTH, HEIGHT):
            image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        cv2.imwrite(str(folder / f"{number:04}.bmp"), image)


class Search:
    """What was found so far."""

    def __init__(self) -> None:
        self.outputs, self.kinds, self.where = 0, Counter[str](), Counter[str]()
        self.leaks, self.pixels, self.byte_leaks = 0, 0, 0
        self.may_show, self.found = 0, 0
        self.highest = 0.0
        # A row through the middle of the squares: raw in grey and in three channels.
        rows = [pattern(name)[CELL // 2] for name in PLACES]
        self._rows = [row.tobytes() for row in rows] + [np.repeat(row, 3).tobytes() for row in rows]

    def picture(self, stream: str, kind: str, image: Gray, *, drawn: bool) -> None:
        """Search one picture; `drawn`: with boxes, whose pixels in a mask are no leak."""
        self.outputs, self.kinds[kind] = self.outputs + 1, self.kinds[kind] + 1
        for name in PLACES:
            likeness = correlation(image, name)
            if name in HIDDEN[stream]:
                self.highest = max(self.highest, likeness)
                self.leaks += likeness >= FOUND
                self.where[f"{kind} of {stream}"] += likeness >= FOUND
                pixels = 0 if drawn else bright(image, name)
                self.pixels += pixels
                self.where[f"{kind} of {stream}"] += pixels
            else:
                self.may_show += 1
                self.found += likeness >= FOUND

    def view(self, stream: str, strength: NDArray[np.float32]) -> None:
        """Search the edges that were learned of a view: there are none in a black area."""
        if not strength.size:
            return
        self.outputs, self.kinds["views"] = self.outputs + 1, self.kinds["views"] + 1
        for name in PLACES:
            shown = bool(inside(strength, name).mean() >= FOUND * strength.mean())
            self.leaks += shown and name in HIDDEN[stream]
            self.may_show += name not in HIDDEN[stream]
            self.found += shown and name not in HIDDEN[stream]

    def bytes(self, content: bytes) -> None:
        """Search a file or a message that is no picture."""
        self.byte_leaks += any(row in content for row in self._rows)


def correlation(image: Gray, name: str) -> float:
    """The largest correlation of a pattern with the place where it would be, moved by some pixels."""
    height, width = image.shape
    left, top = PLACES[name]
    x, y = width / WIDTH, height / HEIGHT
    size = max(1, round(CELLS[0] * CELL * x)), max(1, round(CELLS[1] * CELL * y))
    secret = cv2.resize(pattern(name), size, interpolation=cv2.INTER_AREA)
    margin = max(2, round(8 * x))
    x0, y0 = max(0, round(left * x) - margin), max(0, round(top * y) - margin)
    part = image[y0 : y0 + size[1] + 2 * margin, x0 : x0 + size[0] + 2 * margin]
    if part.std() < 1.0:
        return 0.0
    likeness = cv2.matchTemplate(part, secret, cv2.TM_CCOEFF_NORMED)
    return float(np.abs(likeness[np.isfinite(likeness)]).max(initial=0.0))


def bright(image: Gray, name: str) -> int:
    """Pixels in a hidden pattern's place, away from the mask's border, that are not black."""
    return int((inside(image, name) >= DARK).sum())


def inside(image: NDArray[Any], name: str) -> NDArray[Any]:
    """The part that a pattern covers, of a picture or its edges, without half a square at its border."""
    height, width = image.shape
    left, top = (at + CELL // 2 for at in PLACES[name])
    right, bottom = left + (CELLS[0] - 1) * CELL, top + (CELLS[1] - 1) * CELL
    x, y = width / WIDTH, height / HEIGHT
    return image[round(top * y) : round(bottom * y), round(left * x) : round(right * x)]


def configuration(folder: Path, port: int) -> dict[str, Any]:
    """The streams, with all that stores or sends pictures."""
    shared = f"dir:{folder / 'one'}?pace=realtime&fps={FPS}&loop=1"
    streams: dict[str, Any] = {}
    for name, hidden in HIDDEN.items():
        streams[name] = {
            "source": shared if name != "sizes" else f"dir:{folder / 'sizes'}?pace=realtime&fps={FPS}&loop=1",
            "model": "nanodet",
            "variant": "256",
            "publish": {"snapshot_every_s": 0.2, "detections": True},
            "privacy": [{"name": one, "polygon": polygon(one)} for one in hidden],
        }
        if name == "parts":
            streams[name] |= {"inspection": {"ng_labels": ["person"], "keep_ok": True}}
        else:
            streams[name] |= {
                "clips": {"fps": FPS, "before_s": 2.0, "after_s": 1.0},
                "condition": {"enabled": True},
            }
    streams["sees"]["mask_model"] = False
    streams["both"]["blur"] = ["person"]
    return {
        "device": {"name": "bench", "profile": "none"},
        "mqtt": {"host": "127.0.0.1", "port": port, "commands": True},
        "storage": {"state_dir": str(folder / "state")},
        "selection": {"after_s": 100000.0},
        "streams": streams,
    }


def run(seconds: float) -> dict[str, float]:
    """Run the daemon for that long while it is asked for pictures, and search all that it gave."""
    search = Search()
    with tempfile.TemporaryDirectory(dir=common.ON_DISK) as base, common.mosquitto() as port:
        folder = Path(base)
        write_pictures(folder / "one", ((WIDTH, HEIGHT),))
        write_pictures(folder / "sizes", SIZES)
        config = configuration(folder, port)
        messages = listen(port)
        began = time.monotonic()
        with daemon(folder, config) as process:
            ask(port, seconds, set(config["streams"]))
            resident_mb = resident(process.pid)
        ran_s = time.monotonic() - began
        for topic, payload in messages():
            examine_message(search, topic, payload)
        for path in sorted(path for path in (folder / "state").rglob("*") if path.is_file()):
            examine_file(search, folder / "state", path)
    print(f"leaks: {dict(+search.where) or 'none'}")
    return {
        "outputs": search.outputs,
        **{f"of_{kind}": count for kind, count in sorted(search.kinds.items())},
        "leaks": search.leaks,
        "leaked_pixels": search.pixels,
        "leaks_in_bytes": search.byte_leaks,
        "highest_correlation_hidden": round(search.highest, 3),
        "found_share": round(search.found / max(1, search.may_show), 4),
        "ran_s": round(ran_s, 1),
        "resident_mb": resident_mb,
    }


def resident(process: int) -> float:
    """Resident set of a process, MB."""
    status = Path(f"/proc/{process}/status").read_text(encoding="utf-8")
    return round(int(status.partition("VmRSS:")[2].split()[0]) / 1000, 1)


@contextmanager
def daemon(folder: Path, config: dict[str, Any]) -> Iterator[subprocess.Popen[bytes]]:
    """The daemon as users start it, until the context ends."""
    file, log = folder / "vedette.toml", folder / "log"
    file.write_text(to_toml(config, {}), encoding="utf-8")
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "agent", "run", "-c", str(file)], cwd=common.ROOT, stderr=stderr
        )
        try:
            yield process
            assert process.poll() is None, f"the daemon ended:\n{log.read_text()}"
        finally:
            process.terminate()
            process.wait(20)
            print(log.read_text(), file=sys.stderr)


def listen(port: int) -> Callable[[], list[tuple[str, bytes]]]:
    """Keep every message from now on; the function returned ends that."""
    kept: list[tuple[str, bytes]] = []
    client = paho.Client(CallbackAPIVersion.VERSION2)
    client.on_message = lambda _, __, message: kept.append((message.topic, bytes(message.payload)))
    subscribed = threading.Event()
    client.on_subscribe = lambda *_: subscribed.set()
    client.connect("127.0.0.1", port)
    client.subscribe("#", 1)
    client.loop_start()
    assert subscribed.wait(5.0), "the broker does not answer"

    def end() -> list[tuple[str, bytes]]:
        client.loop_stop()
        client.disconnect()
        return kept

    return end


def ask(port: int, seconds: float, streams: set[str]) -> None:
    """Ask for snapshots all the time, for clips now and then, and for a lesson."""
    client = paho.Client(CallbackAPIVersion.VERSION2)
    client.connect("127.0.0.1", port)
    client.loop_start()
    until, turn = time.monotonic() + seconds, 0
    while time.monotonic() < until:
        for name in sorted(streams):
            client.publish(f"vedette/bench/{name}/set/snapshot", b"1", qos=0)
            if turn % 40 == 8 and name != "parts":
                client.publish(f"vedette/bench/{name}/set/record", b"6", qos=1)
        if turn == 12:
            client.publish("vedette/bench/left/set/teach", b"gate=open", qos=1)
        turn += 1
        time.sleep(0.25)
    client.loop_stop()
    client.disconnect()


def examine_message(search: Search, topic: str, payload: bytes) -> None:
    """Search a message: a snapshot is a picture."""
    stream = topic.split("/")[2] if topic.count("/") >= 3 else ""
    if payload.startswith(b"\xff\xd8") and stream in HIDDEN:
        image = cv2.imdecode(np.frombuffer(payload, np.uint8), cv2.IMREAD_GRAYSCALE)
        assert image is not None
        search.picture(stream, "snapshots", image.astype(np.uint8), drawn=True)
    elif stream != "open":
        search.bytes(payload)


def examine_file(search: Search, state: Path, path: Path) -> None:
    """Search a file of the state folder: clips, pictures of parts, learned views and all others."""
    place = path.relative_to(state).parts
    if place[0] == "clips" and path.suffix in (".mkv", ".mp4", ".jpg"):
        for image in pictures_in(path):
            search.picture(place[1], "parts" if path.suffix == ".jpg" else "clips", image, drawn=False)
    elif place[0] == "condition":
        search.view(path.stem, learned_view(path))
    else:
        search.bytes(path.read_bytes())
        for image in embedded_pictures(path.read_bytes()):
            search.picture("both", "embedded", image, drawn=True)


def pictures_in(path: Path) -> Iterator[Gray]:
    """Every picture of a clip or a JPEG file, grey."""
    reader = cv2.VideoCapture(str(path))
    while True:
        read, image = reader.read()
        if not read:
            return
        yield cv2.cvtColor(image, cv2.COLOR_BGR2GRAY).astype(np.uint8)


def embedded_pictures(content: bytes) -> Iterator[Gray]:
    """Pictures inside of another file, such as the event queue."""
    at = content.find(b"\xff\xd8\xff")
    while at >= 0:
        image = cv2.imdecode(np.frombuffer(content[at:], np.uint8), cv2.IMREAD_GRAYSCALE)
        if image is not None:
            yield image.astype(np.uint8)
        at = content.find(b"\xff\xd8\xff", at + 3)


def learned_view(path: Path) -> NDArray[np.float32]:
    """Strength of the edges in what was learned of a view; empty: nothing was."""
    view = msgspec.json.decode(path.read_bytes(), type=CameraMemory).view
    return np.linalg.norm(LearnedView.unpack(view).field, axis=2) if view else np.empty((0, 0), np.float32)


def costs() -> dict[str, float]:
    """Time that masks take of a 720p frame, ms."""
    three = (
        ((0.02, 0.02), (0.3, 0.04), (0.28, 0.4), (0.03, 0.35)),
        ((0.7, 0.6), (0.95, 0.5), (0.98, 0.97)),
        ((0.45, 0.1), (0.6, 0.1), (0.6, 0.3), (0.45, 0.3)),
    )
    true = np.empty((720, 1280, 3), np.uint8)

    def show(image: NDArray[np.uint8]) -> None:
        np.copyto(true, image)
        true.fill(0)

    return {
        "mask_ms": painted_ms(three),
        "copy_for_models_ms": timed_ms(show),
        "prepare_ms": prepare_ms(three),
    }


def blurs(photographs: Path, pictures: int) -> dict[str, float]:
    """How many people in photographs `blur = ["person"]` hides, how much of the clip, and the time it takes."""
    models = [(open_model(name, BLUR_VARIANTS[name]), some) for name, some in blur_models(("person",)).items()]
    finder = BlurFinder(models, ("person",), open_session, 1)
    figures, now_ns = dict[str, float](), 0
    clip = cv2.VideoCapture(str(common.CLIP))
    shares, took = list[float](), list[float]()
    while len(took) < pictures and (read := clip.read())[0]:
        now_ns, began = now_ns + 10**8, time.perf_counter()
        found = finder.find(read[1].astype(np.uint8), "bgr", now_ns)
        took.append(time.perf_counter() - began)
        shares.append(float(hidden(found).mean()))
    figures |= {"clip_blurred_share": statistics.mean(shares), "blur_ms": 1e3 * statistics.median(took)}
    if photographs.is_file():
        covered = list[tuple[float, bool]]()
        for image, people in labelled(photographs):
            now_ns += 10**10
            found = finder.find(image, "bgr", now_ns)
            covered += [(share_hidden(hidden(found), one), one[3] - one[1] > 0.15) for one in people]
        figures["people"] = len(covered)
        figures["people_hidden"] = sum(share >= 0.9 for share, _ in covered)
        figures["tall_people"] = sum(tall for _, tall in covered)
        figures["tall_people_hidden"] = sum(share >= 0.9 for share, tall in covered if tall)
    finder.close()
    return figures


def hidden(boxes: list[Box]) -> NDArray[np.bool_]:
    """Which parts of the picture are hidden, on a grid."""
    grid = np.zeros((240, 320), np.bool_)
    for x0, y0, x1, y1 in boxes:
        grid[int(y0 * 240) : int(np.ceil(y1 * 240)), int(x0 * 320) : int(np.ceil(x1 * 320))] = True
    return grid


def share_hidden(grid: NDArray[np.bool_], box: Box) -> float:
    """How much of a box is hidden."""
    x0, y0, x1, y1 = (max(0.0, min(1.0, value)) for value in box)
    left, top = min(int(x0 * 320), 319), min(int(y0 * 240), 239)
    return float(grid[top : max(int(y1 * 240), top + 1), left : max(int(x1 * 320), left + 1)].mean())


def labelled(photographs: Path) -> Iterator[tuple[NDArray[np.uint8], list[Box]]]:
    """Photographs with the boxes of the people in them."""
    with tarfile.open(photographs) as tar:
        files = {Path(one.name): tar.extractfile(one) for one in tar if one.isfile()}
        for path in sorted(path for path in files if path.suffix == ".jpg"):
            content, text = files[path], files.get(Path("labels", path.stem + ".txt"))
            assert content is not None
            image = cv2.imdecode(np.frombuffer(content.read(), np.uint8), cv2.IMREAD_COLOR)
            assert image is not None
            lines = text.read().decode().splitlines() if text is not None else []
            people = [tuple(map(float, line.split()[1:5])) for line in lines if line.split()[0] == "0"]
            yield image.astype(np.uint8), [(x - w / 2, y - h / 2, x + w / 2, y + h / 2) for x, y, w, h in people]


def painted_ms(polygons: tuple[tuple[tuple[float, float], ...], ...]) -> float:
    painter = MaskPainter([PrivacyMask(f"m{number}", one) for number, one in enumerate(polygons)])
    theirs = np.empty((720, 1280, 3), np.uint8)

    def mask(image: NDArray[np.uint8]) -> None:
        """All that a camera does for masks: copy the picture with them to its stream, and wipe its own memory."""
        painter.paint(image, theirs)
        image.fill(0)

    return timed_ms(mask)


def prepare_ms(polygons: tuple[tuple[tuple[float, float], ...], ...]) -> float:
    masks = [PrivacyMask(f"m{number}", one) for number, one in enumerate(polygons)]
    return timed_ms(lambda image: MaskPainter(masks).paint(image, image), 1)


def timed_ms(act: Callable[[NDArray[np.uint8]], None], batches: int = 20) -> float:
    """CPU time, the median of the quietest batch: other processes on the same memory slow a copy down.

    The frames lie in other memory each time, as those of a camera do.
    """
    frames = [np.full((720, 1280, 3), 200, np.uint8) for _ in range(6)]
    medians = []
    for _ in range(batches):
        took = []
        for frame in frames * 4:
            began = time.thread_time()
            act(frame)
            took.append(time.thread_time() - began)
        medians.append(1e3 * statistics.median(took))
        time.sleep(0.1)
    return round(min(medians), 4)


if __name__ == "__main__":
    main()
