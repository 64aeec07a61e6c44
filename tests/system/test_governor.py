"""A real daemon with a promise that cannot be kept: who gives way, what is told, and what a reload gives back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ai_edge_litert", reason="models are written with ai-edge-litert")

from agent.health import StreamHealth
from tests.support.doubles import person_model
from tests.support.mosquitto import Mosquitto
from tests.support.packet_camera import PacketCamera, encode, pattern
from tests.support.publishing import TOPICS
from tests.support.received import Messages
from tests.support.running import Vedette, camera, events, health

FASTER_THAN_ANY_MODEL = "test:?size=160x120&fps=1000"
"""An idle machine infers a smallest model as often: `nanodet` takes longer than a millisecond anywhere."""


def detections(messages: Messages, stream: str) -> list[dict[str, Any]]:
    return [json.loads(body) for body in messages.of(TOPICS.detections(stream))]


def told(messages: Messages) -> dict[str, StreamHealth]:
    newest = health(messages)
    assert newest is not None
    return newest.streams


def test_a_less_important_stream_gives_way_and_says_why_until_a_reload(tmp_path: Path, broker: Mosquitto) -> None:
    model = person_model(tmp_path)
    keys: dict[str, Any] = {"gate": {"motion": False}, "publish": {"detections": True}}
    front = camera("nanodet", FASTER_THAN_ANY_MODEL, **keys, service={"priority": 80, "min_fps": 1000})
    back = camera(model, "test:?size=160x120&fps=19", **keys, service={"priority": 20})
    messages = broker.subscribe("#")
    with Vedette(tmp_path, broker, front=front, back=back) as vedette:
        slowest = "one picture in 6 is inferred: front infers "
        messages.wait(lambda m: health(m) and slowest in told(m)["back"].reduced and told(m)["front"].unmet, 60)
        assert "of 1000 pictures per second" in told(messages)["front"].unmet
        assert vedette.said(f"stream back: {slowest}")
        known = len(detections(messages, "back"))
        messages.wait(lambda m: len(detections(m, "back")) >= known + 24)
        newest = detections(messages, "back")[-12:]
        assert sum(not one["predicted"] for one in newest) == 2, "one picture in six is inferred"
        assert all(one["detections"][0]["label"] == "person" for one in newest), "tracks are carried on"
        assert not any(one["predicted"] for one in detections(messages, "front"))
        vedette.config["governor"] = {"enabled": False}
        vedette.reload()
        messages.wait(lambda m: not told(m)["back"].reduced and not told(m)["front"].unmet)
        again = vedette.said("stream back: everything again")  # under load with the number of changes before it
        assert any(line.endswith(": the governor is off") for line in again)
        assert vedette.end()[0] == 0
    assert {one.kind for one in events(messages, "back")} >= {"new", "end"}


def test_a_less_important_encoded_camera_has_its_key_frames_decoded_at_last(
    tmp_path: Path, broker: Mosquitto
) -> None:
    model = person_model(tmp_path)
    keys: dict[str, Any] = {"gate": {"motion": False}}
    front = camera("nanodet", FASTER_THAN_ANY_MODEL, **keys, service={"priority": 80, "min_fps": 1000})
    options = {"preset": "ultrafast", "tune": "zerolatency", "x264-params": "keyint=10:min-keyint=10:scenecut=0"}
    messages = broker.subscribe("#")
    with PacketCamera(encode(pattern(100), fps=10, options=options), fps=10) as yard:
        back = camera(model, yard.uri, **keys, service={"priority": 20})
        with Vedette(tmp_path, broker, front=front, back=back) as vedette:
            messages.wait(lambda m: health(m) and "key frames alone are decoded" in told(m)["back"].reduced, 60)
            messages.wait(lambda m: told(m)["back"].decoding == "keyframes", 60)
            assert "front infers " in told(messages)["back"].reduced
            vedette.config["governor"] = {"order": ["inference"]}
            vedette.reload()
            messages.wait(lambda m: told(m)["back"].decoding == "full", 60)
            assert vedette.end()[0] == 0
