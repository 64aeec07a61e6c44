"""The ladder of sizes: which one looks at this picture first, and whether a larger one looks too. Pure policy.

Depths share their work; sizes do not: to ask twice costs more than the largest size alone. Pictures of a stream
look alike, so each begins where the last one was answered. A smaller size is tried now and then, the more rarely
the more often that failed; where one is not sure, the largest that fits into the budget decides, without those
between. Confidence tells nothing of what a size is blind to: every so often the largest checks what a smaller one
is sure of.
"""

from __future__ import annotations

from collections.abc import Sequence

from agent.compute.infer.ladder import Ladder
from agent.manifest import Rung

_PATIENCE = 32
"""Pictures between two trials of a smaller size, at most."""
_UNCHECKED = 32
"""Answers of a smaller size in a row before the largest checks one."""


class SizeLadder(Ladder):
    """One stream's policy for sizes, smallest first. For one thread.

    For each picture: `begin`, `took` for each size that runs, `larger`, `settle`.
    """

    def __init__(self, rungs: Sequence[Rung], budget_ns: int) -> None:
        super().__init__(rungs, budget_ns)
        self._top = self._at = len(self.rungs) - 1
        self._patience = self._left = 1
        self._unchecked = 0

    def begin(self, complexity: float) -> int:
        """The size that looks first: never one below what the complexity needs, unless for the budget's sake."""
        wanted = self._at - 1 if self._at and self._left <= 0 else self._at
        wanted = max(wanted, self.first(complexity))
        return next((index for index in range(wanted, 0, -1) if self.affords(index, 0)), 0)

    def larger(self, index: int, *, sure: bool, spent_ns: int) -> int | None:
        """The larger size that looks as well; None: none is needed, or fits into the budget.

        Args:
            index: of the size that has answered.
            sure: whether its answer is good enough by itself, see `sure`.
            spent_ns: on this picture so far.
        """
        if sure and self._unchecked < _UNCHECKED:
            return None
        return next((larger for larger in range(self._top, index, -1) if self.affords(larger, spent_ns)), None)

    def settle(self, began: int, answered: int, *, enough: bool) -> None:
        """Learn from a picture where the next one begins.

        Args:
            began: the size that looked first.
            answered: the size whose answer was taken.
            enough: whether the first was sure, and what looked as well said the same.
        """
        self.used[answered] += 1
        self._unchecked = self._unchecked + 1 if enough and began == answered < self._top else 0
        if not enough:
            if began >= self._at:
                self._at = answered
            self._patience = self._left = min(_PATIENCE, self._patience * 2)
        elif began < self._at:
            self._at = began
            self._patience = self._left = max(1, self._patience // 2)
        else:
            self._left -= 1
