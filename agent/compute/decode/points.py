"""Named points: poses of people, and landmarks of the one thing that a picture shows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, NamedTuple

import numpy as np
from msgspec import Meta
from msgspec.structs import replace

from agent.compute.decode.decoder import (
    BoxEnd,
    DecoderContext,
    DecoderOptions,
    Floats,
    OutputRole,
    ScoreFilter,
    ShapeMismatchError,
    assign_outputs,
    tuples,
)
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


class Keypoints:
    """Decoder of MoveNet's poses: one person, [1,1,17,3], or up to six, [1,6,56].

    Rows are `(y, x, score)` per keypoint in fractions; with several people each ends in
    `(y0, x0, y1, x1, score)`.
    Source: https://www.kaggle.com/models/google/movenet and tensorflow/hub, movenet.ipynb
    """

    Options = KeypointsOptions

    def __init__(self, context: DecoderContext) -> None:
        options = context.options(KeypointsOptions)
        role = OutputRole("keypoints", ((1, 1, len(NAMES), 3), (1, None, _COLUMNS + 5)), ("keypoint", "output"))
        (self._place,) = assign_outputs((role,), context.outputs, options.tensors)
        self._spec = context.outputs[self._place]
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


_FINGERS = ("index", "middle", "ring", "pinky")
_HAND = (
    "wrist",
    *(f"thumb_{joint}" for joint in ("cmc", "mcp", "ip", "tip")),
    *(f"{finger}_{joint}" for finger in _FINGERS for joint in ("mcp", "pip", "dip", "tip")),
)
_BODY = (
    "nose left_eye_inner left_eye left_eye_outer right_eye_inner right_eye right_eye_outer left_ear right_ear"
    " mouth_left mouth_right left_shoulder right_shoulder left_elbow right_elbow left_wrist right_wrist"
    " left_pinky right_pinky left_index right_index left_thumb right_thumb left_hip right_hip left_knee"
    " right_knee left_ankle right_ankle left_heel right_heel left_foot_index right_foot_index"
)
_AUXILIARY = 6
"""Points of a body's model at its end that are no part of the body."""


class LandmarkModel(NamedTuple):
    """A published family of models.

    Attributes:
        label: of what the points belong to.
        columns: values of a point: x, y, then z, and a logit of its being visible.
        points: names; empty: they are numbered.
        scored: whether an output tells if the thing is there.
    """

    label: str
    columns: int
    points: tuple[str, ...] = ()
    scored: bool = True


MODELS = {
    63: LandmarkModel("hand", 3, _HAND),
    195: LandmarkModel("person", 5, tuple(_BODY.split())),
    1404: LandmarkModel("face", 3),
    213: LandmarkModel("eye", 3, scored=False),
    18: LandmarkModel("object", 2, ("centre",)),
}
"""Families by the number of values in their output."""


class LandmarksOptions(DecoderOptions, frozen=True, forbid_unknown_fields=True):
    """Options of `landmarks`.

    Attributes:
        logits: whether the score is a logit, which needs a sigmoid.
        pixels: points are in pixels of the model's picture, not in fractions of it.
        point_threshold: points that are less likely visible are left out, if the model tells.
    """

    logits: bool = False
    pixels: bool = True
    point_threshold: Annotated[float, Meta(ge=0.0, le=1.0)] = 0.5


def _model(context: DecoderContext, options: LandmarksOptions) -> tuple[LandmarkModel, int]:
    """Return the family of a model, and the number of values of its points."""
    sizes = [spec.shape[-1] for spec in context.outputs if spec.shape[:-1] in ((1,), (1, 1, 1))]
    named = options.tensors.get("points")
    if named:
        sizes = [spec.shape[-1] for spec in context.outputs if spec.name == named and spec.shape]
    known = next((size for size in MODELS if size in sizes), None)
    if known is None:
        raise ShapeMismatchError(f"expected points in an output of {', '.join(map(str, MODELS))} values")
    if known == 213 and 15 not in sizes:  # without the iris it may be a classifier
        raise ShapeMismatchError("expected an output of 15 values, the iris, beside that of the eye")
    return MODELS[known], known


class Landmarks:
    """Decoder of landmarks: points [1,n] or [1,1,1,n], and a score [1,1] if the model tells one.

    For models that are given a crop with one thing in its middle, such as a hand, a face or a body, and tell
    where its points are and whether it is there at all. Without such a crop they answer, too, as if the whole
    picture were one.
    n has to be that of a published model: other outputs of this shape are classes.
    Source: google-ai-edge/mediapipe, `hand_landmark_cpu.pbtxt`, `pose_landmark_by_roi_cpu.pbtxt`,
    `face_landmark_cpu.pbtxt`, `iris_landmark_cpu.pbtxt`, `box_landmark_cpu.pbtxt`
    """

    Options = LandmarksOptions

    def __init__(self, context: DecoderContext) -> None:
        options = context.options(LandmarksOptions)
        height, width = context.picture()
        model, values = _model(context, options)
        roles = [OutputRole("points", ((1, values), (1, 1, 1, values)), ("landmark", "point"))]
        if model.scored:
            roles.append(OutputRole("score", ((1, 1), (1, 1, 1, 1)), ("score", "presence", "flag")))
        places = assign_outputs(roles, context.outputs, options.tensors)
        if model.label == "hand" and len(context.output.labels) == 2:  # left and right, as another output tells
            context = replace(context, output=replace(context.output, labels=()))
        if len(context.output.labels) > 1:
            raise ShapeMismatchError(f"expected one label, found {len(context.output.labels)}")
        self._columns = model.columns
        self._size = np.array((width, height) if options.pixels else (1, 1), np.float32)
        self._points, self._score = places[0], places[1] if model.scored else None
        self.scores_at = self._score
        self._spec = context.outputs[self._points]
        count = self._spec.shape[-1] // model.columns
        self._count = count - _AUXILIARY if model.label == "person" and count == 39 else count
        self._names = [*model.points, *(f"point{number}" for number in range(len(model.points), count))]
        self._visible = options.point_threshold if model.columns >= 4 else None
        self._filter = None
        if self._score is not None:
            spec = context.outputs[self._score]
            self._filter = ScoreFilter(spec, (1,), context.score_threshold, logits=options.logits)
        self._label = context.labels((model.label,)).wanted(0)

    def __call__(self, outputs: Sequence[Array]) -> list[Detection]:
        score = 1.0
        if self._filter is not None and self._score is not None:
            indices, passed = self._filter(outputs[self._score].reshape(-1))
            if not indices.size:
                return []
            score = min(1.0, float(passed[0]))
        if self._label is None:
            return []
        real = np.asarray(self._spec.real(outputs[self._points]), np.float32).reshape(-1, self._columns)
        with np.errstate(all="ignore"):
            places = real[: self._count, :2] / self._size
            sure = self._sureness(real[: self._count])
            there = np.isfinite(places).all(axis=1) & (sure >= (self._visible or 0.0))
        if not there.any():
            return []
        cut = np.clip(places, 0.0, 1.0)
        (x0, y0), (x1, y1) = cut[there].min(axis=0).tolist(), cut[there].max(axis=0).tolist()
        points = tuple(
            Keypoint(name, x, y, min(1.0, one))
            for name, (x, y), one, shown in zip(
                self._names, cut.tolist(), sure.tolist(), there.tolist(), strict=False
            )
            if shown
        )
        return [Detection(self._label, score, (x0, y0, x1, y1) if x0 < x1 and y0 < y1 else None, points)]

    def _sureness(self, rows: Floats) -> Floats:
        """Return how likely each point is visible, 0..1; 1 if the model does not tell."""
        if self._visible is None:
            return np.ones(len(rows), np.float32)
        likely = 1.0 / (1.0 + np.exp(-rows[:, 3]))
        return np.nan_to_num(likely, nan=0.0).astype(np.float32)
