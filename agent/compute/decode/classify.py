"""Classification: one probability per class for the whole picture."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Annotated

import numpy as np
from msgspec import Meta

from agent.compute.decode.decoder import DecoderContext, DecoderOptions, Logits, activation, cast_scores
from agent.compute.decode.scores import Floats, ScoreFilter
from agent.types import Array, Detection

log = logging.getLogger(__name__)

_CERTAIN = 1.05
"""More than any probability, with room for rounding."""
_NO_PROBABILITY = (
    "output %s gives a score of %.3g, which is no probability: if it is logits, say so in the manifest, "
    '[output.options] logits = true (or "sigmoid" where several classes may be there)'
)


class ClassifyOptions(DecoderOptions, frozen=True, forbid_unknown_fields=True):
    """Options of `classify`.

    Attributes:
        logits: `true` or `"softmax"`: the output is logits, whose softmax is taken; `"sigmoid"`: each class
            stands by itself, several may be there; `false`: it is probabilities. Left out: seen from the model,
            see `agent.compute.decode.defaults`.
        top_k: verdicts at most.
    """

    logits: Logits = False
    top_k: Annotated[int, Meta(ge=1)] = 1


OPTIONS = ClassifyOptions


def build(setting: DecoderContext) -> Classify:
    """A decoder for scores [1,classes] or [1,1,1,classes].

    Raises:
        MisfitError: the tensors are others.
    """
    options = setting.options(ClassifyOptions)
    hints = ("score", "prob", "class", "softmax")
    place = cast_scores(len(setting.labels()), setting.outputs, options.tensors, hints)
    return Classify(setting, options, place)


class Classify:
    """See the module.

    Attributes:
        scores_at: index of the output with the scores.
    """

    def __init__(self, setting: DecoderContext, options: ClassifyOptions, place: int) -> None:
        self._place = self.scores_at = place
        self._spec = setting.outputs[place]
        self._threshold = setting.score_threshold
        self._activation = activation(options.logits)
        self._labels = setting.labels()
        self._wanted = self._labels.mask(self._spec.shape[-1])
        sigmoids = self._activation == "sigmoid"
        self._sieve = ScoreFilter(self._spec, self._spec.shape, setting.score_threshold, logits=sigmoids)
        self._limit = min(options.top_k, setting.config.max_detections)
        self._warned = False

    def __call__(self, outputs: Sequence[Array]) -> list[Detection]:
        stored = outputs[self._place]
        if self._activation == "softmax":
            probabilities = softmax(np.asarray(self._spec.real(stored), np.float32).reshape(-1))
            classes = np.flatnonzero(probabilities >= self._threshold)
            scores = probabilities[classes]
        else:
            classes, scores = self._sieve(stored)
        if self._wanted is not None:
            wanted = self._wanted.take(classes)
            classes, scores = classes[wanted], scores[wanted]
        best = np.argsort(-scores, kind="stable")[: self._limit].tolist()
        if best and scores[best[0]] > _CERTAIN and not self._warned:
            self._warned = True
            log.warning(_NO_PROBABILITY, self._spec.name, float(scores[best[0]]))
        return [Detection(self._labels[int(classes[i])], min(1.0, float(scores[i]))) for i in best]


def softmax(logits: Floats) -> Floats:
    """Softmax over the last axis of float32 logits; those that are not finite count as never."""
    with np.errstate(all="ignore"):
        sound = np.where(np.isfinite(logits), logits, -np.inf)
        powers = np.exp(sound - sound.max(axis=-1, keepdims=True))
        return np.asarray(np.nan_to_num(powers / powers.sum(axis=-1, keepdims=True)), np.float32)
