from __future__ import annotations

import socket
from typing import Any

import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from agent.comms.messages import SCHEMA_VERSION
from agent.comms.mqtt.paho_client import LARGEST_PROPERTIES, Kind, PublishProperties, connect, create_client
from agent.config.mqtt import MqttConfig

LONGEST_EXPIRY_S = 4_000_000_000


def unpacked(properties: PublishProperties, payload: bytes, kind: Kind) -> Any:
    packed = properties.select(payload, kind).pack()
    assert len(packed) <= LARGEST_PROPERTIES
    read, length = Properties(PacketTypes.PUBLISH).unpack(packed)  # type: ignore[no-untyped-call]
    assert length == len(packed)
    assert read.UserProperty == [("schema", str(SCHEMA_VERSION))]
    return read


@pytest.mark.parametrize(
    ("payload", "kind", "content_type", "expiry_s"),
    [
        (b"{}", "event", "application/json", LONGEST_EXPIRY_S),
        (b"{}", "sample", "application/json", 10),
        (b"{}", "state", "application/json", None),
        (b"\xff\xd8", "state", "image/jpeg", None),
        (b"3", "state", "text/plain", None),
        (b"", "state", "text/plain", None),
    ],
)
def test_properties_tell_what_a_payload_is(
    payload: bytes, kind: Kind, content_type: str, expiry_s: int | None
) -> None:
    read = unpacked(PublishProperties(LONGEST_EXPIRY_S), payload, kind)
    assert read.ContentType == content_type
    assert getattr(read, "MessageExpiryInterval", None) == expiry_s
    assert hasattr(read, "PayloadFormatIndicator") == (content_type != "image/jpeg")


def test_an_event_never_expires_without_an_expiry() -> None:
    assert not hasattr(unpacked(PublishProperties(0), b"{}", "event"), "MessageExpiryInterval")


def test_no_packet_waits_for_the_acknowledgement_of_the_one_before() -> None:
    with socket.create_server(("127.0.0.1", 0)) as broker:
        config = MqttConfig(host="127.0.0.1", port=broker.getsockname()[1])
        client = create_client(config, "porch", "5", None)
        connect(client, config, "5", 60.0)
        connection: Any = client.socket()
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        connection.close()
