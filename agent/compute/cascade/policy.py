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


# The cascade of sizes: which one looks at this picture first, and whether the largest looks too. Pure policy.
#
# Depths share their work; sizes do not, so to ask twice costs more than the largest size alone. Each size has a
# chance that its answer will do, learned as the stream goes on, for its pictures look alike. A picture begins
# with the size that is expected to take the least time: its own, and with the rest of the chance that of the
# largest, which decides where a smaller one is not sure, without those between. One that has not begun for long
# is tried anyway. Confidence tells nothing of what a size is blind to: every so often the largest checks what a
# smaller one is sure of.

_UNKNOWN = 0.5
"""Chance of a size of which nothing is known."""
_NEWEST, _TRIED = 0.2, 0.5
"""Share of the newest picture in a size's chance, and when it has not begun for long."""
_IDLE = 32
"""Pictures after which a size that has not begun is tried."""
_UNCHECKED = 32
"""Sure answers of smaller sizes before the largest checks one."""


class SizeCascade(ExitPolicy):
    """One stream's policy for sizes, smallest first. For one thread.

    For each picture: `begin`, `took` for each size that looks, `larger` after the first, `settle`.
    """

    def __init__(self, variants: Sequence[Variant], budget_ns: int) -> None:
        super().__init__(variants, budget_ns)
        self._chances = [_UNKNOWN] * len(self.variants)
        self._idle = [0] * len(self.variants)
        self._largest = len(self.variants) - 1
        self._unchecked = 0

    def begin(self, complexity: float) -> int:
        """The size that looks first.

        None that is too small for the complexity, unless the budget wants it; and none after which there is no
        time left for the largest that the budget allows.
        """
        last = len(self.variants) - 1
        self._largest = top = next((index for index in range(last, 0, -1) if self.fits_budget(index, 0)), 0)
        smaller = range(self.first(complexity), top)
        for index in smaller:
            if self._idle[index] >= _IDLE and self.fits_budget(index, round(self._usual_ns[top])):
                return index
        fits = [index for index in smaller if self._usual_ns[index] + self._usual_ns[top] <= self._budget_ns]
        return min((*fits, top), key=self._expected_ns)

    def _expected_ns(self, index: int) -> float:
        usual = self._usual_ns
        on = 0.0 if index == self._largest else (1.0 - self._chances[index]) * usual[self._largest]
        return usual[index] + on

    def larger(self, index: int, *, sure: bool, spent_ns: int) -> int | None:
        """The larger size that looks as well; None: none is needed, or fits into the budget.

        Args:
            index: of the size that has answered.
            sure: whether its answer is good enough by itself, see `sure`.
            spent_ns: on this picture so far.
        """
        if index >= self._largest or (sure and self._unchecked < _UNCHECKED):
            return None
        return self._largest if self.fits_budget(self._largest, spent_ns) else None

    def settle(self, began: int, answered: int, *, sure: bool, agreed: bool = True) -> None:
        """Learn from a picture where the next one begins.

        Args:
            began: the size that looked first.
            answered: the size whose answer was taken.
            sure: whether the first was.
            agreed: whether the larger one, if it looked as well, said the same.
        """
        self.used[answered] += 1
        share = _TRIED if self._idle[began] >= _IDLE else _NEWEST
        self._idle = [idle + 1 for idle in self._idle]
        self._idle[began] = 0
        if began >= self._largest:
            return
        self._chances[began] += share * (sure - self._chances[began])
        if answered == began:
            self._unchecked += sure
        elif sure and agreed:
            self._unchecked = 0
        elif sure:
            self._chances[began] = 0.0
