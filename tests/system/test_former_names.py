"""Retained messages of former device names and removed streams are deleted at a real broker."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import paho.mqtt.publish as publish
import pytest
from click.testing import CliRunner, Result

from agent.cli.main import vedette as program
from agent.comms.topics import Topics
from tests.support.doubles import person_model
from tests.support.mosquitto import HOST, Mosquitto
from tests.support.publishing import TOPICS, wait_for
from tests.support.received import Messages
from tests.support.running import Vedette, camera

GATE = Topics("vedette", "gate")
NODE = "homeassistant/device/porch/config"
OTHER = "vedette/shed/status"


@pytest.fixture
def vedette(tmp_path: Path, broker: Mosquitto) -> Vedette:
    """Two cameras, not started."""
    model = person_model(tmp_path)
    return Vedette(tmp_path, broker, front=camera(model), back=camera(model))


def retained(broker: Mosquitto) -> dict[str, bytes]:
    messages = broker.subscribe("#", qos=0)  # at QoS 1 the end overtakes what waits for acknowledgements
    publish.single("test/end", b"end", hostname=HOST, port=broker.port)
    messages.wait(lambda m: m.of("test/end"))
    messages.close()
    return {one.topic: one.payload for one in messages if one.retain}


def leave(broker: Mosquitto, *topics: str, payload: bytes = b"7") -> None:
    for topic in topics:
        publish.single(topic, payload, retain=True, hostname=HOST, port=broker.port)


def wait_announced(messages: Messages, topics: Topics = TOPICS) -> None:
    messages.wait(lambda m: all(m.of(topics.snapshot(name)) for name in ("front", "back")))
    messages.wait(lambda m: m.of(f"homeassistant/device/{topics.device}/config"))


def cleanup(broker: Mosquitto, *words: str, answer: str = "") -> Result:
    options = ["cleanup", "--host", HOST, "--port", str(broker.port), "--former-name", *words]
    return CliRunner().invoke(program, options, input=answer)


def test_a_stream_that_goes_while_the_daemon_is_down_leaves_nothing(vedette: Vedette, broker: Mosquitto) -> None:
    messages = broker.subscribe("#")
    with vedette:
        wait_announced(messages)
        vedette.end()
    leave(broker, TOPICS.zone_count("back", "yard", "person"), TOPICS.state("back", "enabled"))
    assert {TOPICS.snapshot("back"), TOPICS.count("back", "person")} <= set(retained(broker))
    del vedette.config["streams"]["back"]
    with vedette:
        wait_for(lambda: not any(topic.startswith("vedette/porch/back/") for topic in retained(broker)))
        assert TOPICS.snapshot("front") in retained(broker)


def test_stale_topics_of_an_unknown_stream_are_deleted_and_logged(vedette: Vedette, broker: Mosquitto) -> None:
    leave(broker, TOPICS.snapshot("attic"), TOPICS.count("attic", "cat"), TOPICS.snapshot("front"))
    with vedette:
        wait_for(lambda: not any(topic.startswith("vedette/porch/attic/") for topic in retained(broker)))
        assert vedette.said("deleted, since there is no stream attic")
        assert TOPICS.snapshot("front") in retained(broker)


def test_a_former_name_is_deleted_on_request(vedette: Vedette, broker: Mosquitto) -> None:
    with vedette:
        wait_announced(broker.subscribe("#"))
        vedette.end()
    leave(broker, OTHER, payload=b"offline")
    vedette.config["device"]["name"] = "gate"
    with vedette:
        wait_announced(broker.subscribe("#"), GATE)
        before = retained(broker)
        former = {topic for topic in before if topic.startswith("vedette/porch/")} | {NODE}
        shown = cleanup(broker, "porch", answer="n\n")
        assert shown.exit_code == 1
        assert all(topic in shown.output for topic in former)
        assert former <= set(retained(broker)), "declined"
        told = json.loads(cleanup(broker, "porch", "--json").output)
        assert (set(told["topics"]), told["deleted"]) == (former, False)
        assert "vedette/porch/front.occupancy.person" in told["entities"]
        assert cleanup(broker, "porch", "--yes").exit_code == 0
        after = retained(broker)
        assert not former & set(after)
        assert {OTHER, GATE.snapshot("front"), "homeassistant/device/gate/config"} <= set(after)
    again = cleanup(broker, "porch")
    assert (again.exit_code, "retains nothing" in again.output) == (0, True)


def test_a_name_under_which_a_device_is_online_is_left_alone(broker: Mosquitto) -> None:
    leave(broker, TOPICS.status, payload=b"online")
    leave(broker, TOPICS.count("front", "person"))
    refused = cleanup(broker, "porch", "--yes")
    assert refused.exit_code != 0
    assert "vedette/porch" in str(refused.exception)
    assert TOPICS.count("front", "person") in retained(broker)


def test_the_discovery_message_of_another_program_is_left_alone(broker: Mosquitto) -> None:
    theirs = b'{"o": {"name": "other"}, "dev": {"ids": ["porch"]}, "cmps": {}}'
    leave(broker, NODE, payload=theirs)
    leave(broker, TOPICS.health)
    assert cleanup(broker, "porch", "--yes").exit_code == 0
    assert retained(broker) == {NODE: theirs}


def test_a_broker_that_does_not_allow_the_deletion_is_told(tmp_path: Path) -> None:
    acl = "user owner\ntopic readwrite #\nuser guest\ntopic read #\n"
    secret = tmp_path / "secret"
    secret.write_text("g\n")
    with Mosquitto(tmp_path, users={"owner": "o", "guest": "g"}, acl=acl) as broker:
        login: Any = {"username": "owner", "password": "o"}
        publish.single(TOPICS.health, b"{}", retain=True, hostname=HOST, port=broker.port, auth=login)
        refused = cleanup(broker, "porch", "--yes", "--username", "guest", "--password-file", str(secret))
        assert refused.exit_code != 0
        assert "1 topic left" in str(refused.exception)
