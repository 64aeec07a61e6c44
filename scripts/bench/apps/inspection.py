"""Inspection of parts: verdicts of the daemon on castings, and the time from trigger to verdict.

Castings: those of one half by looks, sound ones alone, teach `vedette optimise anomaly`; the daemon judges those
of the other half, sound and broken, each picture a part, and its verdicts are read from the broker. AUROC is that
of the published scores. With the thresholds as they come, 0.5 for a doubt and 0.6 for a defect, broken castings
that are told ok escape, and sound ones that are not ok are rejected in vain. Then the halves change places.

Time: frames of 1280×720, the bundled detector in INT8 at 256 on a crop of half of the frame's sides, as the
daemon runs it, from the trigger to the published verdict; against an ordinary script that gives the whole frame
to the float model at 416 as a converter leaves it. Both in turns on the same frame, one thread. A part has more
pixels in the crop than in the whole frame.

What a network trained on both kinds gives is in `optimise/tiny`, and shown as recorded.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import common
import cv2
import msgspec
import numpy as np
import operator_fusion
import tomli_w
from _unfused import as_float, unfuse
from anomaly import HALF, examples
from numpy.typing import NDArray
from paho.mqtt import client as mqtt
from paho.mqtt.enums import CallbackAPIVersion
from shrink import CASTINGS, castings_of, folds_of

from agent.comms.messages import ModelId, VerdictMessage
from agent.comms.reporter import Reporter
from agent.comms.topics import Topics
from agent.compute.tflite.expand import expand_int4
from agent.compute.vision import VideoPerception
from agent.config import PublishConfig, StreamConfig
from agent.config.features import InspectionConfig
from agent.daemon.parts import Parts
from agent.daemon.streams.pipeline import VideoPipeline
from agent.features.inspection.part import InspectionPart
from agent.features.inspection.triggers import Inspection
from agent.models.files import load_file
from agent.models.library import open_model, open_whole_model
from agent.models.writer import write_version
from agent.optimise.anomaly.file import AnomalySettings, make_anomaly_model
from agent.optimise.anomaly.memory import roc_area
from agent.types import Frame, Image, OpenTrack

DOUBT, DEFECT = 0.5, 0.6
AREA, ACCURACY, TIME = 0.97, 0.997, 0.25
RECORDED = common.ROOT / "scripts" / "bench" / "optimise" / "recorded.json"


def main() -> None:
    parser = common.arguments(__doc__ or "")
    common.data_argument(parser)
    args = parser.parse_args()
    cv2.setNumThreads(1)
    figures = verdict_figures(common.needed(args.data / CASTINGS), quick=args.quick)
    figures |= time_figures(60 if args.quick else 400)
    recorded = json.loads(RECORDED.read_text("utf-8"))["tiny/castings"]["figures"]
    figures["recorded_tiny_int8_accuracy"] = recorded["int8"]
    targets = {
        "auroc": f">= {AREA}",
        "time_ratio_p99": f"<= {TIME}",
        "recorded_tiny_int8_accuracy": f">= {ACCURACY}",
    }
    meets = figures["auroc"] >= AREA and figures["time_ratio_p99"] <= TIME
    meets = meets and figures["recorded_tiny_int8_accuracy"] >= ACCURACY
    common.conclude("apps/inspection", figures, targets, meets)


def verdict_figures(archive: Path, *, quick: bool) -> dict[str, float]:
    """Figures of the daemon's verdicts, mean of both halves; with `quick` of one, and fewer castings."""
    castings, broken = castings_of(archive)
    halves = HALF[folds_of(castings, broken)]
    pictures = np.stack(castings)
    found = []
    for learned in (halves,) if quick else (halves, ~halves):
        test = np.flatnonzero(~learned)[:: 4 if quick else 1]
        sound = pictures[learned & (broken == 0)]
        scores = judged(sound[..., ::-1], pictures[test])
        found.append(rates(scores, broken[test] == 1))
        print(", ".join(f"{name} {value:.3f}" for name, value in found[-1].items()), flush=True)
    return {name: float(np.mean([one[name] for one in found])) for name in found[0]}


def rates(scores: NDArray[np.float64], broken: NDArray[np.bool_]) -> dict[str, float]:
    """Shares of the verdicts, with the thresholds as they come."""
    sound, faulty = scores[~broken], scores[broken]
    return {
        "parts": float(len(scores)),
        "auroc": roc_area(sound.astype(np.float32), faulty.astype(np.float32)),
        "broken_ng": float(np.mean(faulty >= DEFECT)),
        "broken_ok": float(np.mean(faulty < DOUBT)),
        "sound_ok": float(np.mean(sound < DOUBT)),
        "sound_ng": float(np.mean(sound >= DEFECT)),
    }


def judged(sound: NDArray[Any], parts: NDArray[Any]) -> NDArray[np.float64]:
    """Score of each part, as the daemon publishes it; RGB to learn from, BGR to judge."""
    backbone = open_whole_model("inspection")
    made = make_anomaly_model(backbone, examples(sound, backbone), settings=AnomalySettings(false_alarms=0.05))
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        write_version("inspection", place / "castings.tflite", made.content, {}, keys=made.keys)
        (place / "parts").mkdir()
        for number, part in enumerate(parts):
            cv2.imwrite(str(place / "parts" / f"{number:05}.png"), part)
        return np.array([one.score for one in daemon_verdicts(place, len(parts))])


def daemon_verdicts(folder: Path, count: int) -> list[VerdictMessage]:
    """What a daemon publishes on a folder of parts, in their order."""
    with common.mosquitto() as port:
        config = {
            "device": {"name": "bench"},
            "mqtt": {"host": "127.0.0.1", "port": port},
            "storage": {"state_dir": str(folder / "state"), "durability": "batch"},
            "streams": {
                "line": {
                    "source": f"dir:{folder / 'parts'}?pace=fast",
                    "model": str(folder / "castings.toml"),
                    "threads": 1,
                    "decode": {"score_threshold": 0.0001},
                    "inspection": {"ng_score": DEFECT, "keep_bytes": 0, "deadline_s": 60.0},
                }
            },
        }
        (folder / "vedette.toml").write_text(tomli_w.dumps(config), "utf-8")
        return collected(port, folder / "vedette.toml", count)


def collected(port: int, config: Path, count: int) -> list[VerdictMessage]:
    """Run a daemon until it has published so many verdicts, and return them in the order of their numbers."""
    received: dict[str, VerdictMessage] = {}

    def on_message(_client: Any, _userdata: Any, message: mqtt.MQTTMessage) -> None:
        one = msgspec.json.decode(message.payload, type=VerdictMessage)
        received[one.id] = one

    client = mqtt.Client(CallbackAPIVersion.VERSION2)
    client.on_message = on_message
    client.connect("127.0.0.1", port)
    client.subscribe("vedette/bench/line/verdicts", qos=1)
    client.loop_start()
    command = [sys.executable, "-m", "agent", "run", "-c", str(config)]
    daemon = subprocess.Popen(command, cwd=common.ROOT, stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 600
        while len(received) < count and time.monotonic() < until:
            time.sleep(0.1)
    finally:
        daemon.terminate()
        daemon.wait(10)
        client.loop_stop()
    if len(received) != count:
        raise SystemExit(f"{len(received)} of {count} verdicts came")
    return sorted(received.values(), key=lambda one: one.seq)


class Sink:
    """Keeps the verdicts of a pipeline."""

    def __init__(self) -> None:
        self.verdicts: list[VerdictMessage] = []

    def put(self, topic: str, body: bytes, track: OpenTrack | None = None) -> None:
        if topic.endswith("/verdicts"):
            self.verdicts.append(msgspec.json.decode(body, type=VerdictMessage))

    def retain(self, topic: str, payload: bytes, *, patient: bool = False) -> None:
        pass

    def send(self, topic: str, payload: bytes) -> None:
        pass


class Turns:
    """A source that runs the script on each frame before it gives it, and keeps its times, ms."""

    lost = False

    def __init__(self, frames: Sequence[Image], script: operator_fusion.Run) -> None:
        self._frames, self._script = list(frames), script
        self.times: list[float] = []

    @property
    def ended(self) -> bool:
        return not self._frames

    def take(self, timeout_s: float) -> Frame | None:
        image = self._frames.pop(0)
        began = time.perf_counter()
        self._script(image)
        self.times.append((time.perf_counter() - began) * 1e3)
        now = time.monotonic_ns()
        return Frame(image, "line", len(self.times), now, datetime.now(UTC), "bgr", now)

    def give_back(self, frame: Frame) -> None:
        pass


def time_figures(count: int) -> dict[str, float]:
    """Times from trigger to verdict, and of the script, in turns."""
    unfused = unfuse(as_float(expand_int4(load_file("nanodet")[0], None)), batch_norm=True)
    source = Turns(list(frames(count)), operator_fusion.script(unfused, normalised=True))
    config = InspectionConfig(crop=(0.25, 0.25, 0.75, 0.75), keep_bytes=0)
    stream = StreamConfig(source="test:", model="nanodet", variant="256", threads=1, inspection=config)
    sink = Sink()
    with ExitStack() as opened:
        folder = Path(opened.enter_context(tempfile.TemporaryDirectory()))
        inspection = Inspection("line", config, folder, folder)
        opened.callback(inspection.close)
        vision = VideoPerception("line", stream, open_model("nanodet", "256"))
        opened.callback(vision.close)
        model, publish = ModelId("nanodet", ""), PublishConfig(snapshot=False)
        reporter = Reporter(Topics("vedette", "bench"), "line", publish, model, sink, sink)
        parts = Parts()
        parts.attach("inspection", InspectionPart(inspection, vision, reporter, publish))
        VideoPipeline(source, vision, reporter, parts).run(threading.Event())
    ours = np.array([one.judged_ms for one in sink.verdicts][1:])
    theirs = np.array(source.times[1:])
    figures = {f"verdict_ms_p{share}": float(np.percentile(ours, share)) for share in (50, 99)}
    figures |= {f"script_ms_p{share}": float(np.percentile(theirs, share)) for share in (50, 99)}
    ratios = {f"time_ratio_p{at}": figures[f"verdict_ms_p{at}"] / figures[f"script_ms_p{at}"] for at in (50, 99)}
    return figures | ratios


def frames(count: int) -> Iterator[Image]:
    """Frames of the bundled clip, 1280×720."""
    there = operator_fusion.pictures(count)
    for number in range(count):
        yield cv2.resize(there[number % len(there)], (1280, 720)).astype(np.uint8)


if __name__ == "__main__":
    main()
