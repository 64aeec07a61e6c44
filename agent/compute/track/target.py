"""A target: one tracked thing while it lives. Mutable and private to the tracker; outside it is a `Track`."""

from __future__ import annotations

from datetime import datetime

from agent.compute.track.association import iou
from agent.compute.track.motionmodel import Motion
from agent.messages import Box, Detection, Track

_MOVED_IOU = 0.7
"""Less overlap with where it was when last told of: it moved."""

_CLEARER = 0.1
"""So much more score than when last told of: it is better seen."""


class Target:
    """What is known of one thing. `id` is empty until it is announced.

    Attributes:
        id: see `Track`.
        detection: the newest.
        hits: number of detections.
        zones: that it stands in.
        motion: None for a verdict on the whole picture.
        due_ns: it is lost when not seen by then.
        missed: it was looked for and not found since it was last seen.
        told_ns: time of the newest event.
    """

    __slots__ = (
        "_best",
        "_first_seen",
        "_last_seen",
        "_told_best",
        "_told_box",
        "detection",
        "due_ns",
        "hits",
        "id",
        "missed",
        "motion",
        "told_ns",
        "zones",
    )

    def __init__(self, detection: Detection, at_ns: int, at: datetime, due_ns: int) -> None:
        self.id = ""
        self.detection = detection
        self.hits = 1
        self.zones: tuple[str, ...] = ()
        self.motion = None if detection.box is None else Motion(detection.box, at_ns)
        self.due_ns = due_ns
        self.missed = False
        self.told_ns = at_ns
        self._first_seen = self._last_seen = at
        self._best = self._told_best = detection.score
        self._told_box = detection.box

    def hit(self, detection: Detection, at_ns: int, at: datetime, due_ns: int) -> None:
        """It was seen again."""
        self.detection = detection
        self.hits += 1
        if self.motion is not None and detection.box is not None:
            self.motion.correct(detection.box, at_ns)
        self.due_ns = due_ns
        self.missed = False
        self._last_seen = at
        self._best = max(self._best, detection.score)

    def news(self) -> str:
        """What there is to tell since the newest event: `moved`, `clearer`, or `still here`."""
        box, told = self.detection.box, self._told_box
        if box is not None and told is not None and iou(box, told) < _MOVED_IOU:
            return "moved"
        return "clearer" if self._best >= self._told_best + _CLEARER else "still here"

    def told(self, at_ns: int) -> None:
        """An event tells how it stands now."""
        self.told_ns = at_ns
        self._told_box = self.detection.box
        self._told_best = self._best

    def expected(self, at_ns: int) -> Box | None:
        """Where it should be by now."""
        return None if self.motion is None else self.motion.predict(at_ns)

    def track(self) -> Track:
        """As it stands now."""
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
            self.zones,
        )
