"""YOLO models whose graphs decode the boxes: v5 and v7, v6, v8 to v12, and end-to-end models; and YOLOX.

Rows are `(cx, cy, w, h, classes…)`, in v5 with the objectness before the classes: [1,N,5+C]; since v8
[1,4+C,N]. End-to-end models, which need no suppression, give [1,n,6] as `(x0, y0, x1, y1, score, class)`. Boxes
are in fractions or pixels. YOLOX gives [1,N,5+C] with a row for each cell, whose box is in cells: the centre from
the cell's corner, and the logarithms of the sides.
Source: https://docs.ultralytics.com/integrations/tflite/, ultralytics/yolov5 `export.py`,
Megvii-BaseDetection/YOLOX `yolo_head.py` (`decode_outputs`)
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Literal

import numpy as np
from msgspec import Struct

from agent.compute.decode.decoder import (
    BoxEnd,
    DecoderContext,
    DecoderOptions,
    Floats,
    Indices,
    OutputRole,
    ScoreFilter,
    ShapeMismatchError,
    assign_outputs,
)
from agent.compute.tflite.model import TensorSpec
from agent.types import Array, Detection

_PIXELS = 2.0
"""A larger coordinate means that boxes are in pixels: fractions stay near 1."""
_COARSE = 0.1
"""A quantised tensor with a larger scale cannot hold scores beside pixels."""


class YoloOptions(DecoderOptions, frozen=True, forbid_unknown_fields=True):
    """Options of `yolo`.

    Attributes:
        coordinates: unit of the boxes; `auto`: fractions or pixels, by their size. `cells`: see above.
        objectness: whether a column of it precedes the classes; None: found from the shape.
        end_to_end: whether rows are final boxes `(x0, y0, x1, y1, score, class)`; None: found from the shape.
        strides: input pixels per cell of each level.
    """

    coordinates: Literal["auto", "fractions", "pixels", "cells"] = "auto"
    objectness: bool | None = None
    end_to_end: bool | None = None
    strides: tuple[int, ...] = (8, 16, 32)


class Layout(Struct, frozen=True):
    """Layout of the output tensor.

    Attributes:
        columns_first: [1,columns,N] instead of [1,N,columns].
        rows: N.
        classes: their number.
        first: column of the first class.
        end_to_end: see `YoloOptions`.
    """

    columns_first: bool
    rows: int
    classes: int
    first: int
    end_to_end: bool


def _checked_layout(context: DecoderContext, options: YoloOptions, spec: TensorSpec) -> Layout:
    layout = _layout(context, options, (spec.shape[1], spec.shape[2]))
    if layout is None:
        labels = len(context.labels())
        expected = f"{4 + labels} or {5 + labels} columns for {labels} labels" if labels else "rows for each cell"
        raise ShapeMismatchError(f"expected [1,N,5+C] or [1,4+C,N] with {expected}, found {spec}")
    if spec.scale > _COARSE:
        raise ShapeMismatchError(
            f"{spec} holds pixels and scores in steps of {spec.scale:.3g}, too coarse for scores: export with"
            " boxes in fractions, or with a float output"
        )
    return layout


def _layout(context: DecoderContext, options: YoloOptions, shape: tuple[int, int]) -> Layout | None:
    """Return the layout that the number of cells or of labels confirms; None: there is none."""
    height, width = context.picture()
    cells = sum(-(-height // s) * -(-width // s) for s in options.strides if s > 0)
    labels = len(context.labels())
    if options.coordinates == "cells":
        return _cell_layout(shape, cells, labels)
    for rows, columns in (shape, shape[::-1]):
        first = _first_class(rows, columns, cells, labels, options)
        is_end_to_end = columns == 6 and rows < cells and first is None
        if options.end_to_end is not None:
            is_end_to_end = options.end_to_end and columns == 6
        if is_end_to_end:
            return Layout(rows != shape[0], rows, labels, 5, True)
        if first is not None and columns > first:
            return Layout((rows, columns) != shape, rows, columns - first, first, False)
    return None


def _cell_layout(shape: tuple[int, int], cells: int, labels: int) -> Layout | None:
    for rows, columns in (shape, shape[::-1]):
        if rows == cells and (columns == 5 + labels if labels else columns > 5):
            return Layout(rows != shape[0], rows, columns - 5, 5, False)
    return None


def _first_class(rows: int, columns: int, cells: int, labels: int, options: YoloOptions) -> int | None:
    """Return the column of the first class, 4 or 5; None if these rows and columns do not fit."""
    for first in (4, 5):
        if options.objectness not in (None, first == 5):
            continue
        # v5 and v7 have three boxes per cell and objectness, the others one box and none.
        by_cells = rows == (3 * cells if first == 5 else cells) or (options.objectness is True and rows == cells)
        if columns == first + labels if labels else by_cells:
            return first
    return None


def _filter(context: DecoderContext, spec: TensorSpec, layout: Layout) -> ScoreFilter:
    """Build the filter of objectness, of class rows, or of rows without their box."""
    threshold = context.score_threshold
    if layout.first == 5:
        return ScoreFilter(spec, (layout.rows,), threshold)
    if layout.columns_first:
        return ScoreFilter(spec, (layout.classes, layout.rows), threshold)
    return ScoreFilter(spec, (layout.rows, 4 + layout.classes), threshold, skip=4)


def _grid(picture: tuple[int, int], strides: Sequence[int]) -> Floats:
    """Return column, row and stride of each cell, level by level: float32 [N,3]."""
    cells = []
    for stride in (one for one in strides if one > 0):
        rows, columns = np.mgrid[0 : -(-picture[0] // stride), 0 : -(-picture[1] // stride)].reshape(2, -1)
        cells.append(np.stack((columns, rows, np.full_like(rows, stride)), axis=1))
    return np.concatenate(cells).astype(np.float32)


class Yolo:
    """Decoder of a YOLO model: one output of three dimensions."""

    Options = YoloOptions

    def __init__(self, context: DecoderContext) -> None:
        options = context.options(YoloOptions)
        role = OutputRole("output", ((1, None, None),))
        (self._place,) = assign_outputs((role,), context.outputs, options.tensors)
        self._spec = spec = context.outputs[self._place]
        self._layout = layout = _checked_layout(context, options, spec)
        height, width = context.picture()
        self._size = np.array((width, height, width, height), np.float32)
        self._coordinates = options.coordinates
        self._grid = _grid((height, width), options.strides) if options.coordinates == "cells" else None
        self._threshold = np.float32(context.score_threshold)
        self._filter = _filter(context, spec, layout)
        self._end = BoxEnd(context, context.labels(), max(1, layout.classes))

    def __call__(self, outputs: Sequence[Array]) -> list[Detection]:
        table = outputs[self._place][0]
        if self._layout.columns_first:
            table = table.T
        if self._layout.end_to_end:
            return self._final(table)
        rows, classes, scores = (
            self._filter_objectness(table) if self._layout.first == 5 else self._filter_classes(table)
        )
        chosen = self._end.choose(classes, scores)
        if chosen is not None:
            rows, classes, scores = rows[chosen], classes[chosen], scores[chosen]
        if not rows.size:
            return []
        boxes = self._centred(self._real(table[rows, :4]), rows)
        with np.errstate(all="ignore"):
            boxes[:, :2] -= boxes[:, 2:] / 2
            boxes[:, 2:] += boxes[:, :2]
        return self._end.detections(boxes, scores, classes)

    def _centred(self, boxes: Floats, rows: Indices) -> Floats:
        """Return centres and sides in fractions of the picture."""
        if self._grid is None:
            return self._fractions(boxes)
        cells = self._grid[rows]
        with np.errstate(all="ignore"):
            middle, sides = boxes[:, :2] + cells[:, :2], np.exp(boxes[:, 2:])
            joined: Floats = np.concatenate((middle, sides), axis=1)
            return joined * cells[:, 2:] / self._size

    def _filter_classes(self, table: Array) -> tuple[Indices, Indices, Floats]:
        if self._layout.columns_first:
            indices, scores = self._filter(table.T[4:])
            classes, rows = np.divmod(indices, self._layout.rows)
            return rows, classes, scores
        indices, scores = self._filter(table)
        rows, columns = np.divmod(indices, 4 + self._layout.classes)
        return rows, columns - 4, scores

    def _filter_objectness(self, table: Array) -> tuple[Indices, Indices, Floats]:
        """Return row, class and score of what passes; the score is objectness times class."""
        live, objectness = self._filter(table[:, 4])
        with np.errstate(all="ignore"):
            scores = self._real(table[live, 5:]) * objectness[:, None]
            inner, classes = np.nonzero((scores >= self._threshold) & np.isfinite(scores))
        return live[inner], classes, scores[inner, classes]

    def _final(self, table: Array) -> list[Detection]:
        """Return the detections of an end-to-end model, which has suppressed overlaps itself."""
        live, scores = self._filter(table[:, 4])
        rows = self._real(table[live])
        sound = np.isfinite(rows).all(axis=1)
        rows, scores = rows[sound], scores[sound]
        boxes = np.clip(self._fractions(rows[:, :4]), 0.0, 1.0)
        order = np.argsort(-scores, kind="stable").tolist()
        found = (self._detection(round(float(rows[i, 5])), float(scores[i]), boxes[i]) for i in order)
        return list(islice((d for d in found if d is not None), self._end.limit))

    def _detection(self, number: int, score: float, box: Floats) -> Detection | None:
        x0, y0, x1, y1 = box.tolist()
        label = self._end.labels.wanted(number)
        if label is None or x1 <= x0 or y1 <= y0:
            return None
        return Detection(label, min(1.0, score), (x0, y0, x1, y1))

    def _real(self, stored: Array) -> Floats:
        return np.array(self._spec.real(stored), np.float32)

    def _fractions(self, boxes: Floats) -> Floats:
        pixels = self._coordinates == "pixels"
        if self._coordinates == "auto" and boxes.size:
            pixels = bool(np.max(boxes, initial=0.0, where=np.isfinite(boxes)) > _PIXELS)
        return boxes / self._size if pixels else boxes
