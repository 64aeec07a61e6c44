"""Classification: one probability per class for the whole picture."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from typing import Annotated, Literal

import numpy as np
from msgspec import Meta, Struct

from agent.compute.decode.decoder import (
    DecoderContext,
    DecoderOptions,
    Floats,
    Indices,
    Logits,
    ScoreFilter,
    activation,
    assign_scores,
    class_mismatch,
    sigmoid,
    softmax,
)
from agent.compute.manifest import HIDDEN
from agent.types import Array, Detection

log = logging.getLogger(__name__)
_LEAST = 1e-16
"""Least value of which a logarithm is taken, as TensorFlow Lite's task library has it."""
_CERTAIN = 1.05
"""No probability is larger than this, with room for rounding."""
_NO_PROBABILITY = (
    "output %s has a score of %.3g, which is not a probability: if these are logits, set in the manifest "
    '[output.options] logits = true (or "sigmoid" if several classes may be present)'
)


class ClassCalibration(Struct, frozen=True, forbid_unknown_fields=True):
    """Calibration of scores as TFLite Metadata has it: `scale / (1 + exp(-(slope * transformed + offset)))`.

    Attributes:
        classes: scale, slope and offset of each class, and perhaps its least score; an empty one has none.
        transform: of a score before: none, its logarithm, or the inverse of the logistic function.
        default: score of a class without numbers, or below its least score.
    """

    classes: tuple[tuple[float, ...], ...]
    transform: Literal["", "log", "logit"] = ""
    default: float = 0.0

    def __post_init__(self) -> None:
        if wrong := [number for number, row in enumerate(self.classes) if len(row) not in (0, 3, 4)]:
            raise ValueError(f"class {wrong[0]}: expected scale, slope, offset and perhaps the least score")

    def function(self, count: int) -> Callable[[Floats], Floats]:
        """Return the function that calibrates the scores of `count` classes, float32 [count]."""
        rows = [*self.classes, *[()] * (count - len(self.classes))]
        numbers = np.array([(*row, -math.inf)[:4] if row else (0.0, 0.0, 0.0, math.inf) for row in rows])
        scale, slope, offset, least = numbers.T

        def calibrate(scores: Floats) -> Floats:
            real = np.log(np.maximum(scores, _LEAST)) if self.transform else scores
            if self.transform == "logit":
                real = real - np.log(np.maximum(1.0 - scores, _LEAST))
            told = scale * sigmoid(slope * real + offset)
            return np.asarray(np.where(scores >= least, told, self.default), np.float32)

        return calibrate


class ClassifyOptions(DecoderOptions, frozen=True, forbid_unknown_fields=True):
    """Options of `classify`.

    Attributes:
        logits: `true` or `"softmax"`: the output is logits that need a softmax; `"sigmoid"`: logits of
            independent classes, of which several may be present; `false`: probabilities. Left out: found from the
            model, see `agent.compute.decode.defaults`.
        top_k: most classes per inference.
        calibration: of the scores; None: they count as they are.
    """

    logits: Logits = False
    top_k: Annotated[int, Meta(ge=1)] = 1
    calibration: ClassCalibration | None = None


OPTIONS = ClassifyOptions


def build(context: DecoderContext) -> Classify:
    """Build a decoder for scores [1,classes] or [1,1,1,classes].

    It ignores the output `hidden`, which the next exit continues.
    """
    options = context.options(ClassifyOptions)
    hints = ("score", "prob", "class", "softmax")
    seen = tuple(spec for spec in context.outputs if spec.name != HIDDEN)
    place = assign_scores(len(context.labels()), seen, options.tensors, hints)
    return Classify(context, options, context.outputs.index(seen[place]))


class Classify:
    """Decoder of a classifier.

    Attributes:
        scores_at: index of the output with the scores.
        is_softmax: True if the output is logits of which one class is right, which a temperature can divide.
        top_k: most classes that are told.
    """

    def __init__(self, context: DecoderContext, options: ClassifyOptions, place: int) -> None:
        self._place = self.scores_at = place
        self._spec = context.outputs[place]
        self._threshold = context.score_threshold
        self._activation = activation(options.logits)
        self._labels = context.labels()
        self._wanted = self._labels.mask(self._spec.shape[-1])
        self.is_softmax = self._activation == "softmax" and options.calibration is None
        sigmoids = self._activation == "sigmoid"
        self._filter = ScoreFilter(self._spec, self._spec.shape, context.score_threshold, logits=sigmoids)
        self._limit = self.top_k = min(options.top_k, context.config.max_detections)
        self._warned = False
        classes = self._spec.shape[-1]
        if options.calibration is not None and len(options.calibration.classes) > classes:
            raise class_mismatch(len(options.calibration.classes), classes, self._spec)
        self._calibrate = options.calibration.function(classes) if options.calibration is not None else None

    def __call__(self, outputs: Sequence[Array]) -> list[Detection]:
        if self._calibrate is not None:
            return self.above_threshold(self.scores(outputs))
        if self.is_softmax:
            return self.above_threshold(self.probabilities(outputs))
        return self._strongest(*self._filter(outputs[self._place]))

    def raw(self, outputs: Sequence[Array]) -> Floats:
        """Return a copy of the model's dequantised scores, float32 [classes]."""
        return np.array(self._spec.real(outputs[self._place]), np.float32).reshape(-1)

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
        return self._calibrate(raw) if self._calibrate is not None else raw

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
