"""The ladder: how far to go for this input. Pure policy; whoever runs the rungs asks it before each step.

An answer is taken when its confidence has reached what was learned for its rung; if not, a deeper rung is asked,
as long as its usual time still fits into the budget. Early exits with a learned threshold: Teerapittayanon and
others, BranchyNet, ICPR 2016, https://arxiv.org/abs/1709.01686; confidence after temperature scaling: Guo and
others, On Calibration of Modern Neural Networks, ICML 2017, https://arxiv.org/abs/1706.04599
"""

from __future__ import annotations

from collections.abc import Sequence

from agent.manifest import Rung

_MEMORY = 0.1
"""Share of the newest time in what is known of a rung's usual time."""
_RETRY = 200
"""A rung that was refused so often for its time is measured anew: what made it slow may be over."""


class Ladder:
    """One stream's policy. For one thread.

    Attributes:
        rungs: shallow first.
        used: how often each rung gave the answer.
    """

    def __init__(self, rungs: Sequence[Rung], budget_ns: int) -> None:
        """Prepare.

        Args:
            rungs: shallow first; the last has the last word.
            budget_ns: for all rungs of one input together, ns.
        """
        self.rungs = tuple(rungs)
        self.used = [0] * len(self.rungs)
        self._budget_ns = budget_ns
        self._usual_ns = [0.0] * len(self.rungs)
        self._refused = [0] * len(self.rungs)
        self._enough = [1.0 if rung.confidence is None else rung.confidence for rung in self.rungs]

    def first(self, complexity: float) -> int:
        """The rung whose answer is looked at first: the shallowest that this complexity may begin with."""
        for index, rung in enumerate(self.rungs):
            if complexity <= rung.complexity:
                return index
        return len(self.rungs) - 1

    def goes_on(self, index: int, confidence: float, spent_ns: int) -> bool:
        """Whether the next rung is asked after this one's answer.

        Args:
            index: of the rung that has answered.
            confidence: of its answer, 0..1.
            spent_ns: on this input so far.
        """
        if index + 1 >= len(self.rungs) or self.sure(index, confidence):
            return False
        return self.affords(index + 1, spent_ns)

    def sure(self, index: int, confidence: float) -> bool:
        """Whether an answer of this confidence is what was learned to be good enough for its rung."""
        return confidence >= self._enough[index]

    def affords(self, index: int, spent_ns: int) -> bool:
        """Whether a rung still fits into the budget, or is to be tried again; it is run then."""
        if spent_ns + self._usual_ns[index] <= self._budget_ns:
            return True
        self._refused[index] += 1
        return self._refused[index] > _RETRY and spent_ns <= self._budget_ns

    def took(self, index: int, ns: int) -> None:
        """Learn how long a rung takes by itself, ns."""
        usual = self._usual_ns[index]
        anew = usual == 0.0 or self._refused[index] > _RETRY
        self._usual_ns[index] = ns if anew else usual + _MEMORY * (ns - usual)
        self._refused[index] = 0
