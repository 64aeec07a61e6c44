"""Poses by MoveNet: one person ([1,1,17,3]) or up to six ([1,6,56]).

Rows are `(y, x, score)` per keypoint in fractions; with several people each ends in `(y0, x0, y1, x1, score)`.
Source: https://www.kaggle.com/models/google/movenet and tensorflow/hub, movenet.ipynb
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from agent.compute.decode.boxes import BoxEnd, tuples
from agent.compute.decode.decoder import DecoderContext, DecoderOptions, Floats, OutputRole, assign_outputs
from agent.config.toml import Unit
from agent.types import Array, Detection, Keypoint

POINTS = (
    "nose left_eye right_eye left_ear right_ear left_shoulder right_shoulder left_elbow right_elbow left_wrist"
    " right_wrist left_hip right_hip left_knee right_knee left_ankle right_ankle"
)
NAMES = tuple(POINTS.split())
"""Keypoints in COCO's order."""
_COLUMNS = 3 * len(NAMES)


class KeypointsOptions(DecoderOptions, frozen=True, forbid_unknown_fields=True):
    """Options of `keypoints`.

    Attributes:
        point_threshold: keypoints with a lower score are dropped, also for the box of a single person.
    """

    point_threshold: Unit = 0.2


OPTIONS = KeypointsOptions


def build(context: DecoderContext) -> Keypoints:
    """Build a decoder for [1,1,17,3] or [1,people,56]."""
    options = context.options(KeypointsOptions)
    role = OutputRole("keypoints", ((1, 1, len(NAMES), 3), (1, None, _COLUMNS + 5)), ("keypoint", "output"))
    (place,) = assign_outputs((role,), context.outputs, options.tensors)
    return Keypoints(context, options, place)


class Keypoints:
    """Decoder of a pose model."""

    def __init__(self, context: DecoderContext, options: KeypointsOptions, place: int) -> None:
        self._place = place
        self._spec = context.outputs[place]
        self._several = len(self._spec.shape) == 3
        self._threshold = context.score_threshold
        self._point_threshold = options.point_threshold
        self._end = BoxEnd(context, context.labels(("person",)), 1)
        self._label = self._end.labels[0]

    def __call__(self, outputs: Sequence[Array]) -> list[Detection]:
        real = np.asarray(self._spec.real(outputs[self._place]), np.float32)
        rows = real.reshape(-1, _COLUMNS + 5) if self._several else real.reshape(1, _COLUMNS)
        points = rows[:, :_COLUMNS].reshape(-1, len(NAMES), 3)
        with np.errstate(all="ignore"):
            # Single person: the mean over the keypoints, MoveNet's own measure.
            scores = rows[:, -1] if self._several else points[:, :, 2].mean(axis=1)
            people = np.flatnonzero((scores >= self._threshold) & np.isfinite(scores))
            boxes = rows[:, [-4, -5, -2, -3]] if self._several else self._bounding_box(points)
        wanted = self._end.choose(np.zeros_like(people), scores[people])
        people = people if wanted is None else people[wanted]
        boxes = np.ascontiguousarray(boxes[people])
        kept = self._end.suppress(boxes, scores[people], None)
        chosen = people[kept]
        return [
            Detection(self._label, min(1.0, score), box, self._points(person))
            for score, box, person in zip(
                scores[chosen].tolist(), tuples(boxes[kept]), points[chosen], strict=True
            )
        ]

    def _is_valid(self, points: Floats) -> Array:
        return np.asarray((points[..., 2] >= self._point_threshold) & np.isfinite(points).all(axis=-1))

    def _bounding_box(self, points: Floats) -> Floats:
        """Return the box [1,4] around the valid keypoints of the only person; empty if there are none."""
        valid = points[0][self._is_valid(points[0])]
        if not len(valid):
            return np.zeros((1, 4), np.float32)
        (y0, x0), (y1, x1) = valid[:, :2].min(axis=0), valid[:, :2].max(axis=0)
        return np.array([[x0, y0, x1, y1]], np.float32)

    def _points(self, person: Floats) -> tuple[Keypoint, ...]:
        valid = self._is_valid(person)
        cut = np.clip(person, 0.0, 1.0)
        return tuple(
            Keypoint(name, x, y, score)
            for name, (y, x, score), there in zip(NAMES, cut.tolist(), valid.tolist(), strict=True)
            if there
        )
