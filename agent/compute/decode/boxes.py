"""From candidate boxes to detections: selection and non-maximum suppression, which OpenCV computes.

Source: https://docs.opencv.org/4.x/d6/d0f/group__dnn.html, `NMSBoxesBatched`
"""

from __future__ import annotations

import cv2
import numpy as np

from agent.compute.decode.decoder import DecoderContext, Floats, Indices, Labels, top_k
from agent.types import Box, Detection


def suppress(
    boxes: Floats, scores: Floats, classes: Indices | None, iou_threshold: float, limit: int
) -> list[int]:
    """Choose the boxes that remain after non-maximum suppression.

    Args:
        boxes: float32 [n,4], `(x0, y0, x1, y1)` within 0..1 or NaN: OpenCV separates classes by shifting their
            boxes, and negative coordinates would reach into the next class.
        scores: float32 [n], finite; boxes of score 0 are dropped.
        classes: integers [n], not negative; only boxes of one class suppress each other. None: one class.
        iou_threshold: overlap above which the weaker box is dropped, 0..1.
        limit: most boxes that remain.

    Returns:
        Indices, strongest first. Boxes that are empty or NaN are dropped.
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
"""Most boxes that go into suppression: its time grows with their square, and noise may give any number."""


class BoxEnd:
    """Last stage of decoders of boxes: select wanted classes, suppress overlaps, build detections."""

    def __init__(self, context: DecoderContext, labels: Labels, classes: int, *, agnostic: bool = False) -> None:
        self.labels = labels
        self.iou_threshold = context.iou_threshold
        self.limit = context.config.max_detections
        self._wanted = labels.mask(classes)
        self._agnostic = agnostic

    def choose(self, classes: Indices, scores: Floats) -> Indices | None:
        """Return the indices of the candidates worth decoding; None: all."""
        chosen: Indices | None = None
        if self._wanted is not None:
            chosen = np.flatnonzero(self._wanted.take(classes))
            scores = scores[chosen]
        best = top_k(scores, CANDIDATES)
        if best is None:
            return chosen
        return best if chosen is None else chosen[best]

    def suppress(self, boxes: Floats, scores: Floats, classes: Indices | None) -> list[int]:
        """Clip `boxes` to the picture in place and return the indices that remain, strongest first."""
        if not (finite := np.isfinite(boxes)).all():
            boxes[~finite.all(axis=1)] = np.nan  # else clipping would make infinite boxes valid
        np.maximum(boxes, 0.0, out=boxes)
        np.minimum(boxes, 1.0, out=boxes)
        return suppress(boxes, scores, None if self._agnostic else classes, self.iou_threshold, self.limit)

    def detections(self, boxes: Floats, scores: Floats, classes: Indices) -> list[Detection]:
        """Return the detections of the boxes that remain, strongest first. `boxes`, in fractions, are clipped."""
        kept = self.suppress(boxes, scores, classes)
        return [
            Detection(self.labels[number], min(1.0, score), box)
            for number, score, box in zip(
                classes[kept].tolist(), scores[kept].tolist(), tuples(boxes[kept]), strict=True
            )
        ]


def tuples(boxes: Floats) -> list[Box]:
    """Convert rows of float32 [n,4] to boxes."""
    return [(x0, y0, x1, y1) for x0, y0, x1, y1 in boxes.tolist()]
