"""Climbs a model's sizes for one picture: lets one look, and a larger one where the cascade asks for it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from agent.compute.cascade.policy import SizeCascade
from agent.compute.decode.decoder import build_decoder
from agent.compute.infer.chain import warm_latency_ns
from agent.compute.infer.image_input import ImageInput, Placement
from agent.compute.infer.session import Session
from agent.compute.manifest import AUTO, Model
from agent.compute.track.association import iou
from agent.config.stream import DecodeConfig, StreamConfig
from agent.errors import ModelError
from agent.types import Box, Detection, Frame

_SAME = 0.5
"""Least overlap of two boxes that stand for the same thing."""


def answer_confidence(scores: Iterable[float], threshold: float) -> float:
    """How sure an answer is, 0.5..1: as sure as its least sure candidate.

    An answer is a yes or no to each candidate, and one that is wrong makes it wrong. A score becomes a
    probability p of being there: linear below the threshold and above it, and 0.5 at it, whatever the threshold
    is, for there a no turns into a yes. Of a candidate the answer is as sure as max(p, 1 - p). Scores below half
    the threshold tell little and need not be given; without candidates the answer is sure.

    Args:
        scores: of the candidates, 0..1, also of those below the threshold.
        threshold: at or above it a candidate is a detection, 0..1.
    """
    return min((0.5 + abs(_probability(score, threshold) - 0.5) for score in scores), default=1.0)


def _probability(score: float, threshold: float) -> float:
    if score < threshold:
        return score / (2.0 * threshold)
    return 0.5 + (score - threshold) / (2.0 * (1.0 - threshold)) if threshold < 1.0 else 0.5


def detection_f1(these: Sequence[Detection], those: Sequence[Detection]) -> float:
    """How far two answers to one picture agree, 0..1: F1 of the one against the other, 1 where both are empty.

    Detections are the same that have one label and overlap by half; those without a box have the label only.
    """
    left = list(those)
    for one in these:
        same = max(left, key=lambda other: _likeness(one, other), default=None)
        if same is not None and _likeness(one, same) >= _SAME:
            left.remove(same)
    return 2.0 * (len(those) - len(left)) / (len(these) + len(those)) if these or those else 1.0


def _likeness(one: Detection, other: Detection) -> float:
    if one.label != other.label:
        return -1.0
    return iou(one.box, other.box) if one.box and other.box else 1.0


class DetectorResult(Struct, frozen=True, gc=False):
    """What was made of a frame.

    Attributes:
        detections: strongest first.
        prepare, infer, decode: time that it took, ns.
    """

    detections: list[Detection]
    prepare: int
    infer: int
    decode: int


class Detector:
    """What a variant needs before and after its inference. For one thread.

    Attributes:
        variant: its name.
    """

    def __init__(self, session: Session, model: Model, variant: str, config: DecodeConfig) -> None:
        """Prepare; the session uses this variant then.

        Raises:
            ModelError: there is no such variant, or it does not take one picture or fit its decoder.
        """
        session.use(variant)
        if len(session.inputs) != 1:
            raise ModelError(
                f"{model.path}: expected one input, a picture; found {len(session.inputs)}: "
                f"{', '.join(map(str, session.inputs))}"
            )
        self.variant = variant
        self._session = session
        self._decoder = build_decoder(model.manifest, session.inputs, session.outputs, config)
        self._image = ImageInput(session.inputs[0], model.manifest.input)

    def run(self, frame: Frame, crop: Box, complexity: float) -> DetectorResult:
        """Look at a part of a frame. The session must be using this variant.

        Args:
            frame: to look at.
            crop: the part.
            complexity: of the frame, 0..1: one size takes all alike.

        Raises:
            BackendError: the inference failed.
        """
        session = self._session
        began = time.monotonic_ns()
        placement = self._image.fill(session.input(0), frame.image, frame.order, crop)
        prepared = time.monotonic_ns()
        session.invoke()
        inferred = time.monotonic_ns()
        detections = self._decoder([session.output(index) for index in range(len(session.outputs))])
        if not placement.whole:
            detections = _placed(detections, placement)
        return DetectorResult(detections, prepared - began, inferred - prepared, time.monotonic_ns() - inferred)


def _placed(detections: Sequence[Detection], placement: Placement) -> list[Detection]:
    """Detections in fractions of the frame instead of the model's picture."""
    return [
        replace(
            detection,
            box=placement.to_frame(detection.box) if detection.box else None,
            keypoints=tuple(
                replace(k, x=placed[0], y=placed[1])
                for k in detection.keypoints
                for placed in (placement.point(k.x, k.y),)
            ),
            outline=tuple(placement.point(x, y) for x, y in detection.outline),
        )
        for detection in detections
    ]


_AGREES = 0.8
"""Least agreement with the largest size: whether the last of a crowd is seen is chance."""


class ResolutionCascade:
    """One stream's model with all of its sizes. For one thread.

    Attributes:
        variant: that gave the newest answer.
    """

    def __init__(self, session: Session, model: Model, config: StreamConfig) -> None:
        """Prepare every size; the smaller ones give candidates below the threshold too.

        Raises:
            ModelError: nothing was learned about when to stop, a variant is no size, or see `Detector`.
        """
        variants = model.manifest.climbed(AUTO)
        if depths := [variant.name for variant in variants if variant.after]:
            raise ModelError(
                f"{model.path}: pictures climb sizes, and variant {depths[0]!r} goes on from another; "
                f"name the variant that is to run"
            )
        decode, wish = config.decode, config.decode.score_threshold
        # As the decoders compare: in float32.
        self._threshold = float(np.float32(model.manifest.output.score_threshold if wish is None else wish))
        weak = replace(decode, score_threshold=self._threshold / 2)
        *smaller, largest = variants
        self._sizes = [Detector(session, model, variant.name, weak) for variant in smaller]
        self._sizes.append(Detector(session, model, largest.name, decode))
        self._session = session
        self._cascade = SizeCascade(variants, round(config.cascade.budget_ms * 1e6))
        for index, variant in enumerate(variants):
            self._cascade.record_latency(index, warm_latency_ns(session, variant.name))
        self.variant = largest.name

    @property
    def used(self) -> dict[str, int]:
        """How often each variant gave the answer."""
        return {size.variant: count for size, count in zip(self._sizes, self._cascade.used, strict=True)}

    def run(self, frame: Frame, crop: Box, complexity: float) -> DetectorResult:
        """Look at a part of a frame; times are those of all sizes that did.

        Raises:
            BackendError: the inference failed.
        """
        cascade, began_ns = self._cascade, time.monotonic_ns()
        began = answered = cascade.begin(complexity)
        look, confidence = self._run(began, frame, crop, complexity)
        sure, agreed = cascade.is_confident(began, confidence), True
        larger = cascade.larger(began, sure=sure, spent_ns=time.monotonic_ns() - began_ns)
        if larger is not None:
            first, answered = look, larger
            look, _ = self._run(larger, frame, crop, complexity)
            agreed = detection_f1(first.detections, look.detections) >= _AGREES
            look = _after(first, look)
        cascade.settle(began, answered, sure=sure, agreed=agreed)
        self.variant = self._sizes[answered].variant
        return look

    def every(self, frame: Frame, crop: Box) -> list[tuple[DetectorResult, float]]:
        """What every size sees in a part of a frame, and how sure it is; smallest first.

        Raises:
            BackendError: the inference failed.
        """
        return [self._run(index, frame, crop, 1.0) for index in range(len(self._sizes))]

    def _run(self, index: int, frame: Frame, crop: Box, complexity: float) -> tuple[DetectorResult, float]:
        """What a size sees, and how sure it is."""
        size, began_ns = self._sizes[index], time.monotonic_ns()
        self._session.use(size.variant)
        look = size.run(frame, crop, complexity)
        confidence = 1.0
        if index + 1 < len(self._sizes):
            confidence = answer_confidence((found.score for found in look.detections), self._threshold)
            look = replace(look, detections=[d for d in look.detections if d.score >= self._threshold])
        self._cascade.record_latency(index, time.monotonic_ns() - began_ns)
        return look, confidence


def _after(first: DetectorResult, second: DetectorResult) -> DetectorResult:
    """The second with the time of both."""
    return DetectorResult(
        second.detections,
        first.prepare + second.prepare,
        first.infer + second.infer,
        first.decode + second.decode,
    )
