"""Rows on the disk that are done with: they wait for company, since each commit wears the card."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable

LINGER_S = 2.0
"""For so long, or until the next put."""
_MANY = 1000
"""So many do not wait."""


class Deletions:
    """Their numbers. Its owner does the locking."""

    def __init__(self) -> None:
        self._seqs: set[int] = set()
        self._since = 0.0

    def __len__(self) -> int:
        return len(self._seqs)

    def __contains__(self, seq: int) -> bool:
        return seq in self._seqs

    @property
    def due_at(self) -> float:
        """When to carry them out, s of the monotonic clock: ∞ while there are none, -∞ when they are many."""
        if len(self._seqs) >= _MANY:
            return -math.inf
        return self._since + LINGER_S if self._seqs else math.inf

    def add(self, seq: int) -> None:
        """One more row is done with."""
        if not self._seqs:
            self._since = time.monotonic()
        self._seqs.add(seq)

    def all(self) -> set[int]:
        """A copy of all."""
        return self._seqs.copy()

    def done(self, seqs: Iterable[int]) -> None:
        """These have been carried out."""
        self._seqs.difference_update(seqs)
