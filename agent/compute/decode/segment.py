"""Segmentation: every connected region of a class is a detection with an outline.

For DeepLab and similar models: logits or probabilities [1,H,W,classes], or class numbers [1,H,W] if the argmax is
in the graph; a single class is a mask of logits.
Source: https://www.kaggle.com/models/tensorflow/deeplabv3
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import cv2
import numpy as np

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
from agent.types import Array, Detection, Image, Point

_CLASSES = 4096
"""Class numbers from here on are ignored."""
_NEVER = 1e9
"""Replaces logits that are not finite: its negative never wins."""


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


OPTIONS = SegmentOptions


def build(context: DecoderContext) -> Segment:
    """Build a decoder for [1,H,W,classes] or [1,H,W]."""
    options = context.options(SegmentOptions)
    count = len(context.labels()) or None
    role = OutputRole("mask", ((1, None, None, count), (1, None, None)), ("mask", "segment"))
    (place,) = assign_outputs((role,), context.outputs, options.tensors)
    spec = context.outputs[place]
    height, width = context.picture()
    rows, columns = spec.shape[1:3]
    if min(rows, columns) < 8 or abs(rows * width - columns * height) > max(height, width):
        raise ShapeMismatchError(f"expected a mask in the shape of the {width}x{height} input, found {spec}")
    return Segment(context, options, place)


class Segment:
    """Decoder of a segmentation model. `scores_at` is the index of the output with the mask."""

    def __init__(self, context: DecoderContext, options: SegmentOptions, place: int) -> None:
        self._place = self.scores_at = place
        self._spec = context.outputs[place]
        self._options = options
        self._threshold = context.score_threshold
        self._limit = context.config.max_detections
        self._labels = context.labels()
        self._classes = self._spec.shape[3] if len(self._spec.shape) == 4 else 0

    def __call__(self, outputs: Sequence[Array]) -> list[Detection]:
        classes, confidence = self._read(outputs[self._place][0])
        found = [
            detection
            for number in (np.flatnonzero(np.bincount(classes.reshape(-1) + 1)) - 1).tolist()
            if number >= 0 and (label := self._labels.wanted(number)) is not None
            for detection in self._regions(label, np.asarray(classes == number, np.uint8), confidence)
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
            nothing = (numbers < 0) | (numbers >= _CLASSES) | (numbers == self._options.background)
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

    def _regions(self, label: str, mask: Image, confidence: Floats | None) -> Iterator[Detection]:
        count, marks, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
        height, width = mask.shape
        for number in range(1, count):
            left, top, columns, rows, pixels = stats[number].tolist()
            area = pixels / mask.size
            if area < self._options.min_area:
                continue
            window = np.s_[top : top + rows, left : left + columns]
            region = marks[window] == number
            score = 1.0 if confidence is None else min(1.0, float(confidence[window][region].mean()))
            if score < self._threshold:
                continue
            box = (left / width, top / height, (left + columns) / width, (top + rows) / height)
            outline = self._outline(region.astype(np.uint8), left, top, width, height)
            yield Detection(label, score, box, outline=outline, area=area)

    def _outline(self, region: Image, left: int, top: int, width: int, height: int) -> tuple[Point, ...]:
        """Return the outer edge of a region in fractions, through the centres of its pixels."""
        contours, _ = cv2.findContours(region, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
        longest = max(contours, key=cv2.contourArea)
        deviation = self._options.detail * cv2.arcLength(longest, True)
        corners = cv2.approxPolyDP(longest, deviation, True).reshape(-1, 2)
        return tuple(((x + left + 0.5) / width, (y + top + 0.5) / height) for x, y in corners.tolist())
