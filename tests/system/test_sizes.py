"""A camera whose model climbs sizes: the bundled detector, the daemon as a process, a real broker."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import cv2
import msgspec
import numpy as np

from agent.comms.messages import DetectionsMessage
from agent.models.files import ZOO
from tests.support.mosquitto import Mosquitto
from tests.support.publishing import TOPICS
from tests.support.received import Messages
from tests.support.running import Vedette, events, health, left_open, stopped

_STILL, _CROWD = 40, 60


def test_an_empty_scene_is_seen_small_and_a_crowd_large(tmp_path: Path, broker: Mosquitto) -> None:
    messages = broker.subscribe("vedette/#")
    with Vedette(tmp_path, broker, yard=yard(scenes(tmp_path), "auto")) as vedette:
        messages.wait(lambda m: "end" in {event.kind for event in events(m, "yard")})
        new = next(event for event in events(messages, "yard") if event.kind == "new")
        assert (new.track.label, new.variant, new.backend) == ("person", "416", "cpu")
        variants = Counter(said.variant for said in looks(messages))
        assert {"256", "416"} <= set(variants) <= {"256", "320", "416"}
        assert variants["256"] >= _STILL // 2
        assert variants["416"] >= _CROWD // 2
        now = health(messages)
        assert now is not None
        assert now.streams["yard"].variant in variants
        vedette.config["streams"]["yard"] = yard(tmp_path / "scenes", "256")
        vedette.reload()
        messages.wait(lambda m: Counter(said.variant for said in looks(m))["256"] > variants["256"] + _CROWD)
        vedette.end()
    assert stopped(messages)
    assert left_open(messages, "yard") == set()


def yard(folder: Path, variant: str) -> dict[str, object]:
    return {
        "source": f"dir:{folder}?pace=fast&fps=20",
        "model": "nanodet",
        "variant": variant,
        "gate": {"motion": False},
        "cascade": {"budget_ms": 10_000.0},
        "publish": {"detections": True},
    }


def looks(messages: Messages) -> list[DetectionsMessage]:
    """What was published of each picture."""
    return [msgspec.json.decode(body, type=DetectionsMessage) for body in messages.of(TOPICS.detections("yard"))]


def scenes(folder: Path) -> Path:
    """A grey wall, and then the bundled clip of walkers, as a folder of pictures."""
    folder = folder / "scenes"
    folder.mkdir()
    clip = cv2.VideoCapture(str(ZOO / "walkers.mp4"))
    wall = np.full((576, 768, 3), 128, np.uint8)
    for number in range(_STILL + _CROWD):
        picture = wall if number < _STILL else clip.read()[1]
        cv2.imwrite(str(folder / f"{number:03}.jpg"), picture)
    return folder
