"""How the spool is doing."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from agent.storage.batch import Reason


class SpoolStats(Struct, frozen=True):
    """State of the spool.

    Attributes:
        waiting: events not yet acknowledged.
        bytes: that they take, topics and bodies.
        dropped: events that went without having been delivered, ever; kept over restarts.
        on: where new events go; `disk` also where that is so for some kinds only.
        dropped_by: of those dropped, by reason.
    """

    waiting: int
    bytes: int
    dropped: int
    on: Literal["disk", "memory"]
    dropped_by: dict[Reason, int] = {}
