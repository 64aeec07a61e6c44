"""Runs the exits of one model for one input: each continues the hidden state of the one before.

`ExitPolicy` decides after each exit whether to go deeper. No layer runs twice.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from itertools import pairwise

import numpy as np
from msgspec import Struct

from agent.compute.cascade.policy import ExitPolicy
from agent.compute.decode.decoder import Decoder, build_decoder
from agent.compute.decode.keyword import Keyword
from agent.compute.decode.scores import Floats
from agent.compute.infer.chain import warm_latency_ns
from agent.compute.infer.session import Session
from agent.compute.manifest import HIDDEN, Manifest, Variant
from agent.config.stream import StreamConfig
from agent.errors import ModelError
from agent.types import Array, Detection

_NO_BUDGET = 1 << 62
_STILL = 0.5
"""Least confidence with which a variant may say that a word which has been told goes on."""


class Prediction(Struct, frozen=True):
    """What the model says of one input.

    Attributes:
        detections: of the variant that answered.
        scores: float32 [classes]; for a decoder without them, of the detections.
        variant: that gave it.
    """

    detections: list[Detection]
    scores: Floats
    variant: str


class _Exit(Struct, frozen=True):
    """A variant that is ready to run."""

    variant: Variant
    decoder: Decoder
    hidden: int | None


class EarlyExitModel:
    """One stream's model. For one thread.

    Attributes:
        keyword: the decoder of the deepest variant, where it tells words.
        answered: the variant that gave the newest answer.
    """

    def __init__(self, session: Session, manifest: Manifest, config: StreamConfig) -> None:
        """Prepare every variant that may run.

        Raises:
            ModelError: a variant is missing in the file, or does not take what the one before gives, or `auto`
                was asked for and the model has no calibrated exits.
        """
        self._session = session
        cascade = manifest.exits(config.variant)
        deepest = cascade[-1].name if cascade else manifest.variant(config.variant).name
        chain = manifest.chain(deepest)
        self._climbs = bool(cascade)
        # A variant that was asked for by name answers, however long it takes.
        self._policy = ExitPolicy(chain, round(config.cascade.budget_ms * 1e6) if cascade else _NO_BUDGET)
        self._steps = [self._step(variant, manifest, config) for variant in chain]
        _check_chain(session, chain)
        for index, variant in enumerate(chain if self._climbs else ()):
            self._policy.record_latency(index, warm_latency_ns(session, variant.name))
        session.select(chain[0].name)
        last = self._steps[-1].decoder
        self.keyword = last if isinstance(last, Keyword) else None
        self.answered = deepest

    @property
    def used(self) -> dict[str, int]:
        """How often each variant gave the answer."""
        return {step.variant.name: count for step, count in zip(self._steps, self._policy.used, strict=True)}

    def predict(self, fill: Callable[[Array], None], complexity: float, told: Collection[int] = ()) -> Prediction:
        """Answer one input.

        Args:
            fill: writes it into the input tensor of the first variant.
            complexity: 0..1.
            told: numbers of the words that have been told and go on: to hear one of them once more is no news,
                and not worth another variant.

        Raises:
            BackendError: the inference failed.
        """
        began = time.monotonic_ns()
        first = self._policy.first(complexity) if self._climbs else len(self._steps) - 1
        index, spent = 0, 0  # the way to a depth leads through those before it
        while True:
            self._run(index, fill)
            now = time.monotonic_ns() - began
            self._policy.record_latency(index, now - spent)
            spent, last = now, index + 1 == len(self._steps)
            if index >= first or last or not self._policy.fits_budget(index + 1, spent):
                answer = self._read(index)
                if last or self._will_do(index, answer.scores, told, spent):
                    self._policy.used[index] += 1
                    self.answered = answer.variant
                    return answer
            index += 1

    def predict_all_exits(self, fill: Callable[[Array], None]) -> list[Floats]:
        """What each variant says of one input, shallow first: its raw scores, float32 [classes].

        Raises:
            BackendError: the inference failed. ModelError: a variant gives no scores.
        """
        said = []
        for index, step in enumerate(self._steps):
            self._run(index, fill)
            if not isinstance(step.decoder, Keyword):
                raise ModelError(f"variant {step.variant.name!r} gives no score for each label")
            outputs = [self._session.output(number) for number in range(len(self._session.outputs))]
            said.append(step.decoder.raw(outputs))
            del outputs
        return said

    def _step(self, variant: Variant, manifest: Manifest, config: StreamConfig) -> _Exit:
        session = self._session
        session.select(variant.name)
        decoder = build_decoder(manifest, session.inputs, session.outputs, config.decode)
        names = [spec.name for spec in session.outputs]
        return _Exit(variant, decoder, names.index(HIDDEN) if HIDDEN in names else None)

    def _run(self, index: int, fill: Callable[[Array], None]) -> None:
        session, step = self._session, self._steps[index]
        if not step.variant.after:
            session.select(step.variant.name)
            fill(session.input(0))
        else:
            before = self._steps[index - 1]
            assert before.hidden is not None
            session.select(before.variant.name)
            hidden = session.output(before.hidden)
            session.select(step.variant.name)
            np.copyto(session.input(0), hidden)
            del hidden
        session.invoke()

    def _read(self, index: int) -> Prediction:
        session, step = self._session, self._steps[index]
        outputs = [session.output(number) for number in range(len(session.outputs))]
        if isinstance(step.decoder, Keyword):
            scores = step.decoder.probabilities(outputs, step.variant.temperature)
            return Prediction([], scores, step.variant.name)
        detections = step.decoder(outputs)
        scores = np.array([detection.score for detection in detections], np.float32)
        return Prediction(detections, scores, step.variant.name)

    def _will_do(self, index: int, scores: Floats, told: Collection[int], spent_ns: int) -> bool:
        """Whether no deeper variant is asked."""
        decoder = self._steps[index].decoder
        if not isinstance(decoder, Keyword):
            return not self._policy.needs_deeper(index, float(scores.max(initial=0.0)), spent_ns)
        label, confidence = decoder.verdict(scores)
        old = label in told and confidence >= _STILL
        return old or not self._policy.needs_deeper(index, confidence, spent_ns)


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
