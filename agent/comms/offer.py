"""What a broker offers, as its answer to our CONNECT says: how much at once, how large, and at which QoS."""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from agent.comms.envelope import LARGEST

_OVERHEAD = 9 + LARGEST
"""Bytes of a PUBLISH packet besides topic and payload, at most."""
_LEAST_PACKET = 4096
"""Bytes that a broker must take. With less every event would be too large for it, and be dropped for that."""


class Offer(Struct, frozen=True):
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


def read_offer(properties: Any, window: int) -> Offer:
    """The offer in the properties of a CONNACK (MQTT 5.0, section 3.2.2.3); one that is not there sets no bound.

    Args:
        properties: paho's.
        window: that we want, at most.
    """
    return Offer(
        min(window, getattr(properties, "ReceiveMaximum", window)),
        getattr(properties, "MaximumPacketSize", 0),
        min(1, getattr(properties, "MaximumQoS", 1)),
        getattr(properties, "TopicAliasMaximum", 0),
    )
