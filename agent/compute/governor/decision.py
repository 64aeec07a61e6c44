"""Decisions of the governor: budgets of streams, changes, and promises that cannot be kept."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct

from agent.types import StreamBudget


class Change(Struct, frozen=True):
    """A change of what a stream, or for an empty name the event queue, may use; `text`: which, and why."""

    stream: str
    text: str


class Decision(Struct, frozen=True):
    """Budgets that hold from now on, and what has changed.

    Attributes:
        budgets: by stream.
        sync_every_s: time that an event may wait for others to be synced to the disk with it, s.
        changes: since the decision before.
        reduced: why a stream has less than everything, by stream.
        unmet: why a promise cannot be kept, by stream; empty name: the board.
        broken: which promise is not kept now, by stream, whatever can still give way for it; empty name: why the
            board is too hot, or its supply too weak.
    """

    budgets: dict[str, StreamBudget]
    sync_every_s: float
    changes: tuple[Change, ...]
    reduced: dict[str, str]
    unmet: dict[str, str]
    broken: Mapping[str, str] = {}
