"""The tracker: turns detections over time into `new`, `update` and `end` events.

An object is a candidate until it has been detected often enough, then it is announced. Every announced track ends
exactly once. Detections without a box concern the whole picture: one track per label.

A track that has not left its place for `stationary_after_s` is stationary. It does not need an inference of each
picture: it is there until an inference misses it. Inferences are made when something moves and every
`stationary_check_s`; after a miss each picture is inferred until the object is found or lost. A detection of
another label at its place is the same object, because models waver between a car, a truck and a bus.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime

from agent.compute.manifest import PICTURE_HITS
from agent.compute.track.association import associate
from agent.compute.track.places import DetectionFilters, Lines, Zones
from agent.compute.track.state import TrackState, iou, overlap
from agent.config import TrackConfig
from agent.types import WHOLE, Attribute, Box, Detection, Event, Track

_Kind = tuple[str, bool]
"""Label, and whether it has a box: only objects of one kind are compared."""
_IN_SIGHT = 0.5
"""Least share of a box inside the inferred part for its absence to count as a miss."""
_SAME_IOU = 0.7
"""Least overlap of a stationary track with a detection of another label that is the same object."""
_RENAMED_COUNT, _RENAMED_NS = 20, 30_000_000_000
"""Consecutive inferences, and time, with another label after which that becomes a track of its own."""
_COVERED = 0.15
"""Least share of a stationary box that a passing object must cover for its absence to be no miss."""
_CANDIDATE_MISSES = 2
"""Consecutive inferences that miss a candidate after which it is forgotten."""
_COUNTED = 1000
"""Labels whose count is kept at 0; of more, the oldest that nothing has are forgotten."""
_PASSING_NS = 2_000_000_000
"""An object that left its place more recently than this is passing."""


class Tracker:
    """Tracks the objects of one stream. For one thread; times must not run backwards."""

    def __init__(
        self,
        config: TrackConfig,
        zones: Zones,
        stream: str,
        *,
        min_hits: int = PICTURE_HITS,
        run: str = "",
        lines: Lines | None = None,
        filters: DetectionFilters | None = None,
    ) -> None:
        """Start without tracks.

        Ids begin with the stream's name and `run`, unique over restarts; default: random, because a board's clock
        may restart.
        """
        self._config, self._zones, self._lines = config, zones, lines or Lines()
        self._has_places = not (self._zones.empty and self._lines.empty)  # or had
        self._filters, self._only_moving = filters, config.only_moving
        self._min_hits = config.min_hits or min_hits
        self._prefix = f"{stream}-{run or secrets.token_hex(4)}-"
        self._lost_ns = round(config.lost_after_s * 1e9)
        self._update_ns = round(config.update_every_s * 1e9)
        self._stationary_ns = round(config.stationary_after_s * 1e9)
        self._check_ns = round(config.stationary_check_s * 1e9)
        self._stationary_update_ns = round(config.stationary_update_s * 1e9)
        self._targets: dict[_Kind, list[TrackState]] = {}
        self._counts: dict[str, int] = {}
        self._announced = 0
        self._alive = 0
        self._now_ns: int | None = None

    def set_places(self, zones: Zones, lines: Lines) -> None:
        """Use other zones and lines from the next detections on.

        Tracks continue; stationary ones are checked at once, and one detection decides in which zones each is.
        """
        self._zones, self._lines = zones, lines
        self._has_places = self._has_places or not (zones.empty and lines.empty)
        for target in self._states():
            target.check_ns = min(target.check_ns, self._now_ns or 0)
            target.places.settles = bool(target.id)

    def set_filters(self, filters: DetectionFilters, *, only_moving: bool) -> None:
        """Announce other objects from the next detections on; those that were announced stay."""
        self._filters, self._only_moving = filters, only_moving

    @property
    def alive(self) -> int:
        """Number of announced tracks that have not ended."""
        return self._alive

    @property
    def watching(self) -> bool:
        """Return True while each picture must be inferred, see `TrackState.needs_inference`.

        A gate that follows this never leaves an object half announced.
        """
        return any(target.needs_inference for target in self._states())

    @property
    def confirming(self) -> bool:
        """Return True if something was found by the newest inference that is not announced yet."""
        return any(
            not target.id and not target.missed and target.hits < self._min_hits for target in self._states()
        )

    def check_due(self, at_ns: int) -> bool:
        """Return True if a stationary track has not been checked for `stationary_check_s`."""
        return any(target.stationary and target.check_ns <= at_ns for target in self._states())

    def boxes(self, at_ns: int) -> tuple[tuple[Box, ...], tuple[Box, ...]]:
        """Return the newest boxes of objects that need an inference, also candidates, and of the others."""
        wanted: list[Box] = []
        resting: list[Box] = []
        for target in self._states():
            if target.detection.box is not None:
                rests = target.stationary and not target.missed and target.check_ns > at_ns
                (resting if rests else wanted).append(target.detection.box)
        return tuple(wanted), tuple(resting)

    def tracks(self) -> tuple[Track, ...]:
        """Return the announced tracks that have not ended."""
        return tuple(target.track() for target in self._states() if target.id)

    def predicted(self, at_ns: int) -> list[Detection]:
        """Return where the announced tracks should be by their motion, strongest first, without missed ones."""
        found = [target.predicted(at_ns) for target in self._states() if target.id and not target.missed]
        return sorted(found, key=lambda one: -one.score)

    def set_attributes(self, attributes: Mapping[str, dict[str, Attribute]]) -> None:
        """Set what is known about announced tracks, by id; also their later events have it."""
        for target in self._states():
            if target.id in attributes:
                target.attributes = attributes[target.id]

    def counts(self) -> dict[str, int]:
        """Return the number of announced tracks alive, per label; a label once announced stays, with 0."""
        return dict(self._counts)

    def zone_counts(self) -> dict[tuple[str, str], int]:
        """Return the number of announced tracks alive, by zone and label, without zeros."""
        standing = (
            (zone, target.detection.label)
            for target in self._states()
            if target.id
            for zone in target.places.zones
        )
        return dict(Counter(standing))

    def update(self, detections: Sequence[Detection], at_ns: int, at: datetime, seen: Box = WHOLE) -> list[Event]:
        """Add the detections of one picture. Objects outside `seen`, the inferred part, are not missed."""
        events: list[Event] = []
        if not detections and not self._targets:
            self._now_ns = at_ns
            return events
        passed_ns = 0 if self._now_ns is None else max(0, at_ns - self._now_ns)
        self._now_ns = at_ns
        # A slow model may infer less often than tracks are lost: one that no inference has missed may still be
        # there.
        self._end_due(at_ns, events, only_missed=True)
        found = _by_kind(detections)
        missed: list[TrackState] = []
        for kind in [*self._targets, *(kind for kind in found if kind not in self._targets)]:
            left, unknown = self._match(
                self._targets.get(kind, ()), found.get(kind, ()), at_ns, passed_ns, at, events
            )
            missed += left
            found[kind] = unknown
        for kind, unknown in found.items():
            for detection in unknown:
                self._appear(kind, detection, missed, at_ns, at, events)
        for target in missed:
            self._mark_missed(target, at_ns, passed_ns, seen)
        self._end_due(at_ns, events)
        return events

    def tick(self, at_ns: int, at: datetime) -> list[Event]:
        """Return the ends that are due although nothing was inferred."""
        events: list[Event] = []
        if self._targets:
            self._end_due(at_ns, events)
            self._report_loitering(at_ns, events)
        self._now_ns = at_ns
        return events

    def rest(self, at_ns: int, at: datetime) -> list[Event]:
        """Record that nothing moved: stationary objects are still there. Return the ends that are due."""
        for target in self._states():
            if target.stationary and not target.missed:
                target.mark_present(at)
        return self.tick(at_ns, at)

    def finish(self, at_ns: int, at: datetime, reason: str) -> list[Event]:
        """End every track, for instance because of a stall. The tracker can continue afterwards."""
        self._now_ns = at_ns
        events = [self._end(target, reason) for target in self._states() if target.id]
        self._targets.clear()
        return events

    def _states(self) -> Iterator[TrackState]:
        return (target for targets in self._targets.values() for target in targets)

    def _match(
        self,
        targets: Sequence[TrackState],
        found: Sequence[Detection],
        at_ns: int,
        passed_ns: int,
        at: datetime,
        events: list[Event],
    ) -> tuple[list[TrackState], list[Detection]]:
        """Update the tracks of one kind; return the tracks and the detections without a match."""
        due_ns = at_ns + self._lost_ns
        pairs = self._pairs(targets, found, at_ns, passed_ns)
        for i, j in pairs:
            targets[i].update(found[j], at_ns, at, due_ns)
            self._report(targets[i], at_ns, events)
        hit, used = {i for i, _ in pairs}, {j for _, j in pairs}
        return (
            [target for i, target in enumerate(targets) if i not in hit],
            [detection for j, detection in enumerate(found) if j not in used],
        )

    def _appear(
        self,
        kind: _Kind,
        detection: Detection,
        missed: list[TrackState],
        at_ns: int,
        at: datetime,
        events: list[Event],
    ) -> None:
        """Start a track from a detection, unless it is a stationary object under another label."""
        known = self._renamed(detection, at_ns)
        if known is None:
            target = TrackState(detection, at_ns, at, at_ns + self._lost_ns)
            self._targets.setdefault(kind, []).append(target)
            self._report(target, at_ns, events)
        elif known in missed:
            missed.remove(known)
            known.confirm(at_ns + self._lost_ns, at_ns + self._check_ns)

    def _renamed(self, detection: Detection, at_ns: int) -> TrackState | None:
        """Return the stationary track at whose place a detection lies; None: there is none."""
        box = detection.box
        if box is None:
            return None
        for target in self._states():
            if target.stationary and target.detection.box and iou(target.detection.box, box) >= _SAME_IOU:
                long = target.renamed >= _RENAMED_COUNT and at_ns - target.seen_ns >= _RENAMED_NS
                return None if long else target
        return None

    def _pairs(
        self, targets: Sequence[TrackState], found: Sequence[Detection], at_ns: int, passed_ns: int
    ) -> list[tuple[int, int]]:
        if not targets or not found:
            return []
        tracks = [target.expectation(at_ns, passed_ns) for target in targets]
        expected = [track for track in tracks if track is not None]
        boxes = [detection.box for detection in found if detection.box is not None]
        if not expected:  # without boxes there is one track per label
            return [(0, 0)]
        pairs, (across, down) = associate(expected, boxes, self._config.iou_threshold)
        if across or down:
            for target in targets:
                if target.motion is not None:
                    target.motion.shift(across, down)
        return pairs

    def _report(self, target: TrackState, at_ns: int, events: list[Event]) -> None:
        """Add the events that a track's newest detection gives: new, other zones or another update, and lines."""
        places = target.places if self._has_places else None
        if places is not None:
            places.add(self._zones, self._lines, target.detection.label, target.detection.box, at_ns)
        if not target.id and not self._may_begin(target, at_ns):
            return
        changed = places is not None and places.enter(self._zones, at_ns)
        if reason := self._change_reason(target, at_ns, zone_changed=changed):
            events.append(Event("new" if reason == "appeared" else "update", target.track(), reason))
            target.mark_reported(at_ns)
        while places is not None and places.tell_crossing():
            events.append(Event("update", target.track(), "line"))

    def _may_begin(self, target: TrackState, at_ns: int) -> bool:
        """Return True if a candidate is to be announced; one that is not yet may become stationary."""
        if target.hits < self._min_hits:
            return False
        if (self._only_moving and not target.has_moved) or (
            self._filters is not None and not self._filters.may_begin(target.detection.label, target.best_score)
        ):
            self._update_reason(target, at_ns)
            return False
        return True

    def _change_reason(self, target: TrackState, at_ns: int, *, zone_changed: bool) -> str:
        """Announce a track that is new; return the reason for an event; empty: none."""
        if not target.id:
            self._announce(target)
            return "appeared"
        return "zone" if zone_changed else self._update_reason(target, at_ns)

    def _report_loitering(self, at_ns: int, events: list[Event]) -> None:
        """Add an update for each track that time alone has brought into a zone."""
        for target in self._states() if self._zones.has_loitering else ():
            if target.id and not target.missed and target.places.enter(self._zones, at_ns):
                events.append(Event("update", target.track(), "zone"))
                target.mark_reported(at_ns)

    def _update_reason(self, target: TrackState, at_ns: int) -> str:
        """Update whether a track is stationary; return the reason for an update event; empty: none."""
        was_stationary, since_reported_ns = target.stationary, at_ns - target.reported_ns
        target.stationary = 0 < self._stationary_ns <= at_ns - target.place_ns
        if target.stationary:
            target.check_ns = at_ns + self._check_ns
            if not was_stationary:
                return "stationary"
            is_due = 0 < self._stationary_update_ns <= since_reported_ns and not self._only_moving
            return "still here" if is_due else ""
        if was_stationary:
            return "moved"
        reason = target.change_reason() if since_reported_ns >= self._update_ns else ""
        # A standing object gives one event, when it becomes stationary.
        return "" if reason == "still here" and self._stationary_ns else reason

    def _announce(self, target: TrackState) -> None:
        self._announced += 1
        target.id = f"{self._prefix}{self._announced}"
        self._alive += 1
        label = target.detection.label
        self._counts[label] = self._counts.get(label, 0) + 1
        if len(self._counts) > _COUNTED:  # texts that are read have no end
            gone = next((one for one, count in self._counts.items() if not count), None)
            self._counts.pop(gone or "", None)

    def _mark_missed(self, target: TrackState, at_ns: int, passed_ns: int, seen: Box) -> None:
        if seen != WHOLE and not _in_sight(target.expected(at_ns), seen):
            target.due_ns += passed_ns
        elif target.stationary and self._is_covered(target, at_ns):
            target.due_ns += passed_ns
            target.check_ns = at_ns
        else:
            if target.stationary and not target.missed:
                target.due_ns = max(target.due_ns, at_ns - passed_ns + self._lost_ns)
            target.missed = True
            target.misses += 1
            if not target.id and target.hits < self._min_hits and target.misses >= _CANDIDATE_MISSES:
                target.due_ns = at_ns

    def _is_covered(self, target: TrackState, at_ns: int) -> bool:
        box = target.detection.box
        if box is None:
            return False
        least = _COVERED * (box[2] - box[0]) * (box[3] - box[1])
        return any(
            other.seen_ns == at_ns
            and at_ns - other.place_ns < _PASSING_NS
            and other.detection.box is not None
            and overlap(box, other.detection.box) > least
            for other in self._states()
        )

    def _end_due(self, at_ns: int, events: list[Event], *, only_missed: bool = False) -> None:
        for kind, targets in list(self._targets.items()):
            if any(target.due_ns <= at_ns for target in targets):
                due = [
                    t for t in targets if t.due_ns <= at_ns and (t.missed or not (only_missed or t.stationary))
                ]
                events.extend(self._end(target, "lost") for target in due if target.id)
                targets[:] = [target for target in targets if target not in due]
            if not targets:
                del self._targets[kind]

    def _end(self, target: TrackState, reason: str) -> Event:
        self._alive -= 1
        self._counts[target.detection.label] -= 1
        return Event("end", target.track(), reason)


def _by_kind(detections: Iterable[Detection]) -> dict[_Kind, list[Detection]]:
    """Group detections that may match; of several without a box and with one label keep the strongest."""
    found: dict[_Kind, list[Detection]] = {}
    for detection in detections:
        same = found.setdefault((detection.label, detection.box is not None), [])
        if detection.box is not None or not same:
            same.append(detection)
        elif detection.score > same[0].score:
            same[0] = detection
    return found


def _in_sight(box: Box | None, seen: Box) -> bool:
    if box is None:
        return False
    area = (box[2] - box[0]) * (box[3] - box[1])
    return overlap(box, seen) >= _IN_SIGHT * area
