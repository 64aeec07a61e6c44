"""Image inference of one stream: gate → infer → decode → track. Frames in, events out."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Protocol

import cv2
from msgspec import Struct
from msgspec.structs import replace

from agent.compute.decode import build_decoder
from agent.compute.gate.motion import OFF, GateDecision, MotionGate
from agent.compute.infer.backends import open_session
from agent.compute.infer.image_input import ImageInput, Placement
from agent.compute.infer.session import Opener, Session, SessionOptions
from agent.compute.manifest import CHANNELS_MAX, FEATURES, Model
from agent.compute.tflite.model import TensorSpec
from agent.compute.track.places import DetectionFilters, Lines, Zones, check_polygons
from agent.compute.track.tracker import Tracker
from agent.config import DecodeConfig, GateConfig, StreamConfig
from agent.config.features import StreamBudget
from agent.errors import ModelError
from agent.types import (
    WHOLE,
    Array,
    Attribute,
    Box,
    Detection,
    Event,
    Frame,
    Image,
    Luma,
    StageTimes,
    StreamResult,
)

if TYPE_CHECKING:
    from agent.compute.decode.ctc import SteadyText
    from agent.compute.states import Floats


_ANY = 1 << 30
"""Frames left out after which the next is inferred under any budget."""
_EXTRA, _EXTRA_MAX = 0.15, 4.0
"""Inferences to confirm something new that each left out frame allows, and how many of them are kept."""
_MAY_WAIT = ("motion", "track", "hold", "off")
"""Reasons of an open gate for which some frames may be left out."""


_FEW_ANSWERS = ("ssd",)
"""Decoders of models that output boxes found, instead of a score for each place."""


class DetectorResult(Struct, frozen=True, gc=False):
    """Detections in one frame and what they cost.

    Attributes:
        detections: strongest first.
        prepare, infer, decode: durations, ns.
    """

    detections: list[Detection]
    prepare: int
    infer: int
    decode: int


class Detector:
    """Runs one variant of an image model: resize, invoke, decode, map back to the frame. For one thread.

    Attributes:
        variant: that it runs.
        features: index of the output that states are taught from; None: the model has none.
    """

    def __init__(self, session: Session, model: Model, variant: str, config: DecodeConfig) -> None:
        """Select the variant in the session and build its decoder.

        Raises:
            ModelError: there is no such variant, or it does not take one picture or fit its decoder.
        """
        session.select(variant)
        self.variant = variant
        self._session = session
        self._image = _image_input(session, model)
        self._decoder = build_decoder(model.manifest, session.inputs, session.outputs, config)
        self._placement = Placement()
        named = [number for number, spec in enumerate(session.outputs) if is_feature_map(spec)]
        self.features = named[0] if named else None

    def embed(self, region: Box) -> Floats:
        """Return the embedding of a region, in fractions of the frame that was inferred last."""
        from agent.compute.states import pool_region

        assert self.features is not None
        spec, output = self._session.outputs[self.features], self._session.output(self.features)
        return pool_region(output, spec, self._placement.from_frame(region))

    def run(self, frame: Frame, crop: Box, complexity: float = 1.0) -> DetectorResult:
        """Infer a crop, in fractions of the frame. The session must have this variant selected."""
        session = self._session
        began = time.monotonic_ns()
        placement = self._placement = self._image.fill(
            session.input(0), frame.planes or frame.model_image, frame.order, crop
        )
        prepared = time.monotonic_ns()
        session.invoke()
        inferred = time.monotonic_ns()
        detections = self._decoder([session.output(index) for index in range(len(session.outputs))])
        if not placement.whole:
            detections = _placed(detections, placement)
        return DetectorResult(detections, prepared - began, inferred - prepared, time.monotonic_ns() - inferred)


class CascadeDetector:
    """Runs as many exits of an image model as each picture needs. For one thread.

    Attributes:
        features: None: states are not taught from exits.
    """

    features = None

    def __init__(self, session: Session, model: Model, config: StreamConfig) -> None:
        """Build the decoders of all exits that may run.

        Raises:
            ModelError: the exits do not fit together, take no picture, or do not fit their decoder.
        """
        from agent.compute.cascade import EarlyExitModel

        self._exits = EarlyExitModel(session, model.manifest, config)
        self._image = _image_input(session, model)

    @property
    def variant(self) -> str:
        """Name of the exit that gave the newest answer."""
        return self._exits.answered

    def run(self, frame: Frame, crop: Box, complexity: float = 1.0) -> DetectorResult:
        """Infer a crop, in fractions of the frame, whose complexity is 0..1. Decoding counts as inference."""
        placement, prepared = Placement(), 0

        def fill(tensor: Array) -> None:
            nonlocal placement, prepared
            placement = self._image.fill(tensor, frame.planes or frame.model_image, frame.order, crop)
            prepared = time.monotonic_ns()

        began = time.monotonic_ns()
        detections = self._exits.predict(fill, complexity).detections
        inferred = time.monotonic_ns()
        if not placement.whole:
            detections = _placed(detections, placement)
        return DetectorResult(detections, prepared - began, inferred - prepared, time.monotonic_ns() - inferred)


def is_feature_map(spec: TensorSpec) -> bool:
    """Return True for an output that states can be taught from: `features` [1, height, width, channels].

    More than `CHANNELS_MAX` channels would make examples of more than the memory that they may take.
    """
    return (
        spec.name == FEATURES and len(spec.shape) == 4 and min(spec.shape) >= 1 and spec.shape[3] <= CHANNELS_MAX
    )


def build_detector(session: Session, model: Model, config: StreamConfig) -> Detector | CascadeDetector:
    """Build what runs the variant, or the exits, that a stream asks for; see the classes for what they raise."""
    variant = model.manifest.variant(_variant(model, config))
    config = replace(config, decode=_decode_config(model, config))
    if variant.is_exit:
        return CascadeDetector(session, model, config)
    return Detector(session, model, variant.name, config.decode)


def _decode_config(model: Model, config: StreamConfig) -> DecodeConfig:
    """Return which results count: all that a filter may let pass; of an inspection all from `ng_score` on."""
    decode, inspection = config.decode, config.inspection
    if inspection is None and not config.filters:
        return decode
    least = build_filters(model, config).least_score
    return replace(decode, score_threshold=least if inspection is None else min(least, inspection.ng_score))


def build_filters(model: Model, config: StreamConfig) -> DetectionFilters:
    """Return the filters of a stream. Raises ConfigError if one cannot be used."""
    threshold = config.decode.score_threshold
    return DetectionFilters(
        config.filters, model.manifest.output.score_threshold if threshold is None else threshold
    )


def _image_input(session: Session, model: Model) -> ImageInput:
    """Return what writes pictures into the selected variant."""
    if model.manifest.audio is not None:
        raise ModelError(f"{model.path}: takes sound: it does not take a picture")
    if len(session.inputs) != 1:
        found = ", ".join(map(str, session.inputs))
        raise ModelError(f"{model.path}: expected one input, a picture; found {len(session.inputs)}: {found}")
    return ImageInput(session.inputs[0], model.manifest.input)


def _placed(detections: Sequence[Detection], placement: Placement) -> list[Detection]:
    """Map detections from fractions of the model's picture to fractions of the frame."""
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


class ObjectStage(Protocol):
    """Asks other models about the objects of a frame that was inferred."""

    def process(self, frame: Frame, tracker: Tracker, events: Sequence[Event]) -> list[Event]:
        """Return the frame's events with what is known now. Raises BackendError if a model fails."""
        ...

    def run_once(self, frame: Frame, detections: Sequence[Detection]) -> list[dict[str, Attribute]]:
        """Return the attributes of detections in one frame, without tracks. Raises BackendError."""
        ...

    def close(self) -> None:
        """Release the models."""
        ...


class VideoPerception:
    """One camera stream's model with its session, gate and tracker. For one thread.

    Attributes:
        alarm: what is wrong with the model's answers; always empty for pictures.
        last_crop: part of the newest frame that was inferred.
        wants_inference: infer the next frame, even if nothing moves.
        gate_reason: of the gate's newest decision; empty: there was none.
        secondary: asks other models about what is found; None: there are none.
        extra_models: that it runs besides its first one.
        blur: finds what is blurred before this gets a frame, see `agent.compute.blur`; None: nothing is.
        config: in use.
    """

    secondary: ObjectStage | None = None
    extra_models: Sequence[Any] = ()
    blur: Any = None

    def __init__(self, stream: str, config: StreamConfig, model: Model, opener: Opener = open_session) -> None:
        """Open the model and build the stages.

        Raises:
            ModelError: the model is broken, cannot run here, does not fit its decoder, or has no exits for
                `variant = "auto"`.
            ConfigError: a zone, a line, a filter, a mask or a label cannot be used.
        """
        # Streams are what runs in parallel. OpenCV's own threads halve the time of a resize at best, wait for
        # each other by spinning, and cost half as much CPU again.
        cv2.setNumThreads(1)
        self.model, self.alarm = model, ""
        self.last_crop: Box = WHOLE
        self.wants_inference = self._has_new_settings = False
        self.gate_reason = ""
        zones, lines, self._filters = Zones(config.zones), Lines(config.lines), build_filters(model, config)
        check_polygons(config.gate.masks, "gate.masks")
        variant = _variant(model, config)
        options = SessionOptions(variant, config.threads, config.service.priority)
        self.session = opener(model, config.backend, options)
        self._detector = build_detector(self.session, model, config)
        self._crops, self._shown = config.gate.crop, config.crop
        self._gate = MotionGate(config.gate, config.crop)
        self._masked: MotionGate | None = None
        hits = config.track.min_hits or model.manifest.min_hits
        self._texts: SteadyText | None = None
        if model.manifest.gives_texts:
            from agent.compute.decode.ctc import SteadyText

            self._texts = SteadyText(hits)
        track = replace(config.track, min_hits=1) if self._texts else config.track
        self.tracker = Tracker(track, zones, stream, lines=lines, filters=self._filters)
        self._gives_numbers = model.manifest.gives_numbers
        self.config, self._budget, self._left_out = config, StreamBudget(), _ANY
        self._extra = _EXTRA_MAX
        self._zones_suspended = False

    def configure(self, config: StreamConfig) -> None:
        """Apply other thresholds, filters, masks, zones, lines and another open variant; tracks continue."""
        before, self.config = self.config, config
        self._build_detector()
        self._filters = build_filters(self.model, config)
        self.tracker.set_filters(self._filters, only_moving=config.track.only_moving)
        self._gate.set_masks(config.gate.masks_in_use)
        self._has_new_settings = True
        if (config.zones, config.lines) != (before.zones, before.lines):
            self._set_places()

    def suspend_zones(self, suspended: bool) -> bool:
        """Leave zones and lines out, or use them again; tracks continue. Return False if there are none."""
        self._zones_suspended = suspended
        self._set_places()
        return bool(self.config.zones or self.config.lines)

    def _set_places(self) -> None:
        used = not self._zones_suspended
        self.tracker.set_places(
            Zones(self.config.zones if used else ()), Lines(self.config.lines if used else ())
        )

    def set_budget(self, budget: StreamBudget) -> None:
        """Infer as many frames, and with the variant, that a budget allows; tracks continue."""
        before, self._budget = self._budget, budget
        if budget.variant != before.variant:
            self._build_detector()

    def _build_detector(self) -> None:
        config = self.config
        if self._budget.variant:
            config = replace(config, variant=self._budget.variant)
        self._detector = build_detector(self.session, self.model, config)

    def process(self, frame: Frame) -> StreamResult:
        """Process one frame. Raises BackendError if the inference fails."""
        began = time.monotonic_ns()
        tracker = self.tracker
        gate = self._evaluate_gate(frame)
        self.gate_reason = gate.reason
        gated = time.monotonic_ns()
        queue = began - frame.read_ns
        if not gate.open:
            self._left_out = _ANY
            events = tracker.rest(frame.captured_ns, frame.captured_at)
            return StreamResult(events, None, StageTimes(queue, gated - began, track=time.monotonic_ns() - gated))
        if self._is_left_out(gate.reason):
            events = tracker.tick(frame.captured_ns, frame.captured_at)
            predicted = tracker.predicted(frame.captured_ns)
            stages = StageTimes(queue, gated - began, track=time.monotonic_ns() - gated)
            return StreamResult(events, None, stages, predicted)
        self._keep_size_for_lesson()
        self._has_new_settings = False
        self.last_crop = crop = gate.crop or self._shown
        result = self._detector.run(frame, crop, gate.complexity)
        decoded = time.monotonic_ns()
        detections = self._keep(frame, result.detections)
        found = self._to_follow(detections)
        events = tracker.update(found, frame.captured_ns, frame.captured_at, gate.crop or WHOLE)
        track, secondary = time.monotonic_ns() - decoded, 0
        if self.secondary is not None:
            events = self.secondary.process(frame, tracker, events)
            secondary = time.monotonic_ns() - decoded - track
        stages = StageTimes(queue, gated - began, result.prepare, result.infer, result.decode, track, secondary)
        return StreamResult(events, detections, stages)

    def _evaluate_gate(self, frame: Frame) -> GateDecision:
        """Return the gate's decision. One that is off looks at no picture, which might be converted for it."""
        if not self.config.gate.motion:
            return OFF
        tracker = self.tracker
        keep, resting = tracker.boxes(frame.captured_ns) if self._crops else ((), ())
        return self._gate.evaluate(
            self._gate_picture(frame),
            frame.captured_ns,
            watching=self.is_watching,
            check=self.must_infer or tracker.check_due(frame.captured_ns),
            keep=keep,
            resting=resting,
        )

    def _gate_picture(self, frame: Frame) -> Image | Luma:
        """Return the shown part of a frame: its brightness alone, where that saves converting the picture."""
        luma = self._luma(frame)
        return _part(frame.model_image, self._shown) if luma is None else luma

    def _luma(self, frame: Frame) -> Luma | None:
        """Return the brightness of the shown part of a frame; None: it has none, or hides something."""
        luma = frame.luma
        return None if luma is None else luma._replace(pixels=_part(luma.pixels, self._shown))

    def view(self, frame: Frame) -> tuple[Image, Image]:
        """Return the newest frame in two small sizes, as models see it; most often the gate has made them."""
        return self._gate.view(self._gate_picture(frame))

    def masked_view(self, frame: Frame) -> tuple[Image, Image]:
        """Return the newest frame in two small sizes, with its masks: what is learned of it is stored."""
        if frame.unmasked is None:
            luma = self._luma(frame)
            return self._gate.view(_part(frame.image, self._shown) if luma is None else luma)
        if self._masked is None:
            self._masked = MotionGate(GateConfig(motion=False))
        return self._masked.view(_part(frame.image, self._shown))

    def outputs(self) -> list[Array]:
        """Return the newest answer of the model; empty: it may be the same for all pictures without an object."""
        if self.model.manifest.output.decoder in _FEW_ANSWERS:
            return []
        return [self.session.output(index) for index in range(len(self.session.outputs))]

    def _keep_size_for_lesson(self) -> None:
        """Use the configured size while a lesson is given: what is taught with another one is of no use later."""
        if self.wants_inference and self._budget.variant:
            self._budget = replace(self._budget, variant="")
            self._build_detector()

    def _is_left_out(self, reason: str) -> bool:
        """Return True if the budget leaves a frame out that the gate has let through."""
        self._left_out += 1
        due = self._left_out >= self._budget.stride or reason not in _MAY_WAIT or self.must_infer
        if not due and self.tracker.confirming and self._extra >= 1.0:
            self._extra -= 1.0
            due = True
        if due:
            self._left_out = 0
        else:
            self._extra = min(_EXTRA_MAX, self._extra + _EXTRA)
        return not due

    @property
    def must_infer(self) -> bool:
        """True if the next picture is to be inferred even if nothing moves: what stands there may count now."""
        return self.wants_inference or self._has_new_settings

    @property
    def is_watching(self) -> bool:
        """True while each picture must be inferred, because something moves or is not certain."""
        return self.tracker.watching or (self._texts is not None and self._texts.is_undecided)

    def _to_follow(self, found: Sequence[Detection]) -> Sequence[Detection]:
        """Return what the tracker follows: of numbers nothing, of readings the text that stands."""
        if self._gives_numbers:
            return ()
        return found if self._texts is None else self._texts.update(found)

    def infer_crop(self, frame: Frame, crop: Box) -> DetectorResult:
        """Infer a crop of a frame without gate and tracker. Raises BackendError if that fails."""
        self.last_crop = crop
        result = self._detector.run(frame, crop)
        return replace(result, detections=self._keep(frame, result.detections))

    def _keep(self, frame: Frame, found: list[Detection]) -> list[Detection]:
        height, width, _ = frame.shape
        return self._filters.keep(found, width / height)

    @property
    def has_features(self) -> bool:
        """True if states can be taught: the model gives a map of features."""
        return self._detector.features is not None

    @property
    def embedding_size(self) -> int:
        """Numbers of an embedding; the model `has_features`."""
        from agent.compute.states import EMBEDDING_CELLS

        assert self._detector.features is not None
        return EMBEDDING_CELLS * self.session.outputs[self._detector.features].shape[3]

    def embed(self, region: Box) -> Floats:
        """Return the embedding of a region of the frame that was inferred last; the model `has_features`."""
        assert isinstance(self._detector, Detector)
        return self._detector.embed(region)

    @property
    def answered_by(self) -> tuple[str, str]:
        """Backend and variant of the newest answer."""
        return self.session.backend, self._detector.variant

    def finish(self, at_ns: int, at: datetime, reason: str) -> list[Event]:
        """End every track."""
        if self._texts is not None:
            self._texts.reset()
        return self.tracker.finish(at_ns, at, reason)

    def close(self) -> None:
        """Release the model, and the others."""
        self.session.close()
        for one in (self.secondary, self.blur):
            if one is not None:
                one.close()


def _part(image: Image, crop: Box) -> Image:
    """Return a view of a part of a picture, at least a pixel."""
    if crop == WHOLE:
        return image
    height, width = image.shape[:2]
    x0, y0 = min(int(crop[0] * width), width - 1), min(int(crop[1] * height), height - 1)
    return image[y0 : max(y0 + 1, round(crop[3] * height)), x0 : max(x0 + 1, round(crop[2] * width))]


def _variant(model: Model, config: StreamConfig) -> str:
    exits = model.manifest.exits(config.variant)
    return exits[-1].name if exits else model.manifest.variant(config.variant).name
