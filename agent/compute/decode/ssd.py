"""SSD models that end in `TFLite_Detection_PostProcess`, such as EfficientDet-Lite and SSD-MobileNet.

The operation suppresses overlaps and gives boxes [1,n,4] as `(y0, x0, y1, x1)` in fractions, classes [1,n] from
0, scores [1,n] and count [1]. Source: tensorflow/tensorflow, tensorflow/lite/kernels/detection_postprocess.cc
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from itertools import islice

import numpy as np

from agent.compute.decode.decoder import (
    DecoderContext,
    DecoderOptions,
    OutputRole,
    ShapeMismatchError,
    assign_outputs,
    sigmoid,
)
from agent.compute.tflite.model import TensorSpec
from agent.types import Array, Detection


class SsdOptions(DecoderOptions, frozen=True, forbid_unknown_fields=True):
    """Options of `ssd`.

    Attributes:
        label_offset: added to a class to get the number of its label; 1 if the labels begin with the background.
        logits: whether the scores are logits, which need a sigmoid.
    """

    label_offset: int = 0
    logits: bool = False


_ROLES = (
    OutputRole("boxes", ((1, None, 4),), ("box", "location")),
    OutputRole("classes", ((1, None),), ("class", "categor")),
    OutputRole("scores", ((1, None),), ("score",)),
    OutputRole("count", ((1,), (1, 1)), ("count", "num")),
)


def _places(context: DecoderContext, options: SsdOptions) -> tuple[int, ...]:
    """Return the indices of boxes, classes, scores and count among the outputs, which may be in any order."""
    boxes, classes, scores, count = assign_outputs(_ROLES, context.outputs, options.tensors)
    specs = [context.outputs[i] for i in (boxes, classes, scores)]
    if len({spec.shape[1] for spec in specs}) > 1:
        raise ShapeMismatchError(
            f"expected as many boxes as classes and scores, found {', '.join(map(str, specs))}"
        )
    named = options.tensors or any(_ROLES[1 + i].is_hinted(spec) for i, spec in enumerate(specs[1:]))
    if not named:
        numbers = [_number(spec) for spec in context.outputs]
        # Classes are numbered next to boxes: 0 boxes, 1 classes, 2 scores, 3 count; by TensorFlow 2 backwards.
        backwards = numbers[boxes] > numbers[count]
        classes, scores = sorted((classes, scores), key=lambda place: numbers[place], reverse=backwards)
    return boxes, classes, scores, count


def _number(spec: TensorSpec) -> int:
    digits = re.search(r"(\d+)$", spec.name)
    return int(digits[1]) if digits else 0


class Ssd:
    """Decoder of an SSD's four outputs."""

    Options = SsdOptions

    def __init__(self, context: DecoderContext) -> None:
        options = context.options(SsdOptions)
        self._places = places = _places(context, options)
        self._specs = [context.outputs[i] for i in places]
        self._threshold = context.score_threshold
        self._limit = context.config.max_detections
        self._offset, self._logits, self.scores_at = options.label_offset, options.logits, places[2]
        self._labels = context.labels()

    def __call__(self, outputs: Sequence[Array]) -> list[Detection]:
        boxes, classes, scores, counts = (
            np.asarray(spec.real(outputs[place]), np.float32).reshape(-1)
            for spec, place in zip(self._specs, self._places, strict=True)
        )
        scores = sigmoid(scores) if self._logits else scores
        count = counts[0]
        found = min(int(count), scores.size) if 0 <= count < scores.size else scores.size
        best = np.flatnonzero(scores[:found] >= self._threshold)
        best = best[np.argsort(-scores[best], kind="stable")]
        rows = zip(
            classes[best].tolist(), scores[best].tolist(), boxes.reshape(-1, 4)[best].tolist(), strict=True
        )
        detections = (self._detection(number, score, corners) for number, score, corners in rows)
        return list(islice((d for d in detections if d is not None), self._limit))

    def _detection(self, number: float, score: float, corners: list[float]) -> Detection | None:
        """Return None for an unwanted class, and for a box that is empty or not finite."""
        if not all(map(math.isfinite, (number, score, *corners))):
            return None
        y0, x0, y1, x1 = (min(1.0, max(0.0, edge)) for edge in corners)
        label = self._labels.wanted(round(number) + self._offset)
        if label is None or x1 <= x0 or y1 <= y0:
            return None
        return Detection(label, min(score, 1.0), (x0, y0, x1, y1))
