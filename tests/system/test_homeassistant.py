"""Discovery with a real broker and the real daemon; Home Assistant itself is `scripts/prove_homeassistant`'s."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import paho.mqtt.publish as publish
import pytest

from tests.support.doubles import person_model
from tests.support.mosquitto import HOST, Mosquitto
from tests.support.publishing import TOPICS, wait_for
from tests.support.received import Messages
from tests.support.running import Vedette, camera, health

TOPIC = f"homeassistant/device/{TOPICS.device}/config"
_AGAIN_S = 60.0
"""The jitter, and the pause before it."""


def say(broker: Mosquitto, topic: str, body: bytes, *, retain: bool = False) -> None:
    publish.single(topic, body, retain=retain, hostname=HOST, port=broker.port)


def parts(messages: Messages) -> list[dict[str, Any]]:
    """Components of each message, oldest first; none of an empty one."""
    return [json.loads(body)["cmps"] if body else {} for body in messages.of(TOPIC)]


@pytest.fixture
def vedette(tmp_path: Path, broker: Mosquitto) -> Vedette:
    """Two cameras, one of which names no label."""
    model = person_model(tmp_path)
    zones = [{"name": "all", "polygon": [[0, 0], [1, 0], [1, 1], [0, 1]]}]
    front = camera(model, decode={"labels": ["person"]}, zones=zones)
    return Vedette(tmp_path, broker, front=front, back=camera(model))


def test_a_device_announces_itself_and_what_it_sees_and_answers_a_start_of_home_assistant(
    broker: Mosquitto, vedette: Vedette
) -> None:
    messages = broker.subscribe("homeassistant/#")
    with vedette:
        messages.wait(lambda m: any("back.occupancy.person" in told for told in parts(m)), _AGAIN_S)
        told = len(parts(messages))
        newest = parts(messages)[-1]
        assert {"front.occupancy.person", "front.zone.all.count.person", "front.picture", "seen"} <= set(newest)
        say(broker, "homeassistant/status", b"online")
        messages.wait(lambda m: len(parts(m)) > told, _AGAIN_S)
        assert parts(messages)[-1] == newest
    late = broker.subscribe(TOPIC)
    late.wait(lambda m: len(m) == 1)
    assert late[0].retain


def test_every_topic_that_an_entity_reads_is_published(broker: Mosquitto, vedette: Vedette) -> None:
    messages = broker.subscribe("#")
    with vedette:
        messages.wait(lambda m: any("back.occupancy.person" in told for told in parts(m)), _AGAIN_S)
        newest = parts(messages)[-1]
        read = {part[key] for part in newest.values() for key in ("stat_t", "img_t") if key in part}
        read |= {one["t"] for part in newest.values() for one in part.get("avty", ())}
        messages.wait(lambda m: read <= {message.topic for message in m})


def test_what_a_reload_or_a_restart_removes_is_removed(broker: Mosquitto, vedette: Vedette) -> None:
    messages = broker.subscribe("homeassistant/#")
    with vedette:
        messages.wait(lambda m: any("back.occupancy.person" in told for told in parts(m)), _AGAIN_S)
        del vedette.config["streams"]["front"]["zones"]
        vedette.reload()
        messages.wait(
            lambda m: parts(m)[-1].get("front.zone.all.occupancy.person") == {"p": "binary_sensor"}, _AGAIN_S
        )
        assert "stat_t" in parts(messages)[-1]["back.occupancy.person"]
        vedette.end()
        del vedette.config["streams"]["back"]
        vedette.start()
        messages.wait(lambda m: parts(m)[-1].get("back.occupancy.person") == {"p": "binary_sensor"}, _AGAIN_S)
        assert "stat_t" in parts(messages)[-1]["front.occupancy.person"]


def test_what_a_run_before_has_seen_is_there_at_once(broker: Mosquitto, vedette: Vedette) -> None:
    messages = broker.subscribe("homeassistant/#")
    with vedette:
        messages.wait(lambda m: any("back.occupancy.person" in told for told in parts(m)), _AGAIN_S)
        vedette.end()
        told = len(parts(messages))
        vedette.config["streams"]["back"]["enabled"] = False
        vedette.start()
        messages.wait(lambda m: len(parts(m)) > told, _AGAIN_S)
        assert "stat_t" in parts(messages)[-1]["back.occupancy.person"]


def test_switched_off_by_a_reload_it_takes_everything_back(broker: Mosquitto, vedette: Vedette) -> None:
    messages = broker.subscribe("homeassistant/#")
    with vedette:
        messages.wait(parts, _AGAIN_S)
        vedette.config["homeassistant"] = {"enabled": False}
        vedette.reload()
        messages.wait(lambda m: not parts(m)[-1], _AGAIN_S)
        vedette.config["homeassistant"] = {"prefix": "ha"}
        other = broker.subscribe("ha/#")
        vedette.reload()
        other.wait(lambda m: m.of(f"ha/device/{TOPICS.device}/config"), _AGAIN_S)


@pytest.mark.parametrize("how", ["reload", "restart"])
def test_switched_off_while_the_broker_is_away_it_takes_everything_back_when_that_is_there(
    tmp_path: Path, how: str
) -> None:
    front = camera(person_model(tmp_path))
    with Mosquitto(tmp_path, persistence=True) as broker, Vedette(tmp_path, broker, front=front) as vedette:
        messages = broker.subscribe(TOPIC)
        messages.wait(parts, _AGAIN_S)
        if how == "restart":
            vedette.end()
        broker.stop()
        vedette.config["homeassistant"] = {"enabled": False}
        if how == "restart":
            vedette.start()
        else:
            vedette.reload()
            vedette.wait_said("reloaded: ")
        time.sleep(1.0)
        broker.start()
        vedette.wait_said("Home Assistant removes this device")
        wait_for(lambda: not retained(broker, TOPIC))


def retained(broker: Mosquitto, topic: str) -> list[bytes]:
    """Return the retained messages of a topic: they come before a message that is sent after."""
    messages = broker.subscribe(topic)
    say(broker, topic, b"end")
    messages.wait(lambda m: b"end" in m.of(topic))
    return [one.payload for one in messages if one.retain and one.payload]


def test_the_device_of_another_program_is_left_alone(broker: Mosquitto, vedette: Vedette) -> None:
    theirs = b'{"dev": {"ids": ["theirs"]}, "o": {"name": "other"}, "cmps": {}}'
    say(broker, TOPIC, theirs, retain=True)
    messages = broker.subscribe("homeassistant/#")
    with vedette:
        vedette.wait_said("belongs to other, device theirs")
        told = broker.subscribe(TOPICS.health).wait(lambda m: (h := health(m)) and h.homeassistant)
        newest = health(told)
        assert newest is not None
        assert newest.homeassistant.startswith(f"{TOPIC} belongs to other, device theirs: left alone")
        say(broker, "homeassistant/status", b"online")
        vedette.config["homeassistant"] = {"enabled": False}
        vedette.reload()
        vedette.wait_said("reloaded: [homeassistant] enabled")
        vedette.end()
    assert set(messages.of(TOPIC)) == {theirs}
