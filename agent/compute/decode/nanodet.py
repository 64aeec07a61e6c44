"""NanoDet: scores per cell and class, and a distribution over distances per side of the box.

The distance of a side is the expectation over its bins, times the stride, from the cell's centre `(i + offset) *
stride`. Source: RangiLyu/nanodet, `nanodet_head.py` (`get_bboxes`) and `gfl_head.py` (`distribution_project`);
Generalized Focal Loss, https://arxiv.org/abs/2006.04388
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from agent.compute.decode.decoder import (
    BoxEnd,
    DecoderContext,
    DecoderOptions,
    Floats,
    OutputRole,
    ScoreFilter,
    ShapeMismatchError,
    assign_outputs,
)
from agent.types import Array, Detection


class NanoDetOptions(DecoderOptions, frozen=True, forbid_unknown_fields=True):
    """Options of `nanodet`.

    Attributes:
        logits: whether the scores are logits, which need a sigmoid.
        strides: input pixels per cell of each level, in the order of the rows.
        bins: of a side's distribution; 0: found from the tensor.
        offset: of a cell's centre, in cells; 0.5 for NanoDet, 0 for NanoDet-Plus.
    """

    logits: bool = False
    strides: tuple[int, ...] = (8, 16, 32)
    bins: int = 0
    offset: float = 0.5


def _places(cells: int, context: DecoderContext, options: NanoDetOptions) -> tuple[int, ...]:
    """Return the indices of the scores and of the distances among the outputs."""
    labels = len(context.labels())
    roles = (
        OutputRole("scores", ((1, cells, labels or None),), ("score", "cls", "class")),
        OutputRole("reg", ((1, cells, 4 * options.bins or None),), ("reg", "box", "dist")),
    )
    return assign_outputs(roles, context.outputs, options.tensors)


class NanoDet:
    """Decoder of scores [1,N,classes] and distances [1,N,4*bins] after their softmax."""

    Options = NanoDetOptions

    def __init__(self, context: DecoderContext) -> None:
        options = context.options(NanoDetOptions)
        height, width = context.picture()
        cells = sum(-(-height // s) * -(-width // s) for s in options.strides if s > 0)
        self.scores_at, self._reg = _places(cells, context, options)
        scores, reg = context.outputs[self.scores_at], context.outputs[self._reg]
        if reg.shape[2] % 4 or reg.shape[2] < 8:
            raise ShapeMismatchError(f"expected reg [1,{cells},4*bins], found {reg}")
        self._classes = scores.shape[2]
        self._filter = ScoreFilter(scores, scores.shape[1:], context.score_threshold, logits=options.logits)
        self._end = BoxEnd(context, context.labels(), self._classes)
        self._centres, self._steps = _grid(context.picture(), options)
        self._bins = reg.shape[2] // 4
        bins = np.arange(self._bins, dtype=np.float32)
        self._project = np.stack((bins, np.ones_like(bins)), axis=1)
        # The scale cancels out of the expectation, so stored values are used; the zero point is subtracted from
        # the sums.
        self._zero = np.float32(reg.zero_point) * self._project.sum(axis=0)

    def __call__(self, outputs: Sequence[Array]) -> list[Detection]:
        indices, scores = self._filter(outputs[self.scores_at][0])
        cells, classes = np.divmod(indices, self._classes)
        chosen = self._end.choose(classes, scores)
        if chosen is not None:
            cells, classes, scores = cells[chosen], classes[chosen], scores[chosen]
        if not cells.size:
            return []
        boxes = self._boxes(outputs[self._reg][0].take(cells, axis=0), cells)
        return self._end.detections(boxes, scores, classes)

    def _boxes(self, stored: Array, cells: Array) -> Floats:
        """Return boxes [n,4] of rows [n,4*bins]. Dividing by the sum corrects the quantised softmax."""
        bins = stored.astype(np.float32).reshape(-1, self._bins)
        with np.errstate(all="ignore"):
            sums = bins @ self._project - self._zero
            distances = (sums[:, 0] / sums[:, 1]).reshape(-1, 4)
            return np.asarray(self._centres.take(cells, axis=0) + distances * self._steps.take(cells, axis=0))


def _grid(picture: tuple[int, int], options: NanoDetOptions) -> tuple[Floats, Floats]:
    """Return the centre and the outward step per cell and side, in fractions: float32 [N,4] each."""
    height, width = picture
    centres, steps = [], []
    for stride in options.strides:
        rows, columns = (
            np.mgrid[0 : -(-height // stride), 0 : -(-width // stride)].reshape(2, -1) + options.offset
        )
        x, y = columns * stride / width, rows * stride / height
        centres.append(np.stack((x, y, x, y), axis=1))
        step = (-stride / width, -stride / height, stride / width, stride / height)
        steps.append(np.broadcast_to(step, (x.size, 4)))
    return np.concatenate(centres).astype(np.float32), np.concatenate(steps).astype(np.float32)
