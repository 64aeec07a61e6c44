"""Decisions of the governor: budgets of streams, changes, and promises that cannot be kept."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from msgspec import Struct

from agent.types import StreamBudget


class Change(Struct, frozen=True):
    """A change of what a stream may use.

    Attributes:
        stream: its name; empty: the change is one of the event queue.
        now: what holds now.
        why: its reason.
        is_more: True if that is more than before, and not yet everything.
    """

    stream: str
    now: str
    why: str
    is_more: bool = False

    @property
    def what(self) -> str:
        """Text of what holds now, and whether that is more."""
        return f"{'more, now ' if self.is_more else ''}{self.now}"

    @property
    def text(self) -> str:
        """Text of what holds now, and why."""
        return f"{self.what}: {self.why}"


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
        waiting: streams of `unmet` for which others give way as soon as decisions may change something again.
    """

    budgets: dict[str, StreamBudget]
    sync_every_s: float
    changes: tuple[Change, ...]
    reduced: dict[str, str]
    unmet: dict[str, str]
    broken: Mapping[str, str] = {}
    waiting: Collection[str] = ()
