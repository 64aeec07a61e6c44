"""Retained messages of removed streams are deleted at a real broker."""

from __future__ import annotations

from pathlib import Path

import paho.mqtt.publish as publish
import pytest

from tests.support.doubles import person_model
from tests.support.mosquitto import HOST, Mosquitto
from tests.support.publishing import TOPICS, wait_for
from tests.support.received import Messages
from tests.support.running import Vedette, camera


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


def wait_announced(messages: Messages) -> None:
    messages.wait(lambda m: all(m.of(TOPICS.snapshot(name)) for name in ("front", "back")))
    messages.wait(lambda m: m.of(f"homeassistant/device/{TOPICS.device}/config"))


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
        assert vedette.said("deleted, an earlier run left it")
        assert TOPICS.snapshot("front") in retained(broker)
