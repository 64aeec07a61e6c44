"""The envelope: what goes with a message under MQTT 5 beside topic and payload, packed once for each kind.

Properties: MQTT 5.0, section 3.3.2.3. A topic that comes often is sent in full once in a connection and by its
number, the topic alias, after that, as far as the broker takes them.
"""

from __future__ import annotations

from typing import Any, Literal

from msgspec import Struct
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from agent.comms.messages import SCHEMA_VERSION

Kind = Literal["event", "sample", "state"]

LARGEST = 64
"""Bytes of packed properties, at most."""
_SAMPLE_EXPIRY_S = 10
"""A detection is of use only now."""
_CONTENT_TYPES = {b"{": "application/json", b"\xff": "image/jpeg"}
"""By the first byte of a payload: nothing else that is published begins with these."""
_TEXT = "text/plain"


class Packed(Struct, frozen=True, gc=False):
    """Properties as they go over the line; what paho wants of its own."""

    data: bytes

    def pack(self) -> bytes:
        """All of them, with their length before."""
        return self.data


class PublishProperties(Struct, frozen=True, gc=False):
    """Of one message.

    Attributes:
        topic: to be sent; empty where the properties hold its alias alone.
        properties: None under MQTT 3.1.1.
    """

    topic: str
    properties: Packed | None


class PublishPropertiesFactory:
    """Of one connection."""

    def __init__(self, event_expiry_s: int, aliases: int, *, mqtt_5: bool) -> None:
        """Prepare.

        Args:
            event_expiry_s: see `MqttConfig`.
            aliases: topic aliases that the broker takes, at most.
            mqtt_5: else there are none.
        """
        self._mqtt_5, self._aliases, self._used = mqtt_5, aliases, 0
        self._known: dict[str, PublishProperties] = {}
        if mqtt_5:
            self._states = {first: _packed(kind, 0) for first, kind in _CONTENT_TYPES.items()}
            self._text = _packed(_TEXT, 0)
            self._frequent = {
                "event": _packed("application/json", event_expiry_s),
                "sample": _packed("application/json", _SAMPLE_EXPIRY_S),
            }

    def of(self, topic: str, payload: bytes, kind: Kind) -> PublishProperties:
        """For a message that is sent next: nothing else of this topic may be sent before it."""
        if (known := self._known.get(topic)) is not None:
            return known
        if not self._mqtt_5:
            return PublishProperties(topic, None)
        if kind == "state":
            return PublishProperties(topic, self._states.get(payload[:1], self._text))
        packed = self._frequent[kind]
        if self._used >= self._aliases:
            return self._keep(topic, PublishProperties(topic, packed))
        self._used += 1
        numbered = _with_alias(packed, self._used)
        self._keep(topic, PublishProperties("", numbered))
        return PublishProperties(topic, numbered)

    def _keep(self, topic: str, envelope: PublishProperties) -> PublishProperties:
        self._known[topic] = envelope
        return envelope

    def forget(self, topic: str) -> None:
        """The message was not sent after all: the broker does not know the alias."""
        self._known.pop(topic, None)


def of_will() -> Any:
    """For the last will, which says `offline`."""
    return _properties(PacketTypes.WILLMESSAGE, _TEXT, 0)


def of_answer(correlation: bytes) -> Any:
    """For the answer to a request.

    Args:
        correlation: of the request; empty: it had none.
    """
    properties = _properties(PacketTypes.PUBLISH, "application/json", 0)
    if correlation:
        properties.CorrelationData = correlation
    return properties


def _properties(packet: int, content_type: str, expiry_s: int) -> Any:
    properties = Properties(packet)  # type: ignore[no-untyped-call]  # paho leaves it untyped
    properties.ContentType = content_type
    properties.UserProperty = ("schema", str(SCHEMA_VERSION))
    if content_type != "image/jpeg":
        properties.PayloadFormatIndicator = 1  # UTF-8
    if expiry_s:
        properties.MessageExpiryInterval = expiry_s
    return properties


def _packed(content_type: str, expiry_s: int) -> Packed:
    return Packed(_properties(PacketTypes.PUBLISH, content_type, expiry_s).pack())


def _with_alias(packed: Packed, alias: int) -> Packed:
    # Below 128 bytes their length is one byte; 0x23 is Topic Alias.
    body = packed.data[1:] + b"\x23" + alias.to_bytes(2, "big")
    return Packed(bytes([len(body)]) + body)


# What a broker offers, as its answer to our CONNECT says: how much at once, how large, and at which QoS.

_OVERHEAD = 9 + LARGEST
"""Bytes of a PUBLISH packet besides topic and payload, at most."""
_LEAST_PACKET = 4096
"""Bytes that a broker must take. With less every event would be too large for it, and be dropped for that."""


class ServerLimits(Struct, frozen=True):
    """Bounds of one connection.

    Attributes:
        window: unacknowledged messages that the broker takes, at most.
        max_packet: bytes of a packet that it takes, at most; 0: any.
        qos: the highest that it offers, 0 or 1.
        aliases: topic aliases that it takes, at most.
    """

    window: int
    max_packet: int = 0
    qos: int = 1
    aliases: int = 0

    def fits(self, topic: str, payload: bytes) -> bool:
        """Whether it takes a message of that size."""
        return not self.max_packet or len(topic.encode()) + len(payload) + _OVERHEAD <= self.max_packet

    @property
    def fault(self) -> str:
        """Why nothing can be delivered on such terms; empty: it can."""
        if 0 < self.max_packet < _LEAST_PACKET:
            return f"it takes packets of {self.max_packet} bytes at most; Vedette needs {_LEAST_PACKET}"
        return ""


def read_offer(properties: Any, window: int) -> ServerLimits:
    """The offer in the properties of a CONNACK (MQTT 5.0, section 3.2.2.3); one that is not there sets no bound.

    Args:
        properties: paho's.
        window: that we want, at most.
    """
    return ServerLimits(
        min(window, getattr(properties, "ReceiveMaximum", window)),
        getattr(properties, "MaximumPacketSize", 0),
        min(1, getattr(properties, "MaximumQoS", 1)),
        getattr(properties, "TopicAliasMaximum", 0),
    )
