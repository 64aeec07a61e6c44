"""The tracker: detections over time. Detections in, `new`, `update` and `end` events out.

A thing is a candidate until it has been detected often enough, then announced; every announced one is ended
exactly once, whatever happens. Detections without a box are verdicts on the whole picture: one track per label.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime

from agent.compute.track.association import Expected, associate, overlap
from agent.compute.track.target import Target
from agent.compute.track.zones import Zones
from agent.config import TrackConfig
from agent.manifest import PICTURE_HITS
from agent.messages import WHOLE, Box, Detection, Event, Track

_Kind = tuple[str, bool]
"""Label, and whether it has a box: only things of one kind are compared."""

_IN_SIGHT = 0.5
"""Least share of a box inside the part looked at for its absence to mean something."""


class Tracker:
    """Tracks the things of one stream. For one thread; times must not run backwards."""

    def __init__(
        self, config: TrackConfig, zones: Zones, stream: str, *, min_hits: int = PICTURE_HITS, run: str = ""
    ) -> None:
        """Prepare.

        Args:
            config: see `TrackConfig`.
            zones: of the stream.
            stream: its name, the first part of every id.
            min_hits: where `config` leaves it open.
            run: makes ids unique over restarts; default: random, because a board's clock may begin anew.
        """
        self._config, self._zones = config, zones
        self._min_hits = config.min_hits or min_hits
        self._prefix = f"{stream}-{run or secrets.token_hex(4)}-"
        self._lost_ns = round(config.lost_after_s * 1e9)
        self._update_ns = round(config.update_every_s * 1e9)
        self._targets: dict[_Kind, list[Target]] = {}
        self._counts: dict[str, int] = {}
        self._announced = 0
        self._alive = 0
        self._now_ns: int | None = None

    def use(self, zones: Zones) -> None:
        """Take other zones from the next detections on; tracks go on."""
        self._zones = zones

    @property
    def alive(self) -> int:
        """Number of announced tracks that have not ended."""
        return self._alive

    @property
    def watching(self) -> bool:
        """Whether another look is worth it: a track is alive, or a candidate was there at the newest look.

        A gate that asks this never leaves a thing that stands still half announced.
        """
        return self._alive > 0 or any(not target.missed for target in self._all())

    def boxes(self) -> tuple[Box, ...]:
        """Newest boxes of everything known, candidates too: where to look."""
        return tuple(target.detection.box for target in self._all() if target.detection.box is not None)

    def tracks(self) -> tuple[Track, ...]:
        """The announced tracks that have not ended."""
        return tuple(target.track() for target in self._all() if target.id)

    def counts(self) -> dict[str, int]:
        """Number of announced tracks alive, per label; a label once announced stays, with 0."""
        return dict(self._counts)

    def zone_counts(self) -> dict[tuple[str, str], int]:
        """Number of announced tracks alive, by zone and label; only what is not 0."""
        standing = (
            (zone, target.detection.label) for target in self._all() if target.id for zone in target.zones
        )
        return dict(Counter(standing))

    def update(self, detections: Sequence[Detection], at_ns: int, at: datetime, seen: Box = WHOLE) -> list[Event]:
        """One picture was inferred.

        Args:
            detections: what was found in it.
            at_ns: its capture, ns.
            at: its capture, UTC.
            seen: the part that was looked at; what lies outside is not missed.
        """
        events: list[Event] = []
        if not detections and not self._targets:
            self._now_ns = at_ns
            return events
        passed_ns = 0 if self._now_ns is None else max(0, at_ns - self._now_ns)
        self._now_ns = at_ns
        # A slow model may look less often than things are lost: what no look has missed yet may still be there.
        self._end_due(at_ns, events, only_missed=True)
        found = _by_kind(detections)
        for kind in [*self._targets, *(kind for kind in found if kind not in self._targets)]:
            targets = self._targets.setdefault(kind, [])
            for target in self._match(targets, found.get(kind, ()), at_ns, at, events):
                self._miss(target, at_ns, passed_ns, seen)
        self._end_due(at_ns, events)
        return events

    def tick(self, at_ns: int, at: datetime) -> list[Event]:
        """Time passed and nothing was inferred: the ends that are due."""
        events: list[Event] = []
        if self._targets:
            self._end_due(at_ns, events)
        self._now_ns = at_ns
        return events

    def finish(self, at_ns: int, at: datetime, reason: str) -> list[Event]:
        """End every track, for instance because of a stall. The tracker can go on afterwards."""
        self._now_ns = at_ns
        events = [self._ended(target, reason) for target in self._all() if target.id]
        self._targets.clear()
        return events

    def _all(self) -> Iterator[Target]:
        return (target for targets in self._targets.values() for target in targets)

    def _match(
        self,
        targets: list[Target],
        found: Sequence[Detection],
        at_ns: int,
        at: datetime,
        events: list[Event],
    ) -> Iterable[Target]:
        """Give detections to the targets of their kind or to new ones; the targets left without."""
        due_ns = at_ns + self._lost_ns
        pairs = self._pairs(targets, found, at_ns)
        hit = {i for i, _ in pairs}
        missed = [target for i, target in enumerate(targets) if i not in hit]
        for i, j in pairs:
            targets[i].hit(found[j], at_ns, at, due_ns)
            self._tell(targets[i], at_ns, events)
        used = {j for _, j in pairs}
        for j, detection in enumerate(found):
            if j not in used:
                target = Target(detection, at_ns, at, due_ns)
                targets.append(target)
                self._tell(target, at_ns, events)
        return missed

    def _pairs(self, targets: Sequence[Target], found: Sequence[Detection], at_ns: int) -> list[tuple[int, int]]:
        if not targets or not found:
            return []
        expected = [Expected(t.motion.predict(at_ns), t.motion.settled) for t in targets if t.motion]
        boxes = [detection.box for detection in found if detection.box is not None]
        # Verdicts on the whole picture have no boxes: the one target of its label.
        return associate(expected, boxes, self._config.iou_threshold) if expected else [(0, 0)]

    def _tell(self, target: Target, at_ns: int, events: list[Event]) -> None:
        """What its newest detection makes of a target: announced, in other zones, or due for an update."""
        if not target.id and target.hits < self._min_hits:
            return
        label, box = target.detection.label, target.detection.box
        zones = self._zones.names_at(label, box, target.zones)
        changed, target.zones = zones != target.zones, zones
        if not target.id:
            self._announce(target)
            events.append(Event("new", target.track(), "appeared"))
        elif changed:
            events.append(Event("update", target.track(), "zone"))
        elif at_ns - target.told_ns >= self._update_ns:
            events.append(Event("update", target.track(), target.news()))
        else:
            return
        target.told(at_ns)

    def _announce(self, target: Target) -> None:
        self._announced += 1
        target.id = f"{self._prefix}{self._announced}"
        self._alive += 1
        label = target.detection.label
        self._counts[label] = self._counts.get(label, 0) + 1

    def _miss(self, target: Target, at_ns: int, passed_ns: int, seen: Box) -> None:
        if seen != WHOLE and not _in_sight(target.expected(at_ns), seen):
            target.due_ns += passed_ns
        else:
            target.missed = True

    def _end_due(self, at_ns: int, events: list[Event], *, only_missed: bool = False) -> None:
        for kind, targets in list(self._targets.items()):
            if any(target.due_ns <= at_ns for target in targets):
                due = [t for t in targets if t.due_ns <= at_ns and (t.missed or not only_missed)]
                events.extend(self._ended(target, "lost") for target in due if target.id)
                targets[:] = [target for target in targets if target not in due]
            if not targets:
                del self._targets[kind]

    def _ended(self, target: Target, reason: str) -> Event:
        self._alive -= 1
        self._counts[target.detection.label] -= 1
        return Event("end", target.track(), reason)


def _by_kind(detections: Iterable[Detection]) -> dict[_Kind, list[Detection]]:
    """Detections that may be the same thing; of several verdicts with one label, the surest."""
    found: dict[_Kind, list[Detection]] = {}
    for detection in detections:
        same = found.setdefault((detection.label, detection.box is not None), [])
        if detection.box is not None or not same:
            same.append(detection)
        elif detection.score > same[0].score:
            same[0] = detection
    return found


def _in_sight(box: Box | None, seen: Box) -> bool:
    """Whether a box lies mostly in the part that was looked at. A verdict on the whole picture never does."""
    if box is None:
        return False
    area = (box[2] - box[0]) * (box[3] - box[1])
    return overlap(box, seen) >= _IN_SIGHT * area
