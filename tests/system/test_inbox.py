"""Subscriptions of a device at a real broker, and floods of messages."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from agent.comms.mqtt.inbox import LARGEST, IncomingMessage
from agent.comms.mqtt.publisher import Publisher
from tests.support.mosquitto import Mosquitto
from tests.support.publishing import EVENTS, device, event, wait_for

SET = "vedette/porch/+/set/#"
ENABLED = "vedette/porch/front/set/enabled"
Protocol = Literal["auto", "3.1.1"]


@contextmanager
def listening(
    tmp_path: Path, broker: Mosquitto, protocol: Protocol = "auto"
) -> Iterator[tuple[list[IncomingMessage], Publisher, Any]]:
    """A device that listens, what it hears, and how to give it an event."""
    heard: list[IncomingMessage] = []
    with device(tmp_path / "state", broker.config(protocol=protocol)) as (spool, publisher):
        publisher.listen(SET, heard.append)
        wait_for(lambda: publisher.state.connected)
        yield heard, publisher, lambda: spool.put(EVENTS, event())


def test_a_message_is_heard_with_its_response_topic_and_again_on_the_next_connection(tmp_path: Path) -> None:
    with Mosquitto(tmp_path) as broker, listening(tmp_path, broker) as (heard, publisher, _):
        properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]  # paho leaves it untyped
        properties.ResponseTopic, properties.CorrelationData = "me/answers", b"\x00\xff"
        voice = broker.subscribe("vedette/porch/status").wait(lambda m: m.of("vedette/porch/status"))
        voice.client.publish(ENABLED, b"on", qos=1, properties=properties)
        wait_for(lambda: heard)
        assert heard == [IncomingMessage(ENABLED, b"on", response_topic="me/answers", correlation=b"\x00\xff")]
        broker.kill()
        wait_for(lambda: not publisher.state.connected)
        broker.start()
        wait_for(lambda: publisher.state.connected)
        again = broker.subscribe("vedette/porch/status").wait(lambda m: m.of("vedette/porch/status"))
        again.client.publish(ENABLED, b"off", qos=1, retain=True)
        wait_for(lambda: len(heard) == 2)
        assert not heard[1].retained, "it has just been sent, whatever it asks the broker to keep"


def test_what_lay_at_the_broker_is_told_apart(tmp_path: Path) -> None:
    with Mosquitto(tmp_path) as broker:
        broker.subscribe("x").client.publish(ENABLED, b"on", qos=1, retain=True).wait_for_publish(5)
        with listening(tmp_path, broker) as (heard, _, _):
            wait_for(lambda: heard)
            assert heard == [IncomingMessage(ENABLED, b"on", retained=True)]


@pytest.mark.parametrize("protocol", ["auto", "3.1.1"])
def test_ten_megabytes_on_a_command_topic_harm_nothing(
    tmp_path: Path, protocol: Protocol, caplog: pytest.LogCaptureFixture
) -> None:
    with Mosquitto(tmp_path) as broker, listening(tmp_path, broker, protocol) as (heard, publisher, happen):
        voice = broker.subscribe(EVENTS)
        for _ in range(3):
            voice.client.publish(ENABLED, b"x" * 10_000_000, qos=1)
        voice.client.publish(ENABLED, b"x" * LARGEST, qos=1)
        happen()
        voice.wait(lambda m: m.of(EVENTS))
        wait_for(lambda: heard)
        assert [len(received.payload) for received in heard] == [LARGEST]
        assert publisher.state.connected
        told = [record.getMessage() for record in caplog.records if "10000000 bytes" in record.getMessage()]
        assert len(told) == (protocol == "3.1.1"), "a broker of MQTT 5 keeps them to itself"
