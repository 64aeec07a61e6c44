"""Classification: one probability per class for the whole picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import numpy as np
from msgspec import Meta

from agent.compute.decode.quant import Floats, Sieve
from agent.compute.decode.roles import Role, cast
from agent.compute.decode.setting import Options, Setting
from agent.messages import Array, Detection


class ClassifyOptions(Options, frozen=True, forbid_unknown_fields=True):
    """Options of `classify`.

    Attributes:
        logits: the softmax has yet to be done.
        top_k: verdicts at most.
    """

    logits: bool = False
    top_k: Annotated[int, Meta(ge=1)] = 1


def build(setting: Setting) -> Classify:
    """A decoder for scores [1,classes] or [1,1,1,classes].

    Raises:
        MisfitError: the tensors are others.
    """
    options = setting.options(ClassifyOptions)
    count = len(setting.labels()) or None
    role = Role("scores", ((1, count), (1, 1, 1, count)), ("score", "prob", "class", "softmax"))
    (place,) = cast((role,), setting.outputs, options.tensors)
    return Classify(setting, options, place)


class Classify:
    """See the module."""

    def __init__(self, setting: Setting, options: ClassifyOptions, place: int) -> None:
        self._place = place
        self._spec = setting.outputs[place]
        self._threshold = setting.score_threshold
        self._softmax = options.logits
        self._labels = setting.labels()
        self._wanted = self._labels.mask(self._spec.shape[-1])
        self._sieve = Sieve(self._spec, self._spec.shape, setting.score_threshold)
        self._limit = min(options.top_k, setting.config.max_detections)

    def __call__(self, outputs: Sequence[Array]) -> list[Detection]:
        """See `Decoder`."""
        stored = outputs[self._place]
        if self._softmax:
            probabilities = softmax(np.asarray(self._spec.real(stored), np.float32).reshape(-1))
            classes = np.flatnonzero(probabilities >= self._threshold)
            scores = probabilities[classes]
        else:
            classes, scores = self._sieve(stored)
        if self._wanted is not None:
            wanted = self._wanted.take(classes)
            classes, scores = classes[wanted], scores[wanted]
        best = np.argsort(-scores, kind="stable")[: self._limit].tolist()
        return [Detection(self._labels[int(classes[i])], min(1.0, float(scores[i]))) for i in best]


def softmax(logits: Floats) -> Floats:
    """Softmax over the last axis of float32 logits; those that are not finite count as never."""
    with np.errstate(all="ignore"):
        sound = np.where(np.isfinite(logits), logits, -np.inf)
        powers = np.exp(sound - sound.max(axis=-1, keepdims=True))
        return np.asarray(np.nan_to_num(powers / powers.sum(axis=-1, keepdims=True)), np.float32)
