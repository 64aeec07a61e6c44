"""State of one tracked object: its box over time, its place, and what was last reported of it."""

from __future__ import annotations

from datetime import datetime

from agent.compute.track.association import ExpectedTrack, iou
from agent.compute.track.motion import BoxFilter
from agent.compute.track.places import TrackPlaces
from agent.types import Attribute, Box, Detection, Track

_MOVED_IOU = 0.7
"""An object has moved if its box overlaps less than this with an earlier one."""
_LEFT_IOU = 0.5
"""A stationary object has left its place if its box overlaps less than this; detected boxes jitter."""
_SMOOTHING = 0.25
"""Weight of the newest box in the mean that is compared with the place, so that one odd box has no effect."""
_RESTING_NS = 1_000_000_000
"""Time for which the place of a stationary object is unsure, however long ago it was detected."""
_CLEARER = 0.1
"""Increase of the score since the newest event that gives an update."""


class TrackState:
    """State of one tracked object, private to the tracker. `id` is empty until it is announced.

    Attributes:
        motion: filter of its box; None without a box.
        due_ns: time at which it is lost unless seen before.
        missed: True if an inference since its newest detection did not find it.
        misses: inferences since its newest detection that did not find it.
        reported_ns: time of the newest event.
        seen_ns: time of the newest detection.
        place_ns: time since which it has been at its place.
        check_ns: time at which a stationary object needs an inference.
        renamed: consecutive inferences that found another label at its place.
        attributes: what secondary models tell about it.
        places: its zones and lines.
        has_moved: True if it has left the place where it was first seen.
    """

    def __init__(self, detection: Detection, at_ns: int, at: datetime, due_ns: int) -> None:
        self.id, self.detection, self.hits = "", detection, 1
        self.places, self.has_moved = TrackPlaces(), detection.box is None
        self.attributes: dict[str, Attribute] = {}
        self.motion = None if detection.box is None else BoxFilter(detection.box, at_ns)
        self.missed = self.stationary = False
        self.renamed, self.misses, self.due_ns = 0, 0, due_ns
        self.reported_ns = self.seen_ns = self.place_ns = self.check_ns = at_ns
        self._first_seen = self._last_seen = at
        self._best = self._reported_best = detection.score
        self._reported_box = self._place = self._mean = self._origin = detection.box

    def update(self, detection: Detection, at_ns: int, at: datetime, due_ns: int) -> None:
        """Add its newest detection."""
        self.detection = detection
        self.seen_ns = at_ns
        self.renamed = 0
        self.hits += 1
        if self.motion is not None and detection.box is not None:
            self.motion.correct(detection.box, at_ns)
            self._update_place(detection.box, at_ns)
        self.due_ns = due_ns
        self.missed = False
        self.misses = 0
        self._last_seen = at
        self._best = max(self._best, detection.score)

    def confirm(self, due_ns: int, check_ns: int) -> None:
        """Record that it is at its place under another label."""
        self.renamed += 1
        self.missed = False
        self.due_ns, self.check_ns = due_ns, check_ns

    def mark_present(self, at: datetime) -> None:
        """Record that it is at its place, because nothing moved there."""
        self._last_seen = at

    def _update_place(self, box: Box, at_ns: int) -> None:
        """Compare the mean of its boxes with its place; set a new place if it has left that."""
        mean, place = self._mean, self._place
        assert mean is not None
        assert place is not None
        x0, y0, x1, y1 = mean
        w = _SMOOTHING
        mean = (x0 + w * (box[0] - x0), y0 + w * (box[1] - y0), x1 + w * (box[2] - x1), y1 + w * (box[3] - y1))
        self._mean = mean
        if iou(mean, place) < (_LEFT_IOU if self.stationary else _MOVED_IOU):
            self._place, self.place_ns = mean, at_ns
            self.has_moved = self.has_moved or (self._origin is not None and iou(mean, self._origin) < _LEFT_IOU)

    @property
    def needs_inference(self) -> bool:
        """Return True if each picture must be inferred for it.

        That is so while an announced object moves, after a stationary one was missed, and for a candidate until
        it is missed or stationary.
        """
        if not self.id:
            return not (self.missed or self.stationary)
        return self.missed or not self.stationary

    @property
    def best_score(self) -> float:
        """Highest score so far."""
        return self._best

    def change_reason(self) -> str:
        """Return the change since the newest event: `moved`, `clearer`, or `still here`."""
        box, before = self.detection.box, self._reported_box
        if box is not None and before is not None and iou(box, before) < _MOVED_IOU:
            return "moved"
        return "clearer" if self._best >= self._reported_best + _CLEARER else "still here"

    def mark_reported(self, at_ns: int) -> None:
        """Record that an event has reported its present state."""
        self.reported_ns = at_ns
        self._reported_box = self.detection.box
        self._reported_best = self._best

    def expectation(self, at_ns: int, passed_ns: int) -> ExpectedTrack | None:
        """Return what is known for finding it again; None without a box.

        Args:
            at_ns: of the picture.
            passed_ns: since the picture before.
        """
        motion = self.motion
        if motion is None:
            return None
        if self.stationary:  # nothing moved there in the meantime
            at_ns = min(at_ns, self.seen_ns + _RESTING_NS)
        overdue_s = max(0, at_ns - passed_ns - self.seen_ns) / 1e9 if self.missed else 0.0
        return ExpectedTrack(motion.forecast(at_ns, overdue_s), motion.settled, not self.missed)

    def expected(self, at_ns: int) -> Box | None:
        """Return its predicted box; None without a box."""
        return None if self.motion is None else self.motion.predict(at_ns)

    def predicted(self, at_ns: int) -> Detection:
        """Return its newest detection, moved on to its predicted box, without what only a picture shows."""
        box = self.expected(at_ns)
        if box is None or self.stationary:
            return Detection(self.detection.label, self.detection.score, self.detection.box)
        x0, y0, x1, y1 = (min(1.0, max(0.0, value)) for value in box)
        return Detection(self.detection.label, self.detection.score, (x0, y0, x1, y1))

    def track(self) -> Track:
        """Return its present state."""
        seen = self.detection
        return Track(
            self.id,
            seen.label,
            seen.score,
            self._best,
            self.hits,
            self._first_seen,
            self._last_seen,
            seen.box,
            seen.keypoints,
            seen.outline,
            seen.area,
            self.places.zones,
            self.stationary,
            attributes=self.attributes,
            crossed=self.places.crossed,
        )
