"""The cascade: how far to go for this input. Pure policy; whoever runs the variants asks it before each step.

An answer is taken when its confidence has reached what was learned for its variant; if not, a deeper variant is
asked, as long as its usual time still fits into the budget. Early exits with a learned threshold: Teerapittayanon
and others, BranchyNet, ICPR 2016, https://arxiv.org/abs/1709.01686; confidence after temperature scaling: Guo and
others, On Calibration of Modern Neural Networks, ICML 2017, https://arxiv.org/abs/1706.04599
"""

from __future__ import annotations

from collections.abc import Sequence

from agent.compute.manifest import Variant

_MEMORY = 0.1
"""Share of the newest time in what is known of a variant's usual time."""
_RETRY = 200
"""A variant that was refused so often for its time is measured anew: what made it slow may be over."""


class ExitPolicy:
    """One stream's policy. For one thread.

    Attributes:
        variants: shallow first.
        used: how often each variant gave the answer.
    """

    def __init__(self, variants: Sequence[Variant], budget_ns: int) -> None:
        """Prepare.

        Args:
            variants: shallow first; the last has the last word.
            budget_ns: for all variants of one input together, ns.
        """
        self.variants = tuple(variants)
        self.used = [0] * len(self.variants)
        self._budget_ns = budget_ns
        self._usual_ns = [0.0] * len(self.variants)
        self._refused = [0] * len(self.variants)
        self._enough = [1.0 if variant.confidence is None else variant.confidence for variant in self.variants]

    def first(self, complexity: float) -> int:
        """The variant whose answer is looked at first: the shallowest that this complexity may begin with."""
        for index, variant in enumerate(self.variants):
            if complexity <= variant.complexity:
                return index
        return len(self.variants) - 1

    def needs_deeper(self, index: int, confidence: float, spent_ns: int) -> bool:
        """Whether the next variant is asked after this one's answer.

        Args:
            index: of the variant that has answered.
            confidence: of its answer, 0..1.
            spent_ns: on this input so far.
        """
        if index + 1 >= len(self.variants) or self.is_confident(index, confidence):
            return False
        return self.fits_budget(index + 1, spent_ns)

    def is_confident(self, index: int, confidence: float) -> bool:
        """Whether an answer of this confidence is what was learned to be good enough for its variant."""
        return confidence >= self._enough[index]

    def fits_budget(self, index: int, spent_ns: int) -> bool:
        """Whether a variant still fits into the budget, or is to be tried again; it is run then."""
        if spent_ns + self._usual_ns[index] <= self._budget_ns:
            return True
        self._refused[index] += 1
        return self._refused[index] > _RETRY and spent_ns <= self._budget_ns

    def record_latency(self, index: int, ns: int) -> None:
        """Learn how long a variant takes by itself, ns."""
        usual = self._usual_ns[index]
        anew = usual == 0.0 or self._refused[index] > _RETRY
        self._usual_ns[index] = ns if anew else usual + _MEMORY * (ns - usual)
        self._refused[index] = 0
