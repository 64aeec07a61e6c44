"""Rules by which members of a pool take turns on its items: who has waited longest goes first.

They are apart from `sharing`, which has the threads and the sessions.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Generic, TypeVar

M = TypeVar("M")
S = TypeVar("S")


class Turns(Generic[M, S]):
    """Records which member has which item, and who waits for one. For one thread at a time.

    Members and items are compared by identity. A member asks for one turn at a time. Times are monotonic, s.
    """

    def __init__(self) -> None:
        self._free: list[S] = []
        self._waiting: deque[tuple[M, float]] = deque()
        self._held: dict[int, tuple[S, float]] = {}
        self._waited_s = self._turns_s = 0.0
        self._turns = 0

    @property
    def items(self) -> int:
        """Number of items, free or held, without those that were revoked."""
        return len(self._free) + len(self._held)

    @property
    def is_awaited(self) -> bool:
        """True if a member waits."""
        return bool(self._waiting)

    def ask(self, member: M, now_s: float) -> None:
        """Ask for a turn; `grants` gives it."""
        self._waiting.append((member, now_s))

    def add(self, item: S) -> None:
        """Add an item that nobody has."""
        self._free.append(item)

    def remove_free(self) -> S | None:
        """Take out an item that nobody has; None: there is none."""
        return self._free.pop() if self._free else None

    def grants(self, now_s: float) -> Iterator[tuple[M, S]]:
        """Yield the turns that begin now, each with its item: first those who have waited longest."""
        while self._free and self._waiting:
            member, since_s = self._waiting.popleft()
            item = self._free.pop()  # the one used last: its memory is still in the caches
            self._held[id(member)] = item, now_s
            self._waited_s += now_s - since_s
            yield member, item

    def end(self, member: M, now_s: float) -> S | None:
        """End a member's turn and return its item, which is no longer among the items; None: it was revoked."""
        item, since_s = self._held.pop(id(member), (None, now_s))
        if item is not None:
            self._turns_s += now_s - since_s
            self._turns += 1
        return item

    def revoke(self, longer_than_s: float, now_s: float) -> int:
        """End the turns that have lasted longer, without their items coming back. Return their number."""
        hanging = [key for key, (_, since_s) in self._held.items() if now_s - since_s > longer_than_s]
        for key in hanging:
            del self._held[key]
        return len(hanging)

    def dismiss(self) -> list[M]:
        """Return all who wait, who now wait no longer."""
        members = [member for member, _ in self._waiting]
        self._waiting.clear()
        return members

    @property
    def mean_turn_s(self) -> float:
        """Mean length of a turn, s; 0 before the first has ended."""
        return self._turns_s / self._turns if self._turns else 0.0

    def waited_s(self, now_s: float) -> float:
        """Return how long all members together have waited so far, s."""
        return self._waited_s + sum(now_s - since_s for _, since_s in self._waiting)
