"""How the line to the broker is, for health and for tests."""

from __future__ import annotations

from msgspec import Struct


class LinkState(Struct, frozen=True):
    """How the line to the broker is.

    Attributes:
        connected: whether the broker has accepted us.
        detail: why not, or how.
        broker: `host:port` of the one that is used or tried.
        is_fallback: whether that is not the first.
        connects: how often a broker has accepted us, since the start.
        trouble: where and why the line was lost last; empty: never.
        sent, acknowledged: events, since the start.
        dropped_samples: messages at QoS 0 that were not sent.
        intrusions: messages of somebody else on our own states that were put right.
    """

    connected: bool
    detail: str
    broker: str
    is_fallback: bool
    connects: int
    trouble: str
    sent: int
    acknowledged: int
    dropped_samples: int
    intrusions: int = 0
