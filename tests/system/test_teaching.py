"""A state is taught over a real broker to a real daemon, whose camera shows what the test wants."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

pytest.importorskip("ai_edge_litert", reason="the bundled detector needs it")

from agent.cli.main import vedette
from tests.support.doubles import person_model
from tests.support.mosquitto import HOST, Mosquitto
from tests.support.publishing import TOPICS
from tests.support.received import Messages
from tests.support.running import ROOT, Vedette, camera, events, states
from tests.system.gate_camera import REGION, GateCamera

GATE = TOPICS.sensor("front", "gate")


@pytest.fixture
def scene() -> Iterator[GateCamera]:
    with GateCamera() as scene:
        yield scene


def watched(scene: GateCamera, **keys: object) -> dict[str, object]:
    return {"source": scene.uri, "model": "nanodet", "gate": {"max_idle_s": 1.0}, **keys}


def teach(broker: Mosquitto, *words: str) -> tuple[int, Any]:
    place = ("--host", HOST, "--port", str(broker.port), "--device", TOPICS.device, "--json")
    done = CliRunner().invoke(vedette, ["teach", *place, *words])
    return done.exit_code, json.loads(done.stdout.splitlines()[-1])


def values(messages: Messages) -> list[str]:
    return [json.loads(body)["value"] if body else "" for body in messages.of(GATE)]


def taught(broker: Mosquitto, scene: GateCamera, messages: Messages) -> Any:
    """Teach both values, and return the last answer."""
    messages.wait(lambda m: states(m).get("front") == "running")
    region = ",".join(map(str, REGION))
    for scene.shows in ("open", "closed"):
        code, answer = teach(
            broker, "front", "gate", "--value", scene.shows, "--region", region, "--examples", "5"
        )
        assert code == 0, answer
    return answer


def test_a_gate_is_taught_seen_by_night_and_known_after_a_restart(
    tmp_path: Path, broker: Mosquitto, scene: GateCamera
) -> None:
    messages = broker.subscribe("#")
    vedette_run = Vedette(tmp_path, broker, front=watched(scene))
    vedette_run.config["fusion"] = {"alarm": {"when": 'front:"gate open"', "window_s": 1.0}}
    with vedette_run as running:
        answer = taught(broker, scene, messages)
        assert answer["examples"] == {"open": 5, "closed": 5}
        assert all(one == {"right": 5, "unsure": 0, "wrong": 0} for one in answer["check"].values())
        messages.wait(lambda m: values(m)[-1:] == ["closed"])
        scene.shows, scene.light = "open", 0.5
        messages.wait(lambda m: values(m)[-1:] == ["open"])
        messages.wait(lambda m: [one.kind for one in events(m, "alarm")] == ["new"])
        scene.shows, scene.light = "a lorry", 1.0
        messages.wait(lambda m: values(m)[-1:] == ["unsure"])
        scene.shows = "closed"
        messages.wait(lambda m: values(m)[-1:] == ["closed"])
        announced = messages.wait(lambda m: [one for one in m if b"front.sensor.gate" in one.payload])
        entity = json.loads([one for one in announced if b"front.sensor.gate" in one.payload][-1].payload)
        assert entity["cmps"]["front.sensor.gate"]["ops"] == ["open", "closed", "unsure"]
        assert running.end()[0] == 0
        messages.wait(lambda m: values(m)[-1:] == [""])
    told = [
        (one.kind, one.track.label) for one in events(messages, "front") if one.track.label.startswith("gate")
    ]
    assert told[:5] == [
        ("new", "gate closed"),
        ("end", "gate closed"),
        ("new", "gate open"),
        ("end", "gate open"),
        ("new", "gate unsure"),
    ]
    assert told[-1] == ("end", "gate closed")
    again = broker.subscribe("#")
    with Vedette(tmp_path, broker, front=watched(scene)) as running:
        again.wait(lambda m: values(m)[-1:] == ["closed"])
        running.end(signal.SIGKILL)
    dead = {**watched(scene), "source": "http://127.0.0.1:9/video"}
    with Vedette(tmp_path, broker, front=dead):
        again.wait(lambda m: values(m)[-1:] == [""])


def test_what_cannot_be_taught_is_refused_with_its_reason(
    tmp_path: Path, broker: Mosquitto, scene: GateCamera
) -> None:
    messages = broker.subscribe("#")
    line = {
        "source": scene.uri,
        "model": "nanodet",
        "inspection": {"trigger": "command", "ng_labels": ["person"]},
    }
    plain = camera(person_model(tmp_path))
    with Vedette(tmp_path, broker, front=watched(scene), line=line, plain=plain):
        messages.wait(lambda m: set(states(m).values()) == {"running"})
        for stream, why in (
            ("line", "inspects parts"),
            ("plain", "gives no features"),
            ("nobody", "no stream 'nobody'"),
        ):
            code, answer = teach(broker, stream, "gate", "--value", "open")
            assert (code, why in answer["error"]) == (1, True), answer
        for words, why in (
            (("front", "a/b", "--value", "open"), "no name of a state"),
            (("front", "gate", "--value", "unsure"), "no value"),
            (("front", "gate", "--value", "open", "--region", "0.5,0,0.4,1"), "fractions"),
            (("front", "gate", "--forget"), "no state 'gate'"),
        ):
            code, answer = teach(broker, *words)
            assert (code, why in answer["error"]) == (1, True), answer
        assert teach(broker, "front") == (0, {})
    assert not list((tmp_path / "state").glob("states/*.json"))


def test_each_state_is_asked_for_at_a_terminal(tmp_path: Path, broker: Mosquitto, scene: GateCamera) -> None:
    messages = broker.subscribe("#")
    with Vedette(tmp_path, broker, front=watched(scene)):
        messages.wait(lambda m: states(m).get("front") == "running")
        line = [sys.executable, "-m", "agent", "teach", "--host", HOST, "--port", str(broker.port)]
        line += ["--device", TOPICS.device, "front", "gate", "--states", "open,closed", "--examples", "5"]
        person, terminal = pty.openpty()
        with subprocess.Popen(
            line, cwd=ROOT, stdin=terminal, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            os.close(terminal)
            assert process.stderr is not None
            for value in ("open", "closed"):
                asked = b""
                while f"'{value}', then press Enter".encode() not in asked:
                    asked += process.stderr.read1(200)  # type: ignore[attr-defined]  # a pipe is buffered
                scene.shows = value
                os.write(person, b"\n")
            output, _ = process.communicate(timeout=60)
        os.close(person)
    assert [row.split() for row in output.decode().splitlines() if row.startswith(("open", "closed"))] == [
        ["open", "5", "5", "0", "0"],
        ["closed", "5", "5", "0", "0"],
    ]
