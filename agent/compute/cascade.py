"""Runs the exits of one model for one input: each continues the hidden state of the one before.

An answer is taken if its confidence reaches the calibrated threshold of its exit. Else the next exit runs, as
long as its usual latency fits into the budget. No layer runs twice. Early exits with a learned threshold:
Teerapittayanon and others, BranchyNet, ICPR 2016, https://arxiv.org/abs/1709.01686; confidence after temperature
scaling: Guo and others, On Calibration of Modern Neural Networks, ICML 2017, https://arxiv.org/abs/1706.04599
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from itertools import pairwise

import numpy as np
from msgspec import Struct

from agent.compute.decode import build_decoder
from agent.compute.decode.classes import Classify, Keyword
from agent.compute.decode.decoder import Decoder, Floats
from agent.compute.infer.session import Session
from agent.compute.manifest import HIDDEN, Manifest, Variant
from agent.config import StreamConfig
from agent.errors import ModelError
from agent.types import Array, Detection

_NEWEST = 0.1
"""Weight of the newest latency in an exit's usual latency."""
_RETRY = 200
"""An exit that was too slow for so many inputs runs again, because its cause may have passed."""


class ExitPolicy:
    """Decides for one stream whether the next exit runs. For one thread.

    Attributes:
        variants: the exits, shallow first; an answer of the last is always taken.
        used: number of answers of each.
    """

    def __init__(self, variants: Sequence[Variant], budget_ns: int) -> None:
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
        """Return True if the next exit should run after an answer of this confidence, 0..1, and so many ns."""
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


_NO_BUDGET = 1 << 62
_WARM_RUNS = 3
_CONTINUES = 0.5
"""Least confidence at which an exit may report that a word which gave an event continues."""


class Prediction(Struct, frozen=True):
    """Answer to one input.

    Attributes:
        detections: of the exit that answered; empty for keywords.
        scores: probabilities, float32 [classes], of keywords and of classes of which one is right; for other
            decoders the detections' scores.
        variant: name of the exit.
    """

    detections: list[Detection]
    scores: Floats
    variant: str


class _Exit(Struct, frozen=True):
    variant: Variant
    decoder: Decoder
    hidden: int | None


class EarlyExitModel:
    """Runs one stream's model, with as many exits as each input needs. For one thread.

    Attributes:
        keyword: decoder of the deepest exit, if it is a keyword model.
        is_softmax: True for a classifier or a keyword model whose scores are logits of which one class is right.
        answered: exit that gave the newest answer.
    """

    def __init__(self, session: Session, manifest: Manifest, config: StreamConfig) -> None:
        """Build the decoders of all exits that may run. Raises ModelError if they do not fit together."""
        self._session = session
        cascade = manifest.exits(config.variant)
        deepest = cascade[-1].name if cascade else manifest.variant(config.variant).name
        chain = manifest.chain(deepest)
        self._is_cascade = bool(cascade)
        # A variant that was named in the configuration has no budget.
        self._policy = ExitPolicy(chain, round(config.cascade.budget_ms * 1e6) if cascade else _NO_BUDGET)
        self._exits = [self._open_exit(variant, manifest, config) for variant in chain]
        _check_chain(session, chain)
        for index, variant in enumerate(chain if self._is_cascade else ()):
            self._policy.record_latency(index, _warm_latency_ns(session, variant.name))
        session.select(chain[0].name)
        last = self._exits[-1].decoder
        self.keyword = last if isinstance(last, Keyword) else None
        self.is_softmax = isinstance(last, Classify | Keyword) and last.is_softmax
        self.answered = deepest

    @property
    def used(self) -> dict[str, int]:
        """Number of answers by exit."""
        return {step.variant.name: count for step, count in zip(self._exits, self._policy.used, strict=True)}

    def predict(
        self, fill: Callable[[Array], None], complexity: float, continuing: Collection[int] = ()
    ) -> Prediction:
        """Answer one input.

        Args:
            fill: writes the input into the tensor of the first exit.
            complexity: 0..1.
            continuing: numbers of the words that gave an event and continue: they are not worth a deeper exit.

        Raises:
            BackendError: the inference failed.
        """
        began = time.monotonic_ns()
        first = self._policy.first(complexity) if self._is_cascade else len(self._exits) - 1
        index, spent = 0, 0  # an exit needs those before it
        while True:
            self._run(index, fill)
            now = time.monotonic_ns() - began
            self._policy.record_latency(index, now - spent)
            spent, last = now, index + 1 == len(self._exits)
            if index >= first or last or not self._policy.fits_budget(index + 1, spent):
                answer = self._read(index)
                if last or self._is_enough(index, answer.scores, continuing, spent):
                    self._policy.used[index] += 1
                    self.answered = answer.variant
                    return answer
            index += 1

    def predict_all_exits(self, fill: Callable[[Array], None]) -> list[Floats]:
        """Return the raw scores of every exit for one input, shallow first, float32 [classes].

        Raises:
            BackendError: the inference failed.
            ModelError: an exit gives no scores.
        """
        scores = []
        for index, step in enumerate(self._exits):
            self._run(index, fill)
            if not isinstance(step.decoder, Keyword | Classify):
                raise ModelError(f"variant {step.variant.name!r} gives no score for each label")
            outputs = [self._session.output(number) for number in range(len(self._session.outputs))]
            scores.append(step.decoder.raw(outputs))
            del outputs
        return scores

    def _open_exit(self, variant: Variant, manifest: Manifest, config: StreamConfig) -> _Exit:
        session = self._session
        session.select(variant.name)
        decoder = build_decoder(manifest, session.inputs, session.outputs, config.decode)
        names = [spec.name for spec in session.outputs]
        return _Exit(variant, decoder, names.index(HIDDEN) if HIDDEN in names else None)

    def _run(self, index: int, fill: Callable[[Array], None]) -> None:
        session, step = self._session, self._exits[index]
        if not step.variant.after:
            session.select(step.variant.name)
            fill(session.input(0))
        else:
            before = self._exits[index - 1]
            assert before.hidden is not None
            session.select(before.variant.name)
            hidden = session.output(before.hidden)
            session.select(step.variant.name)
            np.copyto(session.input(0), hidden)
            del hidden
        session.invoke()

    def _read(self, index: int) -> Prediction:
        session, step = self._session, self._exits[index]
        outputs = [session.output(number) for number in range(len(session.outputs))]
        if isinstance(step.decoder, Keyword):
            scores = step.decoder.probabilities(outputs, step.variant.temperature)
            return Prediction([], scores, step.variant.name)
        if isinstance(step.decoder, Classify) and step.decoder.is_softmax:
            scores = step.decoder.probabilities(outputs, step.variant.temperature)
            return Prediction(step.decoder.above_threshold(scores), scores, step.variant.name)
        detections = step.decoder(outputs)
        scores = np.array([detection.score for detection in detections], np.float32)
        return Prediction(detections, scores, step.variant.name)

    def _is_enough(self, index: int, scores: Floats, continuing: Collection[int], spent_ns: int) -> bool:
        decoder = self._exits[index].decoder
        if not isinstance(decoder, Keyword):
            return not self._policy.needs_deeper(index, float(scores.max(initial=0.0)), spent_ns)
        label, confidence = decoder.verdict(scores)
        continues = label in continuing and confidence >= _CONTINUES
        return continues or not self._policy.needs_deeper(index, confidence, spent_ns)


def _check_chain(session: Session, chain: tuple[Variant, ...]) -> None:
    for before, variant in pairwise(chain):
        session.select(before.name)
        given = next((spec for spec in session.outputs if spec.name == HIDDEN), None)
        session.select(variant.name)
        taken = session.inputs[0]
        if given is None or (given.shape, given.dtype) != (taken.shape, taken.dtype):
            raise ModelError(
                f"variant {variant.name!r} takes {taken}, but variant {before.name!r} gives "
                f"{given or 'no output called ' + repr(HIDDEN)}"
            )
        if (given.scale, given.zero_point) != (taken.scale, taken.zero_point):
            raise ModelError(
                f"variant {variant.name!r} reads its hidden state at another scale than {before.name!r} writes"
            )


def _warm_latency_ns(session: Session, variant: str) -> int:
    """Return the shortest of a few warm inferences of a variant, ns. The variant stays selected."""
    session.select(variant)
    session.invoke()
    times = []
    for _ in range(_WARM_RUNS):
        began = time.monotonic_ns()
        session.invoke()
        times.append(time.monotonic_ns() - began)
    return min(times)
