"""NanoDet: scores per cell and class, and per side of the box a distribution over distances.

The distance of a side is the expectation over its bins, times the stride, from the cell's centre `(i + offset) *
stride`. Source: RangiLyu/nanodet, `nanodet_head.py` (`get_bboxes`) and `gfl_head.py` (`distribution_project`);
Generalized Focal Loss, https://arxiv.org/abs/2006.04388
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from agent.compute.decode.boxes import BoxEnd
from agent.compute.decode.decoder import (
    DecoderContext,
    DetectorOptions,
    OutputRole,
    ShapeMismatchError,
    assign_outputs,
    other_classes,
)
from agent.compute.decode.scores import Floats, ScoreFilter
from agent.types import Array, Detection


class NanoDetOptions(DetectorOptions, frozen=True, forbid_unknown_fields=True):
    """Options of `nanodet`.

    Attributes:
        logits: the sigmoid of the scores has yet to be done.
        strides: input pixels per cell of each level, in the order of the rows.
        bins: of a side's distribution; 0: as many as the tensor has.
        offset: of a cell's centre in cells; 0.5 for NanoDet, 0 for NanoDet-Plus.
    """

    logits: bool = False
    strides: tuple[int, ...] = (8, 16, 32)
    bins: int = 0
    offset: float = 0.5


OPTIONS = NanoDetOptions


def build(setting: DecoderContext) -> NanoDet:
    """A decoder for scores [1,N,classes] and distances [1,N,4*bins] (softmax done).

    Raises:
        MisfitError: the tensors are others.
    """
    options = setting.options(NanoDetOptions)
    height, width = setting.picture()
    cells = sum(-(-height // s) * -(-width // s) for s in options.strides if s > 0)
    places = _places(cells, len(setting.labels()), setting, options)
    columns = setting.outputs[places[1]].shape[2]
    if columns % 4 or columns < 8:
        raise ShapeMismatchError(f"expected reg [1,{cells},4*bins], found {setting.outputs[places[1]]}")
    return NanoDet(setting, options, places)


def _places(cells: int, labels: int, setting: DecoderContext, options: NanoDetOptions) -> tuple[int, ...]:
    """Index of the scores and of the distances among the outputs.

    Args:
        cells: rows of each.
        labels: how many there are; 0: not known.
        setting: of the decoder.
        options: of the decoder.

    Raises:
        MisfitError: one is missing, or there is another number of classes.
    """
    roles = (
        OutputRole("scores", ((1, cells, labels or None),), ("score", "cls", "class")),
        OutputRole("reg", ((1, cells, 4 * options.bins or None),), ("reg", "box", "dist")),
    )
    try:
        return assign_outputs(roles, setting.outputs, options.tensors)
    except ShapeMismatchError as error:
        if not labels:
            raise
        misfit = error
    try:
        other = setting.outputs[_places(cells, 0, setting, options)[0]]
    except ShapeMismatchError:
        raise misfit from None
    raise other_classes(labels, other.shape[-1], other)


class NanoDet:
    """See the module.

    Attributes:
        scores_at: index of the output with the scores.
    """

    def __init__(self, setting: DecoderContext, options: NanoDetOptions, places: Sequence[int]) -> None:
        self._scores, self._reg = places
        self.scores_at = self._scores
        scores, reg = setting.outputs[self._scores], setting.outputs[self._reg]
        self._classes = scores.shape[2]
        self._sieve = ScoreFilter(scores, scores.shape[1:], setting.score_threshold, logits=options.logits)
        self._end = BoxEnd(setting, setting.labels(), self._classes, agnostic=options.agnostic)
        self._centres, self._steps = _grid(setting.picture(), options)
        self._bins = reg.shape[2] // 4
        cascade = np.arange(self._bins, dtype=np.float32)
        self._project = np.stack((cascade, np.ones_like(cascade)), axis=1)
        # The scale cancels out of the expectation, so stored values do; the zero point is taken off the sums.
        self._zero = np.float32(reg.zero_point) * self._project.sum(axis=0)

    def __call__(self, outputs: Sequence[Array]) -> list[Detection]:
        indices, scores = self._sieve(outputs[self._scores][0])
        cells, classes = np.divmod(indices, self._classes)
        chosen = self._end.choose(classes, scores)
        if chosen is not None:
            cells, classes, scores = cells[chosen], classes[chosen], scores[chosen]
        if not cells.size:
            return []
        boxes = self._boxes(outputs[self._reg][0].take(cells, axis=0), cells)
        return self._end.detections(boxes, scores, classes)

    def _boxes(self, stored: Array, cells: Array) -> Floats:
        """Boxes [n,4] of rows [n,4*bins]. Dividing by the sum undoes what quantising did to the softmax."""
        bins = stored.astype(np.float32).reshape(-1, self._bins)
        with np.errstate(all="ignore"):
            sums = bins @ self._project - self._zero
            distances = (sums[:, 0] / sums[:, 1]).reshape(-1, 4)
            return np.asarray(self._centres.take(cells, axis=0) + distances * self._steps.take(cells, axis=0))


def _grid(picture: tuple[int, int], options: NanoDetOptions) -> tuple[Floats, Floats]:
    """Centre, and the way of one cell outwards, per cell and side, in fractions: float32 [N,4] each."""
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
