"""From candidates to detections: what every decoder of boxes does at its end."""

from __future__ import annotations

import cv2
import numpy as np

from agent.compute.decode.decoder import DecoderContext, Labels
from agent.compute.decode.scores import Floats, Indices, top_k
from agent.types import Box, Detection

# Non-maximum suppression: of boxes that overlap too much, only the strongest stays. The work is OpenCV's.
#
# Source: https://docs.opencv.org/4.x/d6/d0f/group__dnn.html, `NMSBoxesBatched`


def suppress(
    boxes: Floats, scores: Floats, classes: Indices | None, iou_threshold: float, limit: int
) -> list[int]:
    """Choose which boxes stay.

    Args:
        boxes: float32 [n,4], `(x0, y0, x1, y1)` within 0..1 or NaN: OpenCV keeps classes apart by shifting their
            boxes, and negative coordinates would reach into the neighbour.
        scores: float32 [n], finite; a score of 0 never stays.
        classes: integers [n], not negative; only boxes of one class suppress each other. None: one class.
        iou_threshold: overlap above which the weaker goes, 0..1.
        limit: how many stay, at most.

    Returns:
        Indices, strongest first. Boxes that are empty or NaN are left out.
    """
    sizes = boxes[:, 2:] - boxes[:, :2]
    sound = (sizes > 0.0).all(axis=1)  # false for NaN
    if not sound.all():
        places = np.flatnonzero(sound)
        chosen = None if classes is None else classes[places]
        inner = suppress(boxes[places], scores[places], chosen, iou_threshold, limit)
        return [int(places[i]) for i in inner]
    if len(boxes) < 2:
        return [i for i in range(len(boxes)) if scores[i] > 0.0]
    # Lists: OpenCV's binding takes three times as long to read arrays.
    corners = np.concatenate((boxes[:, :2], sizes), axis=1).tolist()
    if classes is None:
        kept = cv2.dnn.NMSBoxes(corners, scores.tolist(), 0.0, iou_threshold)
    else:
        kept = cv2.dnn.NMSBoxesBatched(corners, scores.tolist(), classes.tolist(), 0.0, iou_threshold)
    return [int(i) for i in kept[:limit]]


CANDIDATES = 1000
"""Boxes that go into suppression, at most: its time grows with their square, and noise may give any number."""


class BoxEnd:
    """Candidates → the strongest of the wanted classes → suppression → detections."""

    def __init__(self, setting: DecoderContext, labels: Labels, classes: int, *, agnostic: bool = False) -> None:
        self.labels = labels
        self.iou_threshold = setting.iou_threshold
        self.limit = setting.config.max_detections
        self._wanted = labels.mask(classes)
        self._agnostic = agnostic

    def choose(self, classes: Indices, scores: Floats) -> Indices | None:
        """Which candidates are worth decoding; None for all."""
        chosen: Indices | None = None
        if self._wanted is not None:
            chosen = np.flatnonzero(self._wanted.take(classes))
            scores = scores[chosen]
        best = top_k(scores, CANDIDATES)
        if best is None:
            return chosen
        return best if chosen is None else chosen[best]

    def kept(self, boxes: Floats, scores: Floats, classes: Indices | None) -> list[int]:
        """Clip `boxes` to the picture in place, and choose which stay; see `suppress`."""
        if not (finite := np.isfinite(boxes)).all():
            boxes[~finite.all(axis=1)] = np.nan  # or clipping would make infinite boxes sound
        np.maximum(boxes, 0.0, out=boxes)
        np.minimum(boxes, 1.0, out=boxes)
        return suppress(boxes, scores, None if self._agnostic else classes, self.iou_threshold, self.limit)

    def detections(self, boxes: Floats, scores: Floats, classes: Indices) -> list[Detection]:
        """Detections of the boxes that stay, strongest first.

        Args:
            boxes: float32 [n,4], `(x0, y0, x1, y1)` in fractions; clipped in place.
            scores: float32 [n].
            classes: integers [n].
        """
        kept = self.kept(boxes, scores, classes)
        return [
            Detection(self.labels[number], min(1.0, score), box)
            for number, score, box in zip(
                classes[kept].tolist(), scores[kept].tolist(), tuples(boxes[kept]), strict=True
            )
        ]


def tuples(boxes: Floats) -> list[Box]:
    """Rows of float32 [n,4] as boxes."""
    return [(x0, y0, x1, y1) for x0, y0, x1, y1 in boxes.tolist()]
