"""A target: one tracked thing while it lives. Mutable and private to the tracker; outside it is a `Track`."""

from __future__ import annotations

from datetime import datetime

from agent.compute.track.association import iou
from agent.compute.track.motionmodel import Motion
from agent.messages import Box, Detection, Track

_MOVED_IOU = 0.7
"""A thing whose box overlaps less than this with an earlier one has moved meanwhile."""

_LEFT_IOU = 0.5
"""A stationary thing has left its place when it overlaps less than this with it: boxes of a detector tremble."""

_SMOOTHING = 0.25
"""Weight of the newest box in the mean that is compared with the place: one odd box moves nothing."""

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
        stationary: see `Track`.
        seen_ns: time of the newest detection.
        place_ns: since when it has been at its place.
        check_ns: when a stationary target is to be looked at again.
        renamed: number of looks in a row that found something of another label at its place.
    """

    __slots__ = (
        "_best",
        "_first_seen",
        "_last_seen",
        "_mean",
        "_place",
        "_told_best",
        "_told_box",
        "check_ns",
        "detection",
        "due_ns",
        "hits",
        "id",
        "missed",
        "motion",
        "place_ns",
        "renamed",
        "seen_ns",
        "stationary",
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
        self.stationary = False
        self.renamed = 0
        self.seen_ns = self.place_ns = self.check_ns = at_ns
        self._first_seen = self._last_seen = at
        self._best = self._told_best = detection.score
        self._told_box = self._place = self._mean = detection.box

    def hit(self, detection: Detection, at_ns: int, at: datetime, due_ns: int) -> None:
        """Take the newest detection of it."""
        self.detection = detection
        self.seen_ns = at_ns
        self.renamed = 0
        self.hits += 1
        if self.motion is not None and detection.box is not None:
            self.motion.correct(detection.box, at_ns)
            self._follow(detection.box, at_ns)
        self.due_ns = due_ns
        self.missed = False
        self._last_seen = at
        self._best = max(self._best, detection.score)

    def confirm(self, due_ns: int, check_ns: int) -> None:
        """Take note that it is at its place, though it was called otherwise."""
        self.renamed += 1
        self.missed = False
        self.due_ns, self.check_ns = due_ns, check_ns

    def stay(self, at: datetime) -> None:
        """Take note that a picture was taken in which nothing speaks against its being at its place."""
        self._last_seen = at

    def _follow(self, box: Box, at_ns: int) -> None:
        """Compare the mean of its boxes with its place; once it has left that, it has a new one."""
        mean, place = self._mean, self._place
        assert mean is not None
        assert place is not None
        x0, y0, x1, y1 = mean
        w = _SMOOTHING
        mean = (x0 + w * (box[0] - x0), y0 + w * (box[1] - y0), x1 + w * (box[2] - x1), y1 + w * (box[3] - y1))
        self._mean = mean
        if iou(mean, place) < (_LEFT_IOU if self.stationary else _MOVED_IOU):
            self._place, self.place_ns = mean, at_ns

    @property
    def needs_looks(self) -> bool:
        """Return True when each picture is to be looked at for it.

        That is so while an announced target moves, after a stationary one was missed, and for a candidate until
        it is missed.
        """
        if not self.id:
            return not self.missed
        return self.missed or not self.stationary

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
            self.stationary,
        )
