"""MQTT 5 properties of the messages that are published, and the limits that a broker announces in its CONNACK.

Properties: MQTT 5.0, section 3.3.2.3. They are packed once for each kind of message.
"""

from __future__ import annotations

from typing import Any, Literal

from msgspec import Struct
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from agent.comms.messages import SCHEMA_VERSION

Kind = Literal["event", "sample", "state"]

LARGEST = 64
"""Maximum size of packed properties, bytes."""
_SAMPLE_EXPIRY_S = 10
"""A detection is of use only now."""
_CONTENT_TYPES = {b"{": "application/json", b"\xff": "image/jpeg"}
"""Content type by the first byte of the payload: nothing else that is published begins with these."""
_TEXT = "text/plain"


class PackedProperties(Struct, frozen=True, gc=False):
    """Properties in their wire format; paho needs only `pack`."""

    data: bytes

    def pack(self) -> bytes:
        """Return the properties, with their length in front."""
        return self.data


class PublishProperties:
    """The properties of a connection's PUBLISH packets."""

    def __init__(self, event_expiry_s: int) -> None:
        """Pack the properties of each kind.

        Args:
            event_expiry_s: see `MqttConfig`.
        """
        self._states = {first: _packed(content_type, 0) for first, content_type in _CONTENT_TYPES.items()}
        self._text = _packed(_TEXT, 0)
        self._by_kind = {
            "event": _packed("application/json", event_expiry_s),
            "sample": _packed("application/json", _SAMPLE_EXPIRY_S),
        }

    def select(self, payload: bytes, kind: Kind) -> PackedProperties:
        """Return the properties for a payload of a kind."""
        return self._by_kind.get(kind) or self._states.get(payload[:1], self._text)


def will_properties() -> Any:
    """Return the properties of the last will, which says `offline`."""
    return _properties(PacketTypes.WILLMESSAGE, _TEXT, 0)


def reply_properties(correlation: bytes) -> Any:
    """Return the properties of the reply to a request.

    Args:
        correlation: the request's correlation data; empty if it had none.
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


def _packed(content_type: str, expiry_s: int) -> PackedProperties:
    return PackedProperties(_properties(PacketTypes.PUBLISH, content_type, expiry_s).pack())


_OVERHEAD = 9 + LARGEST
"""Maximum size of a PUBLISH packet besides its topic and payload, bytes."""
_LEAST_PACKET = 4096
"""Packet size that a broker must accept, bytes: below that every event would be too large and be dropped."""


class ServerLimits(Struct, frozen=True):
    """Limits of one connection, from the broker's CONNACK.

    Attributes:
        window: maximum number of unacknowledged messages.
        max_packet: maximum packet size, bytes; 0: unlimited.
        qos: the highest supported QoS, 0 or 1.
    """

    window: int
    max_packet: int = 0
    qos: int = 1

    def fits(self, topic: str, payload: bytes) -> bool:
        """Return True if the broker accepts a message of that size."""
        return not self.max_packet or len(topic.encode()) + len(payload) + _OVERHEAD <= self.max_packet

    @property
    def fault(self) -> str:
        """Why the limits are too low to deliver events; empty if they are not."""
        if 0 < self.max_packet < _LEAST_PACKET:
            return f"it takes packets of {self.max_packet} bytes at most; Vedette needs {_LEAST_PACKET}"
        return ""


def read_limits(properties: Any, window: int) -> ServerLimits:
    """Read the limits in the properties of a CONNACK (MQTT 5.0, section 3.2.2.3); a missing one means no limit.

    Args:
        properties: paho's.
        window: our own maximum number of unacknowledged messages.
    """
    return ServerLimits(
        min(window, getattr(properties, "ReceiveMaximum", window)),
        getattr(properties, "MaximumPacketSize", 0),
        min(1, getattr(properties, "MaximumQoS", 1)),
    )
