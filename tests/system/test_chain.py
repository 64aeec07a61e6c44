"""Secondary models and shared cameras in a real daemon at a real broker."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import pytest

pytest.importorskip("ai_edge_litert", reason="models are written with ai-edge-litert")

from tests.support.chains import chained_model, dressed, tint_model
from tests.support.mosquitto import Mosquitto
from tests.support.publishing import TOPICS
from tests.support.received import Messages
from tests.support.running import Vedette, camera, events, left_open, states


def _pictures(folder: Path, *colours: str, each: int = 20) -> str:
    pictures = folder / "pictures"
    pictures.mkdir()
    for number in range(each * len(colours)):
        cv2.imwrite(str(pictures / f"{number:04}.png"), dressed(colours[number // each]))
    return f"dir:{pictures}?pace=realtime&fps=10&loop=1"


def _stream(model: Path, source: str, **keys: Any) -> dict[str, Any]:
    return camera(model, source, gate={"motion": False}, **{"publish": {"detections": True}, **keys})


def _told(messages: Messages, stream: str = "front") -> list[str]:
    return [one.track.attributes["colour"].value for one in events(messages, stream) if one.track.attributes]


def test_events_have_what_the_secondary_model_tells(tmp_path: Path, broker: Mosquitto) -> None:
    messages = broker.subscribe("#")
    tint_model(tmp_path)
    source = _pictures(tmp_path, "red", "blue")
    with Vedette(tmp_path, broker, front=_stream(chained_model(tmp_path), source)) as running:
        messages.wait(lambda m: {"red", "blue"} <= set(_told(m)))
        first = events(messages)[0]
        assert first.kind == "new"
        assert first.track.attributes["colour"].score > 0.5
        assert first.latency_ms.secondary > 0.0
        assert "attribute" in {one.reason for one in events(messages)}
        assert running.end()[0] == 0
    assert left_open(messages) == set()
    assert events(messages)[-1].track.attributes["colour"].value in {"red", "blue"}


def test_home_assistant_gets_a_sensor_of_each_attribute(tmp_path: Path, broker: Mosquitto) -> None:
    messages = broker.subscribe("#")
    tint_model(tmp_path)
    running = Vedette(tmp_path, broker, front=_stream(chained_model(tmp_path), _pictures(tmp_path, "red")))
    running.config["homeassistant"] = {"enabled": True}
    with running:
        messages.wait(lambda m: any(_entities(m)))
        (sensor,) = [one for name, one in _entities(messages)[-1].items() if "attribute" in name]
        assert "colour" in str(sensor)


def _entities(messages: Messages) -> list[dict[str, Any]]:
    found = [
        json.loads(one.payload) for one in messages if one.topic.startswith("homeassistant/") and one.payload
    ]
    return [components for one in found if (components := one.get("components") or one.get("cmps"))]


def test_another_file_of_the_secondary_model_is_taken_with_a_reload(tmp_path: Path, broker: Mosquitto) -> None:
    messages = broker.subscribe("#")
    tint = tint_model(tmp_path)
    with Vedette(tmp_path, broker, front=_stream(chained_model(tmp_path), _pictures(tmp_path, "red"))) as running:
        messages.wait(lambda m: "red" in _told(m))
        tint.write_text('name = "tint"\n[output]\nlabels = ["warm", "green", "cold"]\n')
        running.reload()
        messages.wait(lambda m: "warm" in _told(m))


def test_a_secondary_model_that_is_gone_fails_its_stream_only(tmp_path: Path, broker: Mosquitto) -> None:
    messages = broker.subscribe("#")
    source, alone = _pictures(tmp_path, "red"), tmp_path / "alone"
    alone.mkdir()
    tint = tint_model(tmp_path)
    broken = _stream(chained_model(tmp_path), source)
    plain = _stream(Path(shutil.copy(tint.with_suffix(".tflite"), alone)), source)
    tint.unlink()
    tint.with_suffix(".tflite").unlink()
    with Vedette(tmp_path, broker, front=broken, plain=plain) as running:
        messages.wait(lambda m: states(m).get("plain") == "running")
        assert states(messages)["front"] == "failed"
        assert "tint.tflite" in running.wait_said("no such file")


@pytest.mark.parametrize("fault", ["answers", "gallery"])
def test_a_secondary_model_that_cannot_be_set_up_fails_its_stream_only(
    tmp_path: Path, broker: Mosquitto, fault: str
) -> None:
    messages = broker.subscribe("#")
    source, model = _pictures(tmp_path, "red"), chained_model(tmp_path, "")
    (tmp_path / "known" / "anna").mkdir(parents=True)
    (tmp_path / "known" / "anna" / "1.jpg").write_bytes(b"junk")
    vectors = tint_model(tmp_path, "vectors", '[output]\ndecoder = "raw"\n')
    wrong = {
        "answers": {"name": "colour", "model": str(tint_model(tmp_path)), "answers": ["purple"]},
        "gallery": {"name": "who", "model": str(vectors), "gallery": str(tmp_path / "known")},
    }[fault]
    broken, plain = _stream(model, source, secondary=[wrong]), _stream(tint_model(tmp_path), source)
    with Vedette(tmp_path, broker, front=broken, plain=plain) as running:
        messages.wait(lambda m: states(m).get("plain") == "running" and states(m).get("front") == "failed")
        assert "internal error" not in "".join(running.said())
        assert running.end()[0] == 0


def _times(messages: Messages, stream: str) -> Counter[str]:
    return Counter(json.loads(one)["captured_at"] for one in messages.of(TOPICS.detections(stream)))


def test_two_models_see_the_same_pictures_of_one_camera(tmp_path: Path, broker: Mosquitto) -> None:
    messages = broker.subscribe("#")
    tint = tint_model(tmp_path)
    source = _pictures(tmp_path, "red", "blue")
    front, whole = _stream(chained_model(tmp_path), source), _stream(tint, source)
    with Vedette(tmp_path, broker, front=front, whole=whole) as running:
        messages.wait(lambda m: len(_times(m, "front") & _times(m, "whole")) > 10)
        running.config["streams"]["whole"]["enabled"] = False
        running.write()
        running.reload()
        messages.wait(lambda m: states(m).get("whole") == "disabled")
        before = len(_times(messages, "front"))
        messages.wait(lambda m: len(_times(m, "front")) > before + 10)
        running.config["streams"]["whole"]["enabled"] = True
        running.write()
        running.reload()
        known = len(_times(messages, "front") & _times(messages, "whole"))
        messages.wait(lambda m: len(_times(m, "front") & _times(m, "whole")) > known + 5)
        assert running.end()[0] == 0
