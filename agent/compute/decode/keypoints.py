"""Poses: MoveNet, one person ([1,1,17,3]) or up to six ([1,6,56]).

Rows are `(y, x, score)` per keypoint in fractions; with several people each ends in `(y0, x0, y1, x1, score)`.
Source: https://www.kaggle.com/models/google/movenet and tensorflow/hub, movenet.ipynb
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from agent.compute.decode.boxes import BoxEnd, tuples
from agent.compute.decode.decoder import DecoderContext, DecoderOptions, OutputRole, assign_outputs
from agent.compute.decode.scores import Floats
from agent.config.stream import Unit
from agent.types import Array, Detection, Keypoint

POINTS = (
    "nose left_eye right_eye left_ear right_ear left_shoulder right_shoulder left_elbow right_elbow left_wrist"
    " right_wrist left_hip right_hip left_knee right_knee left_ankle right_ankle"
)
NAMES = tuple(POINTS.split())
"""Order of the keypoints, COCO's."""
_COLUMNS = 3 * len(NAMES)


class KeypointsOptions(DecoderOptions, frozen=True, forbid_unknown_fields=True):
    """Options of `keypoints`.

    Attributes:
        point_threshold: keypoints below are left out, and do not count for the box of a single person.
    """

    point_threshold: Unit = 0.2


OPTIONS = KeypointsOptions


def build(setting: DecoderContext) -> Keypoints:
    """A decoder for [1,1,17,3] or [1,people,56].

    Raises:
        MisfitError: the tensors are others.
    """
    options = setting.options(KeypointsOptions)
    role = OutputRole("keypoints", ((1, 1, len(NAMES), 3), (1, None, _COLUMNS + 5)), ("keypoint", "output"))
    (place,) = assign_outputs((role,), setting.outputs, options.tensors)
    return Keypoints(setting, options, place)


class Keypoints:
    """See the module."""

    def __init__(self, setting: DecoderContext, options: KeypointsOptions, place: int) -> None:
        self._place = place
        self._spec = setting.outputs[place]
        self._several = len(self._spec.shape) == 3
        self._threshold = setting.score_threshold
        self._point_threshold = options.point_threshold
        self._end = BoxEnd(setting, setting.labels(("person",)), 1)
        self._label = self._end.labels[0]

    def __call__(self, outputs: Sequence[Array]) -> list[Detection]:
        real = np.asarray(self._spec.real(outputs[self._place]), np.float32)
        rows = real.reshape(-1, _COLUMNS + 5) if self._several else real.reshape(1, _COLUMNS)
        points = rows[:, :_COLUMNS].reshape(-1, len(NAMES), 3)
        with np.errstate(all="ignore"):
            # MoveNet's own measure for a single person: the mean over its keypoints.
            scores = rows[:, -1] if self._several else points[:, :, 2].mean(axis=1)
            people = np.flatnonzero((scores >= self._threshold) & np.isfinite(scores))
            boxes = rows[:, [-4, -5, -2, -3]] if self._several else self._around(points)
        wanted = self._end.choose(np.zeros_like(people), scores[people])
        people = people if wanted is None else people[wanted]
        boxes = np.ascontiguousarray(boxes[people])
        kept = self._end.kept(boxes, scores[people], None)
        chosen = people[kept]
        return [
            Detection(self._label, min(1.0, score), box, self._points(person))
            for score, box, person in zip(
                scores[chosen].tolist(), tuples(boxes[kept]), points[chosen], strict=True
            )
        ]

    def _good(self, points: Floats) -> Array:
        return np.asarray((points[..., 2] >= self._point_threshold) & np.isfinite(points).all(axis=-1))

    def _around(self, points: Floats) -> Floats:
        """The box [1,4] around the good keypoints of the only person; empty where there are none."""
        good = points[0][self._good(points[0])]
        if not len(good):
            return np.zeros((1, 4), np.float32)
        (y0, x0), (y1, x1) = good[:, :2].min(axis=0), good[:, :2].max(axis=0)
        return np.array([[x0, y0, x1, y1]], np.float32)

    def _points(self, person: Floats) -> tuple[Keypoint, ...]:
        good = self._good(person)
        cut = np.clip(person, 0.0, 1.0)
        return tuple(
            Keypoint(name, x, y, score)
            for name, (y, x, score), there in zip(NAMES, cut.tolist(), good.tolist(), strict=True)
            if there
        )
