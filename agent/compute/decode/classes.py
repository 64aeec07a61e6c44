"""Scores of classes: classification of the whole picture or sound, and keywords."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Annotated

import numpy as np
from msgspec import Meta

from agent.compute.decode.decoder import (
    DecoderContext,
    DecoderOptions,
    Floats,
    Indices,
    Logits,
    ScoreFilter,
    activation,
    assign_scores,
    sigmoid,
    softmax,
)
from agent.compute.manifest import HIDDEN
from agent.types import Array, Detection

log = logging.getLogger(__name__)
_CERTAIN = 1.05
"""No probability is larger than this, with room for rounding."""
_NO_PROBABILITY = (
    "output %s has a score of %.3g, which is not a probability: if these are logits, set in the manifest "
    '[output.options] logits = true (or "sigmoid" if several classes may be present)'
)


class ClassifyOptions(DecoderOptions, frozen=True, forbid_unknown_fields=True):
    """Options of `classify`.

    Attributes:
        logits: `true` or `"softmax"`: the output is logits that need a softmax; `"sigmoid"`: logits of
            independent classes, of which several may be present; `false`: probabilities. Left out: found from the
            model, see `agent.compute.decode.completion`.
        top_k: most classes per inference.
    """

    logits: Logits = False
    top_k: Annotated[int, Meta(ge=1)] = 1


class _OfScores:
    """The base of both: an output [1,classes] or [1,1,1,classes] beside `hidden`, which exits continue.

    Attributes:
        scores_at: index of the output with the scores.
    """

    def __init__(self, context: DecoderContext, options: ClassifyOptions | KeywordOptions) -> None:
        seen = tuple(spec for spec in context.outputs if spec.name != HIDDEN)
        hints = ("logit", "score", "prob", "class", "softmax")
        place = assign_scores(len(context.labels()), seen, options.tensors, hints)
        self.scores_at = context.outputs.index(seen[place])
        self._spec = context.outputs[self.scores_at]
        self._activation = activation(options.logits)

    def raw(self, outputs: Sequence[Array]) -> Floats:
        """Return a copy of the model's dequantised scores, float32 [classes]."""
        return np.array(self._spec.real(outputs[self.scores_at]), np.float32).reshape(-1)


class Classify(_OfScores):
    """Decoder of a classifier: one probability per class for the whole picture.

    Attributes:
        is_softmax: True if the output is logits of which one class is right, which a temperature can divide.
        top_k: most classes that are told.
    """

    Options = ClassifyOptions

    def __init__(self, context: DecoderContext) -> None:
        options = context.options(ClassifyOptions)
        super().__init__(context, options)
        self._threshold = context.score_threshold
        self._labels = context.labels()
        self._wanted = self._labels.mask(self._spec.shape[-1])
        self.is_softmax = self._activation == "softmax"
        sigmoids = self._activation == "sigmoid"
        self._filter = ScoreFilter(self._spec, self._spec.shape, context.score_threshold, logits=sigmoids)
        self._limit = self.top_k = min(options.top_k, context.config.max_detections)
        self._warned = False

    def __call__(self, outputs: Sequence[Array]) -> list[Detection]:
        if self.is_softmax:
            return self.above_threshold(self.probabilities(outputs))
        return self._strongest(*self._filter(outputs[self.scores_at]))

    def probabilities(self, outputs: Sequence[Array], temperature: float = 1.0) -> Floats:
        """Return the probability of each class, float32 [classes], from logits that need a softmax."""
        return softmax(self.raw(outputs) / np.float32(temperature))

    def scores(self, outputs: Sequence[Array]) -> Floats:
        """Return the score of each class as it is told, float32 [classes]; NaN where the model gives that."""
        raw = self.raw(outputs)
        if self._activation == "sigmoid":
            raw = sigmoid(raw)
        elif self._activation == "softmax":
            raw = softmax(raw)
        return raw

    def above_threshold(self, probabilities: Floats) -> list[Detection]:
        """Return the wanted classes whose probability reaches the threshold, strongest first."""
        classes = np.flatnonzero(probabilities >= self._threshold)
        return self._strongest(classes, probabilities[classes])

    def _strongest(self, classes: Indices, scores: Floats) -> list[Detection]:
        if self._wanted is not None:
            wanted = self._wanted.take(classes)
            classes, scores = classes[wanted], scores[wanted]
        best = np.argsort(-scores, kind="stable")[: self._limit].tolist()
        if best and scores[best[0]] > _CERTAIN and not self._warned:
            self._warned = True
            log.warning(_NO_PROBABILITY, self._spec.name, float(scores[best[0]]))
        return [Detection(self._labels[int(classes[i])], min(1.0, float(scores[i]))) for i in best]


NO_WORD = -1


class KeywordOptions(DecoderOptions, frozen=True, forbid_unknown_fields=True):
    """Options of `keyword`.

    Attributes:
        logits: see `ClassifyOptions`; a single wake word needs `"sigmoid"`.
        mean_of: number of consecutive answers whose mean is compared with the threshold.
        refractory_s: shortest time between two events of one word, s. Its mean must fall to half the threshold in
            between.
        ignore: labels that are not words, which give no events.
    """

    logits: Logits = False
    mean_of: Annotated[int, Meta(ge=1, le=1000)] = 1
    refractory_s: Annotated[float, Meta(ge=0.0, le=3600.0)] = 1.0
    ignore: tuple[str, ...] = ("unknown", "silence")


class Keyword(_OfScores):
    """Decoder of keywords: one probability per word of the current window of sound, or one for a wake word.

    `agent.compute.track.keywords` turns them into events over time.

    Attributes:
        threshold: least mean of an event, 0..1.
        wanted: numbers of the labels that are words and are wanted.
        is_softmax: True if the output is logits of which one label is right, which a temperature can divide.
    """

    Options = KeywordOptions

    def __init__(self, context: DecoderContext) -> None:
        options = context.options(KeywordOptions)
        super().__init__(context, options)
        self.options, self.threshold = options, context.score_threshold
        self.is_softmax = self._activation == "softmax"
        known, count = context.labels(), self._spec.shape[-1]
        self.labels = tuple(known[number] for number in range(count))
        self._asked = frozenset(number for number in range(count) if known.wanted(number) is not None)
        self.wanted = tuple(number for number in sorted(self._asked) if self.labels[number] not in options.ignore)
        self._words = np.array(self.wanted, np.intp)

    def probabilities(self, outputs: Sequence[Array], temperature: float = 1.0) -> Floats:
        """Return the probability of each label, float32 [classes]; values that are not finite become 0."""
        stored = outputs[self.scores_at].reshape(-1)
        real = np.asarray(self._spec.real(stored), np.float32)
        if self.is_softmax:
            return softmax(real / np.float32(temperature))
        if self._activation == "sigmoid":
            real = sigmoid(real / np.float32(temperature))
        return np.clip(np.nan_to_num(real, nan=0.0, posinf=0.0, neginf=0.0), 0.0, 1.0)

    def verdict(self, scores: Floats) -> tuple[int, float]:
        """Return the most probable word, or -1 for none, and its probability.

        All labels that are not wanted words together count as one answer.
        """
        words = scores[self._words]
        none = float(np.add.reduce(scores)) - float(np.add.reduce(words))
        best = int(words.argmax()) if words.size else 0
        if not words.size or none >= words[best]:
            return NO_WORD, none
        return self.wanted[best], float(words[best])

    def __call__(self, outputs: Sequence[Array]) -> list[Detection]:
        return self.best(self.probabilities(outputs))

    def best(self, probabilities: Floats) -> list[Detection]:
        """Return the best label of one inference if it is wanted, also if it is not a word.

        The threshold is not applied: it is for the mean of several answers.
        """
        number = int(probabilities.argmax())
        return [Detection(self.labels[number], float(probabilities[number]))] if number in self._asked else []
