"""Where the events come from: whatever keeps them until they are acknowledged. The spool does."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from agent.messages import Stored


class Outgoing(Protocol):
    """Events in the order of their numbers."""

    def peek(self, after_seq: int, limit: int) -> list[Stored]:
        """The first events above a number that are not settled, at most `limit`."""
        ...

    def settle(self, seqs: Iterable[int]) -> None:
        """Forget events: they have been acknowledged."""
        ...

    def drop(self, seq: int) -> None:
        """Forget an event that can never be sent."""
        ...

    def on_stored(self, hook: Callable[[], None] | None) -> None:
        """Call `hook` from any thread whenever there is more to peek, in place of the one before."""
        ...
