"""What was heard before the gate opened: the start of a word comes before anybody knows that it is one."""

from __future__ import annotations

import numpy as np

from agent.messages import Array


class PreRoll:
    """The newest samples, or rows, for when the gate opens.

    Attributes:
        forgot: whether there were more than it holds.
    """

    def __init__(self, size: int) -> None:
        """Hold nothing.

        Args:
            size: samples or rows that are remembered.
        """
        self._size, self.forgot = size, False
        self._parts: list[Array] = []
        self._held = 0

    def add(self, part: Array) -> None:
        """Add some, and forget what is older than the size."""
        self._parts.append(part.copy())
        self._held += len(part)
        while self._held - len(self._parts[0]) >= self._size:
            self._held -= len(self._parts.pop(0))
            self.forgot = True

    def take(self, newest: Array) -> Array:
        """All of it with the newest behind, and forget it."""
        parts = [*self._parts, newest]
        self.clear()
        return np.concatenate(parts)[-(self._size + len(newest)) :]

    def held(self) -> Array:
        """All of it, which stays. At least one part must have been added."""
        return np.concatenate(self._parts)

    def clear(self) -> None:
        """Forget it."""
        self._parts, self._held, self.forgot = [], 0, False
