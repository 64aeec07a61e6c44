"""Non-maximum suppression: of boxes that overlap too much, only the strongest stays. The work is OpenCV's.

Source: https://docs.opencv.org/4.x/d6/d0f/group__dnn.html, `NMSBoxesBatched`
"""

from __future__ import annotations

import cv2
import numpy as np

from agent.compute.decode.quant import Floats, Indices


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
