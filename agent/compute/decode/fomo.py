"""FOMO: Edge Impulse's detector of centroids. Each cell of a grid tells what lies in it.

One output [1,H,W,1+classes] of probabilities, whose first class is the background; H and W are those of the
picture over eight. Cells of a class that touch are one thing: its box is that of the cells, and its score the
highest of them.
Source: edgeimpulse/inferencing-sdk-cpp, classifier/ei_fill_result_struct.h
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import cv2
import numpy as np

from agent.compute.decode.decoder import (
    DecoderContext,
    DecoderOptions,
    Floats,
    OutputRole,
    ShapeMismatchError,
    assign_outputs,
    class_mismatch,
    softmax,
)
from agent.types import Array, Detection

_SIDES = 512
"""Largest height and width of a grid."""


class FomoOptions(DecoderOptions, frozen=True, forbid_unknown_fields=True):
    """Options of `fomo`.

    Attributes:
        logits: whether the output is logits, which need a softmax.
    """

    logits: bool = False


OPTIONS = FomoOptions


def build(context: DecoderContext) -> Fomo:
    """Build a decoder for [1,H,W,1+classes]."""
    options = context.options(FomoOptions)
    height, width = context.picture()
    (place,) = assign_outputs((OutputRole("grid", ((1, None, None, None),)),), context.outputs, options.tensors)
    spec = context.outputs[place]
    _, rows, columns, classes = spec.shape
    if not (1 <= rows <= min(height, _SIDES) and 1 <= columns <= min(width, _SIDES)) or classes < 2:
        raise ShapeMismatchError(f"expected a grid of cells with two classes or more, found {spec}")
    if context.output.labels and len(context.output.labels) != classes - 1:
        raise class_mismatch(len(context.output.labels), classes - 1, spec)
    return Fomo(context, options, place)


class Fomo:
    """Decoder of a FOMO model. `scores_at` is the index of the output with the grid."""

    def __init__(self, context: DecoderContext, options: FomoOptions, place: int) -> None:
        self._place = self.scores_at = place
        self._spec = context.outputs[place]
        self._logits = options.logits
        self._threshold = context.score_threshold
        self._limit = context.config.max_detections
        labels = context.labels()
        wanted = ((number, labels.wanted(number)) for number in range(self._spec.shape[3] - 1))
        self._labels = [(number + 1, label) for number, label in wanted if label is not None]

    def __call__(self, outputs: Sequence[Array]) -> list[Detection]:
        with np.errstate(all="ignore"):
            real = np.asarray(self._spec.real(outputs[self._place][0]), np.float32)
            finite = np.nan_to_num(real, nan=-1e9, posinf=-1e9, neginf=-1e9)
            scores = softmax(finite) if self._logits else finite
        found = [
            one for number, label in self._labels for one in self._things(label, np.array(scores[..., number]))
        ]
        found.sort(key=lambda one: one.score, reverse=True)
        return found[: self._limit]

    def _things(self, label: str, scores: Floats) -> Iterator[Detection]:
        """Yield the connected cells of a class that reach the threshold."""
        there = np.asarray((scores >= self._threshold) & (scores > 0.0), np.uint8)
        if not there.any():
            return
        count, marks, stats, _ = cv2.connectedComponentsWithStats(there, connectivity=8)
        rows, columns = scores.shape
        for number in range(1, count):
            left, top, wide, high, _cells = stats[number].tolist()
            window = np.s_[top : top + high, left : left + wide]
            best = float(scores[window][marks[window] == number].max())
            box = (left / columns, top / rows, (left + wide) / columns, (top + high) / rows)
            yield Detection(label, min(1.0, best), box)
