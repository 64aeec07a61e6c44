"""Segmentation: a class per pixel; every connected region of a class is a detection with an outline.

For DeepLab and its like: logits or probabilities [1,H,W,classes], or class numbers [1,H,W] where the argmax is in
the graph; one class alone is a mask of logits. Source: https://www.kaggle.com/models/tensorflow/deeplabv3
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import cv2
import numpy as np

from agent.compute.decode.classify import softmax
from agent.compute.decode.decoder import (
    DecoderContext,
    DecoderOptions,
    OutputRole,
    ShapeMismatchError,
    assign_outputs,
)
from agent.compute.decode.scores import Floats, Indices, sigmoid
from agent.config.stream import Unit
from agent.types import Array, Detection, Image, Point

_CLASSES = 4096
"""Class numbers from here on are noise."""
_NEVER = 1e9
"""Stands for what is not finite: a logit that never wins."""


class SegmentOptions(DecoderOptions, frozen=True, forbid_unknown_fields=True):
    """Options of `segment`.

    Attributes:
        logits: the softmax (or, for a single class, the sigmoid) has yet to be done.
        background: class that is no thing; -1: there is none.
        min_area: regions that cover less of the picture are dropped.
        detail: how far an outline may stray, in shares of its length.
    """

    logits: bool = True
    background: int = 0
    min_area: Unit = 0.001
    detail: Unit = 0.005


OPTIONS = SegmentOptions


def build(setting: DecoderContext) -> Segment:
    """A decoder for [1,H,W,classes] or [1,H,W].

    Raises:
        MisfitError: the tensors are others.
    """
    options = setting.options(SegmentOptions)
    count = len(setting.labels()) or None
    role = OutputRole("mask", ((1, None, None, count), (1, None, None)), ("mask", "segment"))
    (place,) = assign_outputs((role,), setting.outputs, options.tensors)
    spec = setting.outputs[place]
    height, width = setting.picture()
    rows, columns = spec.shape[1:3]
    if min(rows, columns) < 8 or abs(rows * width - columns * height) > max(height, width):
        raise ShapeMismatchError(f"expected a mask in the shape of the {width}x{height} input, found {spec}")
    return Segment(setting, options, place)


class Segment:
    """See the module.

    Attributes:
        scores_at: index of the output with the mask.
    """

    def __init__(self, setting: DecoderContext, options: SegmentOptions, place: int) -> None:
        self._place = self.scores_at = place
        self._spec = setting.outputs[place]
        self._options = options
        self._threshold = setting.score_threshold
        self._limit = setting.config.max_detections
        self._labels = setting.labels()
        self._classes = self._spec.shape[3] if len(self._spec.shape) == 4 else 0

    def __call__(self, outputs: Sequence[Array]) -> list[Detection]:
        classes, sure = self._read(outputs[self._place][0])
        found = [
            detection
            for number in (np.flatnonzero(np.bincount(classes.reshape(-1) + 1)) - 1).tolist()
            if number >= 0 and (label := self._labels.wanted(number)) is not None
            for detection in self._regions(label, np.asarray(classes == number, np.uint8), sure)
        ]
        found.sort(key=lambda detection: detection.score, reverse=True)
        return found[: self._limit]

    def _read(self, stored: Array) -> tuple[Indices, Floats | None]:
        """Class per pixel, -1 for none, and how sure that is."""
        with np.errstate(all="ignore"):
            if self._classes == 1:
                return self._single(stored[:, :, 0])
            if self._classes:
                return self._argmax(stored)
            numbers = np.nan_to_num(stored, nan=-1.0, posinf=-1.0, neginf=-1.0).astype(np.intp)
            nothing = (numbers < 0) | (numbers >= _CLASSES) | (numbers == self._options.background)
            return np.where(nothing, -1, numbers), None

    def _single(self, stored: Array) -> tuple[Indices, Floats]:
        """A mask of one class: it is there where it is likelier than not."""
        real = np.nan_to_num(self._spec.real(stored), nan=-_NEVER, posinf=-_NEVER, neginf=-_NEVER).astype(
            np.float32
        )
        sure = sigmoid(real) if self._options.logits else real
        return np.where(sure >= max(self._threshold, 0.5), 0, -1), sure

    def _argmax(self, stored: Array) -> tuple[Indices, Floats]:
        """The largest of several classes; probabilities are worked out only where it is no background."""
        if stored.dtype.kind == "f" and not (finite := np.isfinite(stored)).all():
            stored = np.where(finite, stored, -_NEVER)
        best = stored.argmax(axis=2)
        best[best == self._options.background] = -1
        sure = np.zeros(best.shape, np.float32)
        there = best >= 0
        likely = np.asarray(self._spec.real(stored[there]), np.float32)
        likely = softmax(likely) if self._options.logits else likely
        sure[there] = np.take_along_axis(likely, best[there][:, None], axis=1)[:, 0]
        return best, sure

    def _regions(self, label: str, mask: Image, sure: Floats | None) -> Iterator[Detection]:
        """Detections of the connected regions of a class."""
        count, marks, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
        height, width = mask.shape
        for number in range(1, count):
            left, top, columns, rows, pixels = stats[number].tolist()
            area = pixels / mask.size
            if area < self._options.min_area:
                continue
            window = np.s_[top : top + rows, left : left + columns]
            region = marks[window] == number
            score = 1.0 if sure is None else min(1.0, float(sure[window][region].mean()))
            if score < self._threshold:
                continue
            box = (left / width, top / height, (left + columns) / width, (top + rows) / height)
            outline = self._outline(region.astype(np.uint8), left, top, width, height)
            yield Detection(label, score, box, outline=outline, area=area)

    def _outline(self, region: Image, left: int, top: int, width: int, height: int) -> tuple[Point, ...]:
        """The outer edge of a region in fractions, through the centres of its pixels."""
        contours, _ = cv2.findContours(region, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
        longest = max(contours, key=cv2.contourArea)
        stray = self._options.detail * cv2.arcLength(longest, True)
        corners = cv2.approxPolyDP(longest, stray, True).reshape(-1, 2)
        return tuple(((x + left + 0.5) / width, (y + top + 0.5) / height) for x, y in corners.tolist())
