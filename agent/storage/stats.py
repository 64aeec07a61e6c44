"""How the spool is doing."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct


class SpoolStats(Struct, frozen=True):
    """State of the spool.

    Attributes:
        waiting: events not yet acknowledged.
        bytes: that they take, topics and bodies.
        dropped: for the bounds; kept over restarts.
        on: where new events go.
    """

    waiting: int
    bytes: int
    dropped: int
    on: Literal["disk", "memory"]
