"""Policy of early exits: decides after each exit whether to run the next one.

An answer is taken if its confidence reaches the calibrated threshold of its exit. Else the next exit runs, as
long as its usual latency fits into the budget. Early exits with a learned threshold: Teerapittayanon and
others, BranchyNet, ICPR 2016, https://arxiv.org/abs/1709.01686; confidence after temperature scaling: Guo and
others, On Calibration of Modern Neural Networks, ICML 2017, https://arxiv.org/abs/1706.04599
"""

from __future__ import annotations

from collections.abc import Sequence

from agent.compute.manifest import Variant

_NEWEST = 0.1
"""Weight of the newest latency in an exit's usual latency."""
_RETRY = 200
"""An exit that was too slow for so many inputs runs again, because its cause may have passed."""


class ExitPolicy:
    """Early-exit policy of one stream. For one thread.

    Attributes:
        variants: the exits, shallow first.
        used: number of answers of each.
    """

    def __init__(self, variants: Sequence[Variant], budget_ns: int) -> None:
        """Start without latencies.

        Args:
            variants: the exits, shallow first; an answer of the last is always taken.
            budget_ns: for all exits of one input together, ns.
        """
        self.variants = tuple(variants)
        self.used = [0] * len(self.variants)
        self._budget_ns = budget_ns
        self._usual_ns = [0.0] * len(self.variants)
        self._refused = [0] * len(self.variants)
        self._thresholds = [
            1.0 if variant.confidence is None else variant.confidence for variant in self.variants
        ]

    def first(self, complexity: float) -> int:
        """Return the index of the shallowest exit whose answer may be taken for this complexity."""
        for index, variant in enumerate(self.variants):
            if complexity <= variant.complexity:
                return index
        return len(self.variants) - 1

    def needs_deeper(self, index: int, confidence: float, spent_ns: int) -> bool:
        """Return True if the next exit should run after this one's answer.

        Args:
            index: of the exit that has answered.
            confidence: of its answer, 0..1.
            spent_ns: time spent on this input so far, ns.
        """
        if index + 1 >= len(self.variants) or self.is_confident(index, confidence):
            return False
        return self.fits_budget(index + 1, spent_ns)

    def is_confident(self, index: int, confidence: float) -> bool:
        """Return True if the confidence reaches the threshold of the exit."""
        return confidence >= self._thresholds[index]

    def fits_budget(self, index: int, spent_ns: int) -> bool:
        """Return True if an exit fits into the budget, or is due for a new measurement: then run it."""
        if spent_ns + self._usual_ns[index] <= self._budget_ns:
            return True
        self._refused[index] += 1
        return self._refused[index] > _RETRY and spent_ns <= self._budget_ns

    def record_latency(self, index: int, ns: int) -> None:
        """Update the usual latency of an exit by itself, ns."""
        usual = self._usual_ns[index]
        restarts = usual == 0.0 or self._refused[index] > _RETRY
        self._usual_ns[index] = ns if restarts else usual + _NEWEST * (ns - usual)
        self._refused[index] = 0
