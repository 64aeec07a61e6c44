"""BlazeFace and its kin, MediaPipe's detectors of one class: a box with a few keypoints.

Faces have six points: models for 128×128 (short range), 256×256 and 192×192. Palms, 192×192, have seven. The
detector of people, 224×224, gives the box of the face, and four points that tell where the body is.

Anchors are cell centres of fixed size 1; offsets are pixels of the input. Boxes that overlap the strongest are
not dropped but averaged, weighted by score, which steadies the box over time.
Source: google-ai-edge/mediapipe, `face_detection_short_range_common.pbtxt`, `palm_detection_cpu.pbtxt`,
`pose_detection_cpu.pbtxt`, `ssd_anchors_calculator.cc`, `tensors_to_detections_calculator.cc`; BlazeFace, https://arxiv.org/abs/1907.05047
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from agent.compute.decode.decoder import (
    BoxEnd,
    DecoderContext,
    DecoderOptions,
    Floats,
    OutputRole,
    ScoreFilter,
    Shape,
    ShapeMismatchError,
    assign_outputs,
    tuples,
)
from agent.types import Array, Detection, Keypoint

POINTS = ("right_eye", "left_eye", "nose_tip", "mouth", "right_ear", "left_ear")
PALM_POINTS = ("wrist", "index_mcp", "middle_mcp", "ring_mcp", "pinky_mcp", "thumb_cmc", "thumb_mcp")
BODY_POINTS = ("hip_centre", "body_extent", "shoulder_centre", "upper_body_extent")


class _Kind(NamedTuple):
    """Kind of thing that a model finds.

    Attributes:
        label: of the class.
        points: names of the keypoints.
        strides: of the published models, by the size of their input.
    """

    label: str
    points: tuple[str, ...]
    strides: dict[int, tuple[int, ...]]

    @property
    def columns(self) -> int:
        """Values of a row: a box's centre and size, and points."""
        return 4 + 2 * len(self.points)


_KINDS = (
    _Kind("face", POINTS, {128: (8, 16, 16, 16), 256: (16, 32, 32, 32), 192: (4,)}),
    _Kind("palm", PALM_POINTS, {192: (8, 16, 16, 16)}),
    _Kind("person", BODY_POINTS, {224: (8, 16, 32, 32, 32)}),
)


class BlazeFaceOptions(DecoderOptions, frozen=True, forbid_unknown_fields=True):
    """Options of `blazeface`.

    Attributes:
        strides: input pixels per cell of each level; empty: those of the published model of that input size.
        logits: whether the scores are logits, which need a sigmoid.
    """

    strides: tuple[int, ...] = ()
    logits: bool = True


def anchors(size: int, strides: Sequence[int]) -> Floats:
    """Return the centres of the anchors in fractions, float32 [n,2] as (x, y).

    Every level has two anchors per cell; levels with the same stride are interleaved cell by cell. A model with a
    single level has one per cell (`interpolated_scale_aspect_ratio` 0).
    """
    each = 1 if len(strides) == 1 else 2
    levels = []
    for stride in dict.fromkeys(strides):
        cells = -(-size // stride)
        y, x = (np.mgrid[0:cells, 0:cells].reshape(2, -1) + 0.5) / cells
        levels.append(np.repeat(np.stack((x, y), axis=1), each * list(strides).count(stride), axis=0))
    return np.concatenate(levels).astype(np.float32)


def _fit(context: DecoderContext, options: BlazeFaceOptions) -> tuple[_Kind, Floats, tuple[int, ...]]:
    """Return the kind, the centres of the anchors, and the indices of all outputs, those of scores first."""
    height, width = context.picture()
    rows = {spec.shape[2] for spec in context.outputs if len(spec.shape) == 3}
    kind = next((one for one in _KINDS if one.columns in rows), _KINDS[0])
    strides = options.strides or kind.strides.get(width, ())
    if min(strides, default=1) < 1:
        raise ShapeMismatchError(f"strides: expected numbers of at least 1, found {list(strides)}")
    if height != width or not strides:
        raise ShapeMismatchError(
            f"expected a square input of {' or '.join(map(str, sorted(kind.strides)))} (or `strides`), found "
            f"{width}x{height}"
        )
    centres = anchors(width, strides)
    parts = _parts(len(centres), strides, context)
    if sum(parts) != len(centres):
        raise ShapeMismatchError(f"expected {len(centres)} rows for strides {list(strides)}, found {sum(parts)}")
    places = assign_outputs(
        [*_roles("scores", parts, 1), *_roles("regressors", parts, kind.columns)],
        context.outputs,
        options.tensors,
    )
    if len(context.output.labels) > 1:
        raise ShapeMismatchError(f"expected one label, found {len(context.output.labels)}")
    return kind, centres, places


def _parts(total: int, strides: Sequence[int], context: DecoderContext) -> list[int]:
    """Return the rows of each tensor: one for all levels, or one per stride."""
    if any(spec.shape[1:2] == (total,) for spec in context.outputs):
        return [total]
    size = context.picture()[1]
    return [2 * strides.count(stride) * (size // stride) ** 2 for stride in dict.fromkeys(strides)]


def _roles(name: str, parts: Sequence[int], columns: int) -> list[OutputRole]:
    hints = ("score", "class") if columns == 1 else ("reg", "box")
    roles = []
    for number, rows in enumerate(parts):
        shapes: tuple[Shape, ...] = ((1, rows, columns), (1, rows)) if columns == 1 else ((1, rows, columns),)
        roles.append(OutputRole(name if len(parts) == 1 else f"{name}{number}", shapes, hints))
    return roles


class BlazeFace:
    """Decoder of scores [1,n,1] and rows [1,n,16 (18, 12)], or both in parts, coarse cells last."""

    Options = BlazeFaceOptions

    def __init__(self, context: DecoderContext) -> None:
        options = context.options(BlazeFaceOptions)
        kind, centres, places = _fit(context, options)
        half, self.scores_at = len(places) // 2, places[0]
        self._places = tuple(zip(places[:half], places[half:], strict=True))
        self._specs = context.outputs
        self._filters = [
            ScoreFilter(
                self._specs[s], (self._specs[s].shape[1],), context.score_threshold, logits=options.logits
            )
            for s, _ in self._places
        ]
        self._size = np.float32(context.picture()[0])
        self._end = BoxEnd(context, context.labels((kind.label,)), 1)
        self._label = self._end.labels[0]
        # A row holds the box's centre and size, and points. All but the size are offsets from the anchor.
        self._points = kind.points
        self._base = np.tile(centres, kind.columns // 2)
        self._base[:, 2:4] = 0.0

    def __call__(self, outputs: Sequence[Array]) -> list[Detection]:
        rows, scores = self._candidates(outputs)
        if not scores.size:
            return []
        chosen = self._end.choose(np.zeros(scores.size, np.intp), scores)
        if chosen is not None:
            rows, scores = rows[chosen], scores[chosen]
        if not scores.size:
            return []
        sound = np.isfinite(rows).all(axis=1)
        rows, scores = rows[sound], scores[sound]
        rows[:, :2] -= rows[:, 2:4] / 2
        rows[:, 2:4] += rows[:, :2]
        boxes = np.ascontiguousarray(rows[:, :4])
        kept = self._end.suppress(boxes, scores, None)
        np.clip(rows, 0.0, 1.0, out=rows)
        faces = np.stack([self._face(i, boxes, rows, scores) for i in kept]) if kept else rows[:0]
        return [
            Detection(self._label, score, box, self._keypoints(points))
            for score, box, points in zip(
                scores[kept].tolist(), tuples(faces[:, :4]), faces[:, 4:].tolist(), strict=True
            )
        ]

    def _candidates(self, outputs: Sequence[Array]) -> tuple[Floats, Floats]:
        """Return decoded rows in fractions, boxes as centre and size, and scores [n], of all tensors."""
        rows, scores, first = [], [], 0
        for sieve, (score, reg) in zip(self._filters, self._places, strict=True):
            indices, passed = sieve(outputs[score].reshape(-1))
            if indices.size:
                stored = outputs[reg][0].take(indices, axis=0)
                real = np.asarray(self._specs[reg].real(stored), np.float32)
                rows.append(real / self._size + self._base.take(indices + first, axis=0))
                scores.append(passed)
            first += self._specs[reg].shape[1]
        if len(rows) == 1:
            return rows[0], scores[0]
        return (
            (np.concatenate(rows), np.concatenate(scores)) if rows else (self._base[:0], np.empty(0, np.float32))
        )

    def _face(self, best: int, boxes: Floats, rows: Floats, scores: Floats) -> Floats:
        """Return the row of a chosen box, blended with those that it overlaps."""
        near = overlaps(boxes[best], boxes) > self._end.iou_threshold
        near[best] = True
        weights = scores[near]
        return np.asarray(weights @ rows[near] / weights.sum(), np.float32)

    def _keypoints(self, values: Sequence[float]) -> tuple[Keypoint, ...]:
        """Build keypoints with score 1, because the model gives none."""
        pairs = zip(self._points, values[::2], values[1::2], strict=True)
        return tuple(Keypoint(name, x, y, 1.0) for name, x, y in pairs)


def overlaps(box: Floats, boxes: Floats) -> Floats:
    """Return the intersection over union of one box [4] with boxes [n,4]; 0 if both are empty."""
    size = np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2])
    inner = np.maximum(size, 0.0).prod(axis=1)
    union = (box[2:] - box[:2]).prod() + (boxes[:, 2:] - boxes[:, :2]).prod(axis=1) - inner
    return np.asarray(inner / np.maximum(union, np.finfo(np.float32).tiny), np.float32)
