"""What a device has left at a real broker under a former name, or of streams that are gone, goes."""

from __future__ import annotations

import json
import time
from pathlib import Path

import paho.mqtt.publish as publish
import pytest

from agent.comms.topics import Topics
from tests.support.house import person_model
from tests.support.mosquitto import HOST, Mosquitto
from tests.support.publishing import TOPICS, wait_for
from tests.support.received import Messages
from tests.support.running import Vedette, camera, events, hear

GATE = Topics("vedette", "gate")
NODE = "homeassistant/device/porch/config"


@pytest.fixture
def vedette(tmp_path: Path, broker: Mosquitto) -> Vedette:
    """Two cameras, not started."""
    model = person_model(tmp_path)
    return Vedette(tmp_path, broker, front=camera(model), back=camera(model))


def lying(broker: Mosquitto) -> dict[str, bytes]:
    """All that the broker retains."""
    messages = broker.subscribe("#")
    publish.single("test/end", b"end", hostname=HOST, port=broker.port)
    messages.wait(lambda m: m.of("test/end"))
    messages.close()
    return {one.topic: one.payload for one in messages if one.retain}


def told_all(messages: Messages, topics: Topics = TOPICS) -> None:
    """Wait for one of each kind that is retained."""
    messages.wait(lambda m: all(m.of(topics.snapshot(name)) for name in ("front", "back")), 30)
    messages.wait(lambda m: m.of(f"homeassistant/device/{topics.device}/config"), 30)


def test_a_stream_that_goes_while_the_daemon_is_down_leaves_nothing(vedette: Vedette, broker: Mosquitto) -> None:
    messages = broker.subscribe("#")
    with vedette:
        told_all(messages)
        vedette.end()
    publish.single(
        TOPICS.zone_count("back", "yard", "person"), b"1", retain=True, hostname=HOST, port=broker.port
    )
    assert TOPICS.snapshot("back") in lying(broker)
    assert TOPICS.count("back", "person") in lying(broker)
    del vedette.config["streams"]["back"]
    with vedette:
        wait_for(lambda: not any(topic.startswith("vedette/porch/back/") for topic in lying(broker)))
        assert TOPICS.snapshot("front") in lying(broker)


def test_what_a_lost_memory_knows_nothing_of_goes_by_its_counts(vedette: Vedette, broker: Mosquitto) -> None:
    for topic in (TOPICS.snapshot("attic"), TOPICS.count("attic", "cat"), TOPICS.snapshot("front")):
        publish.single(topic, b"7", retain=True, hostname=HOST, port=broker.port)
    with vedette:
        wait_for(lambda: not any(topic.startswith("vedette/porch/attic/") for topic in lying(broker)))
        assert vedette.said("deleted, since there is no stream attic")
        assert TOPICS.snapshot("front") in lying(broker)


@pytest.mark.parametrize("away", [False, True])
def test_a_renamed_device_leaves_nothing_under_its_old_name(vedette: Vedette, tmp_path: Path, away: bool) -> None:
    with Mosquitto(tmp_path, persistence=True) as broker:
        vedette.use(broker)
        with vedette:
            told_all(broker.subscribe("#"))
            vedette.end()
        vedette.config["device"]["name"] = "gate"
        if away:  # when the new name is used first
            broker.stop()
            with vedette:
                vedette.wait_said("broker")
                vedette.end()
            broker.start()
        other = "vedette/shed/status"
        publish.single(other, b"offline", retain=True, hostname=HOST, port=broker.port)
        with vedette:
            told_all(broker.subscribe("#"), GATE)
            wait_for(
                lambda: not any(topic.startswith("vedette/porch/") or topic == NODE for topic in lying(broker))
            )
            assert other in lying(broker)
            wait_for(lambda: "porch" not in (vedette.state / "published.json").read_text())


def test_a_name_that_another_device_has_taken_over_is_left_alone(vedette: Vedette, broker: Mosquitto) -> None:
    with vedette:
        told_all(broker.subscribe("#"))
        vedette.end()
    publish.single(TOPICS.status, b"online", retain=True, hostname=HOST, port=broker.port)
    before = {topic: payload for topic, payload in lying(broker).items() if topic.startswith("vedette/porch/")}
    vedette.config["device"]["name"] = "gate"
    with vedette:
        vedette.wait_said("vedette/porch: what this device has left under its former name is left alone")
        after = lying(broker)
    assert {topic: after.get(topic) for topic in before} == before


def test_another_prefix_moves_everything(vedette: Vedette, broker: Mosquitto) -> None:
    messages = broker.subscribe("#")
    with vedette:
        told_all(messages)
        vedette.end()
    vedette.config["mqtt"]["prefix"] = "farm"
    with vedette:
        wait_for(lambda: not any(topic.startswith("vedette/") for topic in lying(broker)), 30)
        wait_for(lambda: b'"farm/porch"' in lying(broker).get(NODE, b""), 30)
    bodies = messages.of(NODE)
    assert b"" in bodies, "Home Assistant has removed the old device"
    assert json.loads(bodies[-1])["dev"]["ids"] == ["farm/porch"]


def test_a_prefix_of_home_assistant_that_changes_before_the_first_connection_leaves_nothing(
    vedette: Vedette, tmp_path: Path
) -> None:
    with Mosquitto(tmp_path, persistence=True) as broker:
        vedette.use(broker)
        with vedette:
            told_all(broker.subscribe("#"))
            vedette.end()
        broker.stop()
        with vedette:
            vedette.wait_said("broker")
            time.sleep(1.0)
            vedette.config["homeassistant"] = {"prefix": "ha"}
            vedette.reload()
            vedette.wait_said("reloaded: [homeassistant] prefix")
            broker.start()
            wait_for(lambda: NODE not in lying(broker), 30)
            wait_for(lambda: "ha/device/porch/config" in lying(broker), 30)
            hear(messages := broker.subscribe("vedette/#"), 1)
            assert events(messages)
