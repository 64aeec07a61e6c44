"""Maps of the picture whose connected regions are detections: segmentation, FOMO's centroids, and anomalies."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Annotated, NamedTuple

import cv2
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from agent.compute.decode.decoder import (
    DecoderContext,
    DecoderOptions,
    Floats,
    Indices,
    OutputRole,
    ShapeMismatchError,
    assign_outputs,
    sigmoid,
    softmax,
)
from agent.config.toml import Unit
from agent.errors import ModelError
from agent.types import Array, Box, Detection, Image, Point

_SIDES_MAX = 4096
"""Largest height and width of a map; of a segmentation also the first class number that is ignored."""
_NEVER = 1e9
"""Replaces scores that are not finite: its negative never wins."""


class _Region(NamedTuple):
    """A connected region: its box in fractions, its place in the map, and which places there belong to it."""

    box: Box
    window: tuple[slice, slice]
    there: NDArray[np.bool_]
    places: int

    def of(self, values: Floats) -> Floats:
        """Return the values of its places."""
        return values[self.window][self.there]


def _regions(mask: NDArray[np.bool_]) -> Iterator[_Region]:
    """Yield the connected regions of a mask [H,W]."""
    if not mask.any():
        return
    count, marks, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    height, width = mask.shape
    for number in range(1, count):
        left, top, columns, rows, places = stats[number].tolist()
        window = np.s_[top : top + rows, left : left + columns]
        box = (left / width, top / height, (left + columns) / width, (top + rows) / height)
        yield _Region(box, window, marks[window] == number, places)


class SegmentOptions(DecoderOptions, frozen=True, forbid_unknown_fields=True):
    """Options of `segment`.

    Attributes:
        logits: whether the output is logits, which need a softmax (a sigmoid for a single class).
        background: class of the background; -1: there is none.
        min_area: least area of a region, as a share of the picture.
        detail: largest deviation of an outline, as a share of its length.
    """

    logits: bool = True
    background: int = 0
    min_area: Unit = 0.001
    detail: Unit = 0.005


class Segment:
    """Decoder of DeepLab and similar models: every connected region of a class is a detection with an outline.

    The output is logits or probabilities [1,H,W,classes], or class numbers [1,H,W] if the argmax is in the graph;
    a single class is a mask of logits. Source: https://www.kaggle.com/models/tensorflow/deeplabv3
    """

    Options = SegmentOptions

    def __init__(self, context: DecoderContext) -> None:
        self._options = options = context.options(SegmentOptions)
        self._labels = context.labels()
        count = len(self._labels) or None
        role = OutputRole("mask", ((1, None, None, count), (1, None, None)), ("mask", "segment"))
        (self.scores_at,) = assign_outputs((role,), context.outputs, options.tensors)
        self._spec = spec = context.outputs[self.scores_at]
        height, width = context.picture()
        rows, columns = spec.shape[1:3]
        if min(rows, columns) < 8 or abs(rows * width - columns * height) > max(height, width):
            raise ShapeMismatchError(f"expected a mask in the shape of the {width}x{height} input, found {spec}")
        self._threshold = context.score_threshold
        self._limit = context.config.max_detections
        self._classes = spec.shape[3] if len(spec.shape) == 4 else 0

    def __call__(self, outputs: Sequence[Array]) -> list[Detection]:
        classes, confidence = self._read(outputs[self.scores_at][0])
        found = [
            detection
            for number in (np.flatnonzero(np.bincount(classes.reshape(-1) + 1)) - 1).tolist()
            if number >= 0 and (label := self._labels.wanted(number)) is not None
            for detection in self._things(label, classes == number, confidence)
        ]
        found.sort(key=lambda detection: detection.score, reverse=True)
        return found[: self._limit]

    def _read(self, stored: Array) -> tuple[Indices, Floats | None]:
        """Return the class per pixel, -1 for none, and its probability."""
        with np.errstate(all="ignore"):
            if self._classes == 1:
                return self._single(stored[:, :, 0])
            if self._classes:
                return self._argmax(stored)
            numbers = np.nan_to_num(stored, nan=-1.0, posinf=-1.0, neginf=-1.0).astype(np.intp)
            nothing = (numbers < 0) | (numbers >= _SIDES_MAX) | (numbers == self._options.background)
            return np.where(nothing, -1, numbers), None

    def _single(self, stored: Array) -> tuple[Indices, Floats]:
        """Return the mask of a single class: pixels with a probability of at least one half."""
        real = np.nan_to_num(self._spec.real(stored), nan=-_NEVER, posinf=-_NEVER, neginf=-_NEVER).astype(
            np.float32
        )
        confidence = sigmoid(real) if self._options.logits else real
        return np.where(confidence >= max(self._threshold, 0.5), 0, -1), confidence

    def _argmax(self, stored: Array) -> tuple[Indices, Floats]:
        """Return the largest of several classes; probabilities are computed outside the background only."""
        if stored.dtype.kind == "f" and not (finite := np.isfinite(stored)).all():
            stored = np.where(finite, stored, -_NEVER)
        best = stored.argmax(axis=2)
        best[best == self._options.background] = -1
        confidence = np.zeros(best.shape, np.float32)
        there = best >= 0
        likely = np.asarray(self._spec.real(stored[there]), np.float32)
        likely = softmax(likely) if self._options.logits else likely
        confidence[there] = np.take_along_axis(likely, best[there][:, None], axis=1)[:, 0]
        return best, confidence

    def _things(self, label: str, mask: NDArray[np.bool_], confidence: Floats | None) -> Iterator[Detection]:
        for region in _regions(mask):
            area = region.places / mask.size
            if area < self._options.min_area:
                continue
            score = 1.0 if confidence is None else min(1.0, float(region.of(confidence).mean()))
            if score >= self._threshold:
                outline = self._outline(region, *mask.shape)
                yield Detection(label, score, region.box, outline=outline, area=area)

    def _outline(self, region: _Region, height: int, width: int) -> tuple[Point, ...]:
        """Return the outer edge of a region in fractions, through the centres of its pixels."""
        shape: Image = region.there.astype(np.uint8)
        contours, _ = cv2.findContours(shape, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
        longest = max(contours, key=cv2.contourArea)
        deviation = self._options.detail * cv2.arcLength(longest, True)
        corners = cv2.approxPolyDP(longest, deviation, True).reshape(-1, 2)
        top, left = region.window[0].start, region.window[1].start
        return tuple(((x + left + 0.5) / width, (y + top + 0.5) / height) for x, y in corners.tolist())


class FomoOptions(DecoderOptions, frozen=True, forbid_unknown_fields=True):
    """Options of `fomo`.

    Attributes:
        logits: whether the output is logits, which need a softmax.
    """

    logits: bool = False


class Fomo:
    """Decoder of FOMO, Edge Impulse's detector of centroids: each cell of a grid tells what lies in it.

    One output [1,H,W,1+classes] of probabilities, whose first class is the background; H and W are those of the
    picture over eight. Cells of a class that touch are one thing: its box is that of the cells, and its score the
    highest of them. Source: edgeimpulse/inferencing-sdk-cpp, classifier/ei_fill_result_struct.h
    """

    Options = FomoOptions

    def __init__(self, context: DecoderContext) -> None:
        options = context.options(FomoOptions)
        height, width = context.picture()
        role = OutputRole("grid", ((1, None, None, None),))
        (self.scores_at,) = assign_outputs((role,), context.outputs, options.tensors)
        self._spec = spec = context.outputs[self.scores_at]
        _, rows, columns, classes = spec.shape
        if not (1 <= rows <= height and 1 <= columns <= width) or max(rows, columns) > _SIDES_MAX or classes < 2:
            raise ShapeMismatchError(f"expected a grid of cells with two classes or more, found {spec}")
        labels = context.labels()
        if len(labels) not in (0, classes - 1):
            raise ShapeMismatchError(f"expected a cell of {len(labels) + 1} classes, found {spec}")
        self._logits = options.logits
        self._threshold = context.score_threshold
        self._limit = context.config.max_detections
        wanted = ((number, labels.wanted(number)) for number in range(classes - 1))
        self._labels = [(number + 1, label) for number, label in wanted if label is not None]

    def __call__(self, outputs: Sequence[Array]) -> list[Detection]:
        with np.errstate(all="ignore"):
            real = np.asarray(self._spec.real(outputs[self.scores_at][0]), np.float32)
            finite = np.nan_to_num(real, nan=-_NEVER, posinf=-_NEVER, neginf=-_NEVER)
            scores = softmax(finite) if self._logits else finite
        found = [
            Detection(label, min(1.0, float(region.of(scores[..., number]).max())), region.box)
            for number, label in self._labels
            for region in _regions((scores[..., number] >= self._threshold) & (scores[..., number] > 0.0))
        ]
        found.sort(key=lambda one: one.score, reverse=True)
        return found[: self._limit]


ANOMALY_LABEL = "defect"
"""Label of a region where the manifest has none."""
TOP = 10
"""Places of a picture whose mean squared distance is the picture's: a single one may be noise."""
_STEEPNESS = 8.0
_FARTHEST = 1e3
"""Shares of the limit above this score alike."""
_CERTAIN = 1e-6
_HIGHEST = 1e12
"""Distances are clipped to this, and those that are not finite count as it."""


class AnomalyOptions(DecoderOptions, frozen=True, forbid_unknown_fields=True):
    """Options of `anomaly`.

    Attributes:
        limit: squared distance whose score is 0.5, learned from sound parts. It has to be stated.
        place_limit: squared distance that single places of sound parts reach: regions are of places beyond it.
        top: places whose mean counts for the picture.
        min_area: least area of a region, as a share of the picture.
    """

    limit: Annotated[float, Meta(ge=0.0, le=1e9)] = 0.0
    place_limit: Annotated[float, Meta(ge=0.0, le=1e9)] = 0.0
    top: Annotated[int, Meta(ge=1, le=10_000)] = TOP
    min_area: Unit = 0.0


def picture_score(distances: Floats, top: int = TOP) -> float:
    """Return the mean of the largest squared distances of a picture's places, of any shape."""
    flat = distances.reshape(-1)
    count = min(top, flat.size)
    return float(np.partition(flat, flat.size - count)[flat.size - count :].mean())


def score_of(share: float) -> float:
    """Return the score, 0..1, of a squared distance as a share of the limit."""
    power = math.pow(min(share, _FARTHEST), _STEEPNESS)
    return power / (power + 1.0)


class Anomaly:
    """Decoder of a model that was shown sound parts only: regions that differ from them are detections.

    For models of `vedette optimise anomaly`: one map [1,H,W,1] of squared distances between a place of the
    picture and the nearest that is known from sound parts. A picture is judged by the mean of its `top` largest
    ones. Its score is r⁸ / (r⁸ + 1), with r that mean as a share of the limit: 0.5 at the limit, 0.81 at 1.2
    times the limit. All its regions have this score.
    """

    Options = AnomalyOptions

    def __init__(self, context: DecoderContext) -> None:
        self._options = options = context.options(AnomalyOptions)
        role = OutputRole("distances", ((1, None, None, 1),), ("anomaly", "distance"))
        (self.scores_at,) = assign_outputs((role,), context.outputs, options.tensors)
        self._spec = spec = context.outputs[self.scores_at]
        if not options.limit > 0.0:
            raise ModelError(
                "decoder 'anomaly': options: `limit` has to be stated; `vedette optimise anomaly` learns it"
            )
        if context.output.labels and not context.output.labels[0].strip():
            raise ModelError("decoder 'anomaly': its label is empty: name what is reported, such as \"defect\"")
        if not all(1 <= side <= _SIDES_MAX for side in spec.shape[1:3]):
            raise ModelError(f"decoder 'anomaly': expected a map of a fixed size, found {spec}")
        self._threshold = context.score_threshold
        self._most = context.config.max_detections
        self._label = context.labels((ANOMALY_LABEL,)).wanted(0)

    def __call__(self, outputs: Sequence[Array]) -> list[Detection]:
        if self._label is None:
            return []
        real = np.asarray(self._spec.real(outputs[self.scores_at])[0, :, :, 0], np.float32)
        distances: Floats = np.clip(np.nan_to_num(real, nan=_HIGHEST, posinf=_HIGHEST), 0.0, _HIGHEST)
        score = score_of(picture_score(distances, self._options.top) / self._options.limit)
        if score < self._threshold:
            return []
        found = [
            (float(region.of(distances).max()), region.box, region.places / distances.size)
            for region in _regions(distances >= min(self._least(), float(distances.max())))
        ]
        found = [one for one in found if one[2] >= self._options.min_area]
        found.sort(key=lambda one: one[0], reverse=True)
        return [Detection(self._label, score, box, area=area) for _, box, area in found[: self._most]]

    def _least(self) -> float:
        """Return the distance from which a place belongs to a region: that of the threshold, or `place_limit`."""
        odds = self._threshold / max(1.0 - self._threshold, _CERTAIN)
        return max(self._options.limit * math.pow(odds, 1.0 / _STEEPNESS), self._options.place_limit)
