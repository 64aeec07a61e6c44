"""What the broker answers to a message that is sent at QoS 1."""

from __future__ import annotations

from msgspec import Struct


class Acknowledged(Struct, frozen=True, gc=False):
    """The broker's word on a message.

    Attributes:
        mid: as `Connection.publish` gave it.
        code: MQTT 5 reason code; 0x80 and above is a refusal.
    """

    mid: int
    code: int

    @property
    def is_refusal(self) -> bool:
        """Whether the broker did not take it."""
        return self.code >= 0x80
