"""An inspected line: a real daemon, a broker, parts that are announced by command or pass a region, and pins."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import msgspec
import numpy as np
import pytest
from click.testing import CliRunner

pytest.importorskip("ai_edge_litert", reason="models are written with ai-edge-litert")

from agent.cli.main import vedette
from agent.comms.messages import InspectionMessage, VerdictMessage
from tests.support.belt import belt
from tests.support.doubles import person_model
from tests.support.mosquitto import HOST, Mosquitto
from tests.support.operator import Operator
from tests.support.parts import learn
from tests.support.publishing import TOPICS, wait_for
from tests.support.received import Messages
from tests.support.running import Vedette, camera, states

CROP = (0.25, 0.0, 0.75, 1.0)


def verdicts(messages: Messages, stream: str = "line") -> list[VerdictMessage]:
    return [
        msgspec.json.decode(one.payload, type=VerdictMessage)
        for one in messages
        if one.topic == TOPICS.verdicts(stream)
    ]


def counters(messages: Messages, stream: str = "line") -> list[InspectionMessage]:
    return [
        msgspec.json.decode(one.payload, type=InspectionMessage)
        for one in messages
        if one.topic == TOPICS.inspection(stream)
    ]


def line(folder: Path, **keys: object) -> dict[str, object]:
    stream = camera(person_model(folder))
    del stream["track"]
    return {**stream, "inspection": {"trigger": "command", "ng_labels": ["person"], **keys}}


def command(broker: Mosquitto, *words: str) -> tuple[int, dict[str, object]]:
    done = CliRunner().invoke(
        vedette, ["command", "--host", HOST, "--port", str(broker.port), "--json", TOPICS.device, *words]
    )
    return done.exit_code, json.loads(done.output)


def test_a_part_is_announced_judged_counted_kept_and_found_again(tmp_path: Path, broker: Mosquitto) -> None:
    messages = broker.subscribe("#")
    with Vedette(tmp_path, broker, line=line(tmp_path)) as running:
        messages.wait(lambda m: states(m).get("line") == "running")
        code, answer = command(broker, "line", "inspect", "A-1042")
        assert (code, answer["part"]) == (0, "A-1042")
        messages.wait(verdicts)
        (first,) = verdicts(messages)
        assert (first.part, first.verdict, first.reason, first.views) == ("A-1042", "ng", "person", 1)
        assert first.judged_ms < 30_000
        Operator(broker).set("line", "inspect", "")
        messages.wait(lambda m: len(verdicts(m)) == 2)
        messages.wait(lambda m: counters(m) and counters(m)[-1].ng == 2)
        wait_for(Path(first.picture).exists)
        assert cv2.imread(first.picture) is not None
        assert Path(first.picture).parent == running.state / "clips" / "line"
        arrived = messages.wait(lambda m: [one for one in m if one.topic.startswith("homeassistant/device/")])
        announced = [one for one in arrived if one.topic.startswith("homeassistant/device/")]
        entities = json.loads(announced[-1].payload)["cmps"]
        assert {"line.parts.ok", "line.parts.ng", "line.parts.unsure", "line.verdict", "line.inspect"} <= set(
            entities
        )
        assert running.end()[0] == 0
    tail = CliRunner().invoke(vedette, ["events", "tail", "-c", str(running.file)])
    assert tail.output.count("ng (person)") == 2
    again = broker.subscribe("#")
    with Vedette(tmp_path, broker, line=line(tmp_path)):
        again.wait(lambda m: states(m).get("line") == "running")
        assert counters(again)[-1].ng == 2


def test_a_request_that_cannot_be_done_is_answered_with_its_reason(tmp_path: Path, broker: Mosquitto) -> None:
    messages = broker.subscribe("#")
    plain = camera(person_model(tmp_path))
    every = line(tmp_path, trigger="every")
    with Vedette(tmp_path, broker, line=line(tmp_path, debounce_s=60.0), front=plain, every=every):
        messages.wait(lambda m: set(states(m).values()) == {"running"})
        for stream, why in (("front", "inspects no parts"), ("every", "every picture"), ("nobody", "no stream")):
            code, answer = command(broker, stream, "inspect")
            assert (code, why in str(answer["reason"])) == (1, True), answer
        assert command(broker, "line", "inspect", "a")[0] == 0
        assert "debounce_s" in str(command(broker, "line", "inspect", "b")[1]["reason"])
        code, answer = command(broker, "line", "inspect", "x" * 1000)
        assert (code, "at most 128" in str(answer["reason"])) == (1, True)


def test_a_missing_pin_fails_its_stream_and_no_other(tmp_path: Path, broker: Mosquitto) -> None:
    messages = broker.subscribe("#")
    front = camera(person_model(tmp_path))
    with Vedette(tmp_path, broker, line=line(tmp_path, trigger="gpio:17"), front=front) as running:
        messages.wait(lambda m: states(m).get("line") == "failed" and states(m).get("front") == "running")
        assert running.said("gpio:17: ")


def test_a_reload_takes_other_limits_and_keeps_the_counters(tmp_path: Path, broker: Mosquitto) -> None:
    messages = broker.subscribe("#")
    with Vedette(tmp_path, broker, line=line(tmp_path, ng_score=0.5)) as running:
        messages.wait(lambda m: states(m).get("line") == "running")
        assert command(broker, "line", "inspect")[0] == 0
        messages.wait(lambda m: counters(m) and counters(m)[-1].ng == 1)
        running.config["streams"]["line"]["inspection"]["ng_score"] = 0.95
        running.reload()
        running.wait_said("reloaded")
        messages.wait(lambda m: command(broker, "line", "inspect")[0] == 0 and len(verdicts(m)) > 1)
        messages.wait(lambda m: verdicts(m)[-1].verdict == "unsure")
        assert counters(messages)[-1].ng == 1


def test_parts_on_a_belt_are_told_by_a_model_of_sound_ones(tmp_path: Path, broker: Mosquitto) -> None:
    """The whole way: pictures of sound parts, `optimise anomaly`, a region as light barrier, verdicts."""
    sound = tmp_path / "sound"
    sound.mkdir()
    places = np.random.default_rng(1).uniform(0.42, 0.58, 60)
    for number, place in enumerate(places):
        assert cv2.imwrite(str(sound / f"{number:02}.png"), cropped(belt([place], seed=number)))
    made = tmp_path / "parts.tflite"
    learn(sound, made)
    folder = tmp_path / "belt"
    folder.mkdir()
    number = 0
    for part in range(4):
        for place in np.linspace(-0.3, 1.3, 41):
            picture = belt([place], scratched=[0] if part == 2 else [], seed=1000 + number)
            assert cv2.imwrite(str(folder / f"{number:04}.png"), picture)
            number += 1
    messages = broker.subscribe("vedette/#")
    region = [0.58, 0.3, 0.64, 0.7]  # where a part's front is when it is in the middle
    inspection = {"trigger": "region", "region": region, "region_cover": 0.7, "crop": CROP, "ng_score": 0.5}
    stream = {"source": f"dir:{folder}?pace=fast", "model": str(made), "inspection": inspection}
    with Vedette(tmp_path, broker, line=stream) as running:
        messages.wait(lambda m: states(m).get("line") == "ended", timeout_s=60.0)
        running.end()
    assert [one.verdict for one in verdicts(messages)] == ["ok", "ok", "ng", "ok"]
    boxes = [one.box for one in verdicts(messages)[2].detections if one.box]
    assert boxes
    assert all(box[0] < 0.5 for box in boxes[:1])  # the scratch is left of the middle


def cropped(picture: np.ndarray) -> np.ndarray:
    width = picture.shape[1]
    return picture[:, round(CROP[0] * width) : round(CROP[2] * width)]
