"""Finds what is to be blurred in the pictures of a stream: faces, people and other objects of the bundled models.

A detector misses some. So its threshold is lower than for events, a box is larger than what was found, moves on
with it between two inferences, and stays, growing, for some time after nothing was found there.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from msgspec import Struct

from agent.compute.infer.session import Opener, SessionOptions
from agent.compute.manifest import Model
from agent.compute.track.state import iou
from agent.compute.vision import build_detector
from agent.config import DecodeConfig, StreamConfig
from agent.config.places import FACE, PERSON
from agent.errors import ConfigError
from agent.types import WHOLE, Box, ChannelOrder, Frame, Image

_FACE_THRESHOLD, _THRESHOLD = 0.5, 0.2
"""Least scores of faces and of other things that are blurred. Of 67 people in photographs of COCO who are taller
than 0.15 of the picture, 64 are hidden by nine tenths at 0.2, and 56 at 0.3."""
_EVERY_NS = 100_000_000
"""Time between two inferences, ns; a stream of fewer pictures has one for each."""
_KEPT_S = 1.0
"""Time for which a box stays after it was last found, s."""
_PADDING, _GROWTH = 0.2, 0.3
"""Share of its sides by which a box is larger on each side than what was found; more for each second since."""
_SAME = 0.1
"""Least intersection over union of a box and one from before, moved on, that are the same thing."""
_HEAD = 0.4
"""Share of a person's height, from above, that holds the head."""


class _Hidden(Struct):
    """One thing that is blurred: where it was found last, the speed of its middle, 1/s, and when, ns."""

    box: Box
    speed: tuple[float, float]
    found_ns: int

    def moved(self, now_ns: int) -> Box:
        """Return where it should be: no farther away than its own size, since a speed is uncertain."""
        x0, y0, x1, y1 = self.box
        x, y = (
            max(-side, min(side, speed * self.age_s(now_ns)))
            for speed, side in zip(self.speed, (x1 - x0, y1 - y0), strict=True)
        )
        return (x0 + x, y0 + y, x1 + x, y1 + y)

    def age_s(self, now_ns: int) -> float:
        return max(0, now_ns - self.found_ns) / 1e9


class HiddenBoxes:
    """Boxes that are blurred, followed from one inference to the next. Contains rules only."""

    def __init__(self) -> None:
        self._known: list[_Hidden] = []

    def update(self, found: Sequence[Box], now_ns: int) -> None:
        """Add what was found in a picture. What was not found again is kept for some time."""
        left, known = list(self._known), []
        for box in found:
            moved = [(iou(box, one.moved(now_ns)), number) for number, one in enumerate(left)]
            best, number = max(moved, default=(0.0, -1))
            before = left.pop(number) if best >= _SAME else None
            known.append(_Hidden(box, _speed(before, box, now_ns), now_ns))
        self._known = [*known, *(one for one in left if one.age_s(now_ns) <= _KEPT_S)]

    def boxes(self, now_ns: int) -> list[Box]:
        """Return what is blurred in a picture of this time: from where it was found to where it should be now."""
        return [_padded(one.box, one.moved(now_ns), one.age_s(now_ns)) for one in self._known]


def _speed(before: _Hidden | None, box: Box, now_ns: int) -> tuple[float, float]:
    """Return the speed of a box's middle; 0 where it is new, or the two are too close in time to tell."""
    passed_s = before.age_s(now_ns) if before is not None else 0.0
    if before is None or passed_s < 0.01:
        return before.speed if before is not None else (0.0, 0.0)
    old = before.box
    moved = ((box[i] + box[i + 2] - old[i] - old[i + 2]) / 2 for i in (0, 1))
    x, y = (one / passed_s for one in moved)
    return x, y


def _padded(box: Box, moved: Box, age_s: float) -> Box:
    """Return the box around both, larger by its padding and cut off at the frame."""
    share = _PADDING + _GROWTH * age_s
    x, y = share * (box[2] - box[0]), share * (box[3] - box[1])
    x0, y0 = min(box[0], moved[0]) - x, min(box[1], moved[1]) - y
    x1, y1 = max(box[2], moved[2]) + x, max(box[3], moved[3]) + y
    return (max(0.0, x0), max(0.0, y0), min(1.0, x1), min(1.0, y1))


def head_of(person: Box) -> Box:
    """Return the part of a person's box that holds the head, also of one who sits or bends."""
    x0, y0, x1, y1 = person
    return (x0, y0, x1, y0 + _HEAD * (y1 - y0))


class BlurFinder:
    """Finds what one stream blurs. For one thread."""

    def __init__(
        self,
        models: Sequence[tuple[Model, tuple[str, ...]]],
        wanted: Sequence[str],
        opener: Opener,
        threads: int,
    ) -> None:
        """Open models, each with the labels of what it is to find.

        Args:
            models: see `agent.config.places.blur_models`.
            wanted: labels of what is blurred; without `person`, of people only the head is.
            opener: opens their sessions, on the CPU.
            threads: of each.

        Raises:
            ConfigError: a model never finds one of its labels.
            ModelError, BackendError: it cannot be opened.
        """
        for model, labels in models:
            _check_labels(model, labels)
        options = SessionOptions(threads=threads)
        self._heads = PERSON not in wanted
        self._sessions = [opener(model, "cpu", options) for model, _ in models]
        self._detectors = [
            build_detector(session, model, _asked(model, labels))
            for session, (model, labels) in zip(self._sessions, models, strict=True)
        ]
        self._hidden = HiddenBoxes()
        self._inferred_ns = -(1 << 62)

    def find(self, image: Image, order: ChannelOrder, now_ns: int) -> list[Box]:
        """Return what is to be blurred in a picture of this time. Raises BackendError if a model fails."""
        if not 0 <= now_ns - self._inferred_ns < _EVERY_NS:
            self._inferred_ns = now_ns
            self._hidden.update(self._infer(image, order), now_ns)
        return self._hidden.boxes(now_ns)

    def _infer(self, image: Image, order: ChannelOrder) -> list[Box]:
        frame = Frame(image, "", 0, 0, datetime.min.replace(tzinfo=UTC), order)
        return [
            head_of(one.box) if self._heads and one.label == PERSON else one.box
            for detector in self._detectors
            for one in detector.run(frame, WHOLE).detections
            if one.box is not None
        ]

    def close(self) -> None:
        """Release the models."""
        for session in self._sessions:
            session.close()


def _asked(model: Model, labels: tuple[str, ...]) -> StreamConfig:
    threshold = _FACE_THRESHOLD if labels == (FACE,) else _THRESHOLD
    return StreamConfig("", model.path, decode=DecodeConfig(score_threshold=threshold, labels=labels))


def _check_labels(model: Model, labels: Sequence[str]) -> None:
    known = model.manifest.output.labels
    for label in labels:
        if label not in known:
            shown = f"{', '.join(filter(None, known[:12]))} …"
            raise ConfigError(f"blur: no bundled model finds {label!r}; expected face, {shown}", keys=("blur",))
