"""Classification: one probability per class for the whole picture."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Annotated

import numpy as np
from msgspec import Meta

from agent.compute.decode.decoder import (
    DecoderContext,
    DecoderOptions,
    Logits,
    ScoreFilter,
    activation,
    assign_scores,
    softmax,
)
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
            model, see `agent.compute.decode.defaults`.
        top_k: most classes per inference.
    """

    logits: Logits = False
    top_k: Annotated[int, Meta(ge=1)] = 1


OPTIONS = ClassifyOptions


def build(context: DecoderContext) -> Classify:
    """Build a decoder for scores [1,classes] or [1,1,1,classes]."""
    options = context.options(ClassifyOptions)
    hints = ("score", "prob", "class", "softmax")
    place = assign_scores(len(context.labels()), context.outputs, options.tensors, hints)
    return Classify(context, options, place)


class Classify:
    """Decoder of a classifier. `scores_at` is the index of the output with the scores."""

    def __init__(self, context: DecoderContext, options: ClassifyOptions, place: int) -> None:
        self._place = self.scores_at = place
        self._spec = context.outputs[place]
        self._threshold = context.score_threshold
        self._activation = activation(options.logits)
        self._labels = context.labels()
        self._wanted = self._labels.mask(self._spec.shape[-1])
        sigmoids = self._activation == "sigmoid"
        self._filter = ScoreFilter(self._spec, self._spec.shape, context.score_threshold, logits=sigmoids)
        self._limit = min(options.top_k, context.config.max_detections)
        self._warned = False

    def __call__(self, outputs: Sequence[Array]) -> list[Detection]:
        stored = outputs[self._place]
        if self._activation == "softmax":
            probabilities = softmax(np.asarray(self._spec.real(stored), np.float32).reshape(-1))
            classes = np.flatnonzero(probabilities >= self._threshold)
            scores = probabilities[classes]
        else:
            classes, scores = self._filter(stored)
        if self._wanted is not None:
            wanted = self._wanted.take(classes)
            classes, scores = classes[wanted], scores[wanted]
        best = np.argsort(-scores, kind="stable")[: self._limit].tolist()
        if best and scores[best[0]] > _CERTAIN and not self._warned:
            self._warned = True
            log.warning(_NO_PROBABILITY, self._spec.name, float(scores[best[0]]))
        return [Detection(self._labels[int(classes[i])], min(1.0, float(scores[i]))) for i in best]
