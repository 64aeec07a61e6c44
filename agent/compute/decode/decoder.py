"""The base of decoders: options, labels, roles of tensors, the filter of scores and the end of boxes.

Stored scores are compared with a threshold, and only those that pass are dequantised: `real = scale * (stored -
zero_point)` is monotone, so `real >= t` is `stored >= q` for a `q` found once.
Overlapping boxes are suppressed by OpenCV's `NMSBoxesBatched`.
Source: https://ai.google.dev/edge/litert/models/quantization_spec
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol, TypeVar

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from agent.compute.manifest import OutputManifest
from agent.compute.tflite.model import TensorSpec
from agent.config import DecodeConfig
from agent.errors import ModelError
from agent.structs import convert
from agent.types import Array, Box, Detection

OptionsT = TypeVar("OptionsT", bound="DecoderOptions")
Floats = NDArray[np.float32]
Indices = NDArray[np.intp]
_HOLES = ("", "???")

_MOST_CLASSES = 1_000_000
"""Refuse more classes than this; all of ImageNet has 21,841."""

Activation = Literal["", "softmax", "sigmoid"]
"""Function that turns an output into probabilities; empty: the output is probabilities."""
Logits = bool | Literal["softmax", "sigmoid"]
"""Option of a manifest; `true` is the softmax."""


def activation(logits: Logits) -> Activation:
    """Return the activation that the option `logits` asks for."""
    return logits if isinstance(logits, str) else "softmax" if logits else ""


class ShapeMismatchError(ModelError):
    """The tensors do not fit the decoder. `build_decoder` adds which decoder would fit."""


class DecoderOptions(Struct, frozen=True, forbid_unknown_fields=True):
    """Options that every decoder takes.

    Attributes:
        tensors: role → name of the output tensor, if shapes and names are ambiguous.
    """

    tensors: dict[str, str] = {}


class DecoderContext(Struct, frozen=True):
    """Inputs that a decoder is built from.

    Attributes:
        output: of the manifest.
        inputs, outputs: of the model.
        config: of the stream.
    """

    output: OutputManifest
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    config: DecodeConfig

    @property
    def score_threshold(self) -> float:
        """Least score of a detection, 0..1."""
        override = self.config.score_threshold
        return self.output.score_threshold if override is None else override

    @property
    def iou_threshold(self) -> float:
        """Overlap above which the weaker of two boxes is dropped, 0..1."""
        override = self.config.iou_threshold
        return self.output.iou_threshold if override is None else override

    def options(self, kind: type[OptionsT]) -> OptionsT:
        """Convert the manifest's options to a decoder's struct. Raises ModelError if one is unknown or wrong."""
        try:
            return convert(self.output.options, kind)
        except msgspec.ValidationError as error:
            from agent.config.wording import plain_fault

            known = ", ".join(kind.__struct_fields__)
            raise ModelError(
                f"decoder {self.output.decoder!r}: options: {plain_fault(str(error))}; known: {known}"
            ) from None

    def picture(self) -> tuple[int, int]:
        """Return height and width of the input picture. Raises ShapeMismatchError if the first input is none."""
        sizes = self.inputs[0].picture if self.inputs else None
        if sizes is None:
            found = ", ".join(map(str, self.inputs)) or "no input"
            raise ShapeMismatchError(f"expected an input picture [1,height,width,3], found {found}")
        return sizes[:2]

    def labels(self, default: tuple[str, ...] = ()) -> Labels:
        """Return the model's labels and which are wanted. Raises ModelError if the model lacks some of these."""
        names = self.output.labels or default
        unknown = [label for label in self.config.labels if names and label not in names]
        if unknown:
            from agent.config.wording import nearest

            raise ModelError(", ".join(f"no label {label!r}{nearest(label, names)}" for label in unknown))
        return Labels(names, self.config.labels)


class Labels:
    """Class names by number, and which of them are wanted."""

    def __init__(self, names: tuple[str, ...], wanted: tuple[str, ...] = ()) -> None:
        self._names = names
        self._wanted = frozenset(wanted)

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, number: int) -> str:
        """Return the name of a class; `class17` if the manifest has none."""
        return self._names[number] if 0 <= number < len(self._names) else f"class{number}"

    def wanted(self, number: int) -> str | None:
        """Return the name of a class; None if it is not wanted, empty, or TensorFlow's `???`."""
        name = self[number]
        return None if name in _HOLES or (self._wanted and name not in self._wanted) else name

    def mask(self, count: int) -> NDArray[np.bool_] | None:
        """Return a mask of the wanted classes; None: all. Raises ShapeMismatchError if there are too many."""
        if count > _MOST_CLASSES:
            raise ShapeMismatchError(f"expected at most {_MOST_CLASSES:,} classes, found {count:,}")
        mask = np.array([self.wanted(number) is not None for number in range(count)], bool)
        return None if mask.all() else mask


class Decoder(Protocol):
    """Decodes the outputs of one inference. For one thread: it reuses its scratch memory.

    Its class has the struct of its options in a manifest as `Options`, and is called with a `DecoderContext`: it
    raises ShapeMismatchError if the tensors do not fit, and ModelError for wrong options.
    It may have `scores_at`, the index of the output with the scores.
    """

    def __call__(self, outputs: Sequence[Array]) -> list[Detection]:
        """Decode one inference.

        Args:
            outputs: arrays in the order, shapes and dtypes of the specs that it was built for. They may be views
                of the tensors' own memory: no reference is kept.

        Returns:
            Detections, strongest first, all finite. Boxes, keypoints and outlines are fractions of the model's
            picture; the caller maps them to the frame.
        """
        ...


Shape = tuple[int | None, ...]
_MANY = 16
"""Most outputs whose assignments are compared."""


class OutputRole(Struct, frozen=True):
    """Role of an output tensor.

    Attributes:
        name: for messages and for the option `tensors`.
        shapes: possible shapes; None: any size.
        hints: words that the tensor's name often contains, in lower case.
    """

    name: str
    shapes: tuple[Shape, ...]
    hints: tuple[str, ...] = ()

    def fits(self, spec: TensorSpec) -> bool:
        """Return True if a tensor has one of the shapes."""
        return any(
            len(shape) == len(spec.shape)
            and all(size is None or size == found for size, found in zip(shape, spec.shape, strict=True))
            for shape in self.shapes
        )

    def is_hinted(self, spec: TensorSpec) -> bool:
        """Return True if the tensor's name suggests this role."""
        return any(hint in spec.name.lower() for hint in self.hints)

    def __str__(self) -> str:
        shapes = (",".join("*" if size is None else str(size) for size in shape) for shape in self.shapes)
        return f"{self.name} {' or '.join(f'[{shape}]' for shape in shapes)}"


def assign_outputs(
    roles: Sequence[OutputRole], outputs: Sequence[TensorSpec], named: Mapping[str, str] | None = None
) -> tuple[int, ...]:
    """Assign an output to each role and return their indices: by shapes, then hints, then order.

    `named` maps roles to tensor names, from the manifest. Raises ShapeMismatchError if a role has no tensor.
    """
    places = [_places(role, outputs, (named or {}).get(role.name)) for role in roles]
    best = max(_assignments(places), key=lambda assignment: _hints(assignment, roles, outputs), default=None)
    if best is None:
        raise ShapeMismatchError(f"expected {_join(roles)}; no assignment fits all outputs: {_join(outputs)}")
    return best


def assign_scores(
    labels: int, outputs: Sequence[TensorSpec], named: Mapping[str, str], hints: tuple[str, ...]
) -> int:
    """Return the index of the output with one score per class, [1,classes] or [1,1,1,classes].

    `labels` is their number; 0: not known. Raises ShapeMismatchError if there is none.
    """
    count = labels or None
    return assign_outputs((OutputRole("scores", ((1, count), (1, 1, 1, count)), hints),), outputs, named)[0]


def _places(role: OutputRole, outputs: Sequence[TensorSpec], name: str | None) -> list[int]:
    places = [i for i, spec in enumerate(outputs[:_MANY]) if role.fits(spec) and name in (None, spec.name)]
    if not places:
        called = f" named {name!r}" if name else ""
        raise ShapeMismatchError(f"expected an output {role}{called}, found {_join(outputs)}")
    return places


def _assignments(places: Sequence[Sequence[int]], taken: tuple[int, ...] = ()) -> Iterator[tuple[int, ...]]:
    if len(taken) == len(places):
        yield taken
        return
    for place in places[len(taken)]:
        if place not in taken:
            yield from _assignments(places, (*taken, place))


def _hints(assignment: Sequence[int], roles: Sequence[OutputRole], outputs: Sequence[TensorSpec]) -> int:
    return sum(role.is_hinted(outputs[i]) for i, role in zip(assignment, roles, strict=True))


def _join(items: Sequence[object]) -> str:
    return ", ".join(map(str, items)) or "nothing"


_LOGIT_LIMIT = 100.0
"""Raw scores are clipped to ±100 before the sigmoid, as MediaPipe does (`score_clipping_thresh`)."""
_TABLED = 16
"""Integer types up to so many bits are searched value by value; no model has scores in wider ones."""


def sigmoid(logits: Floats) -> Floats:
    """Return the logistic function of float32 logits, which are clipped first."""
    clipped = np.clip(logits, -_LOGIT_LIMIT, _LOGIT_LIMIT)
    return np.asarray(1.0 / (1.0 + np.exp(-clipped)), np.float32)


def softmax(logits: Floats) -> Floats:
    """Return the softmax over the last axis of float32 logits; values that are not finite become 0."""
    with np.errstate(all="ignore"):
        sound = np.where(np.isfinite(logits), logits, -np.inf)
        powers = np.exp(sound - sound.max(axis=-1, keepdims=True))
        return np.asarray(np.nan_to_num(powers / powers.sum(axis=-1, keepdims=True)), np.float32)


def logit(score: float) -> float:
    """Return the inverse of `sigmoid` for a score 0..1."""
    if score <= 0.0:
        return -_LOGIT_LIMIT
    return _LOGIT_LIMIT if score >= 1.0 else math.log(score / (1.0 - score))


def stored_threshold(spec: TensorSpec, threshold: float) -> Any | None:
    """Return the smallest stored value whose real is at least `threshold`, in its own dtype; None: there is none.

    Raises:
        ShapeMismatchError: numpy cannot compare values of the dtype, such as `int4` or `string`.
    """
    try:
        kind = np.dtype(spec.dtype)
    except TypeError:
        raise ShapeMismatchError(f"expected scores of a numpy dtype, found {spec}") from None
    if kind.kind == "f":
        return kind.type(threshold)
    limits = np.iinfo(kind)
    if limits.bits > _TABLED:
        least = max(math.ceil(spec.stored_threshold(threshold)), limits.min)
        return None if least > limits.max else kind.type(least)
    values = np.arange(limits.min, limits.max + 1).astype(kind)
    enough = np.flatnonzero(spec.real(values) >= np.float32(threshold))
    return values[enough[0]] if enough.size else None


_MOST = 1 << 27
"""Most scores of one tensor: half a gigabyte in float32."""


class ScoreFilter:
    """Finds the scores at or above a threshold in a tensor, or in a part of it of constant shape.

    The comparison writes into preallocated memory. Searching it for hits in words of eight is twice as fast as
    searching byte by byte.
    """

    def __init__(
        self, spec: TensorSpec, shape: tuple[int, ...], threshold: float, *, logits: bool = False, skip: int = 0
    ) -> None:
        """Allocate memory for arrays of one shape.

        Args:
            spec: of the tensor.
            shape: of the arrays to come.
            threshold: least score, 0..1.
            logits: True if the stored scores are logits, which need a sigmoid.
            skip: columns at the start of each row that are not scores.

        Raises:
            ShapeMismatchError: the size of the tensor is not fixed, or larger than any board computes.
        """
        self._real = spec.real
        self._logits = logits
        self._threshold = stored_threshold(spec, logit(threshold) if logits else threshold)
        self._float = np.dtype(spec.dtype).kind == "f"
        size = math.prod(shape)
        if min(shape, default=0) < 0 or size > _MOST:
            raise ShapeMismatchError(f"expected scores of a fixed size, at most {_MOST:,}; found {spec}")
        hits = np.zeros(-(-size // 8) * 8, np.bool_)
        self._hits = hits[:size].reshape(shape)
        self._skipped = self._hits[:, :skip] if skip else self._hits[:0]
        self._words = hits.view(np.uint64)
        self._octets = hits.reshape(-1, 8)
        self._nonzero = np.empty(self._words.size, np.bool_)

    def __call__(self, stored: Array) -> tuple[Indices, Floats]:
        """Return the flat indices of the finite scores that pass, and these scores, 0..1."""
        if self._threshold is None:
            return np.empty(0, np.intp), np.empty(0, np.float32)
        np.greater_equal(stored, self._threshold, out=self._hits)
        if self._skipped.size:
            self._skipped[...] = False
        np.not_equal(self._words, 0, out=self._nonzero)
        words = self._nonzero.nonzero()[0]
        if not words.size:  # as of most pictures
            return words, np.empty(0, np.float32)
        inner = self._octets.take(words, axis=0).reshape(-1).nonzero()[0]
        indices = words.take(inner >> 3) * 8 + (inner & 7)
        passed = stored.reshape(-1).take(indices) if stored.flags.c_contiguous else stored[self._hits]
        if self._float and not (finite := np.isfinite(passed)).all():
            indices, passed = indices[finite], passed[finite]
        scores = np.asarray(self._real(passed), np.float32)
        return indices, sigmoid(scores) if self._logits else scores


def top_k(scores: Floats, limit: int) -> Indices | None:
    """Return the indices of the `limit` highest scores, unordered; None if there are no more than that."""
    if scores.size <= limit:
        return None
    return np.argpartition(scores, scores.size - limit)[scores.size - limit :]


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
    import cv2  # a daemon that only hears does without

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

    def __init__(self, context: DecoderContext, labels: Labels, classes: int) -> None:
        self.labels = labels
        self.iou_threshold = context.iou_threshold
        self.limit = context.config.max_detections
        self._wanted = labels.mask(classes)

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
        return suppress(boxes, scores, classes, self.iou_threshold, self.limit)

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
