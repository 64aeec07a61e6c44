"""Zones: named polygons in the picture, and which of them a track is in.

A box stands where the middle of its lower edge is. Detected boxes jitter: a track enters and leaves a zone after
several detections on the other side of the border, and stays in it within a narrow margin outside.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from msgspec import Struct

from agent.compute.track.geometry import distance, foot_of, holds, sides_of
from agent.config import ZoneConfig
from agent.config.places import LineConfig, polygon_problem
from agent.errors import ConfigError
from agent.types import Box, Point

_MARGIN = 0.1
"""Distance outside a zone at which a box leaves it, as a share of its side: detected edges jitter by half."""
_MARGIN_MIN, _MARGIN_MAX = 0.01, 0.04
"""Least and greatest of this distance, as a share of the frame."""
_LEAST_NS = 200_000_000
"""Least time that several detections on the other side must last: of a fast camera the errors of a detector last
for more than three pictures. Chosen by `scripts/bench/zones.py --tune`."""


class ZonePresence:
    """What is known about one track and one zone, private to `Zones`.

    Attributes:
        inside: True if it is inside, by several detections.
        streak: consecutive detections on the other side of the border.
        streak_ns: time of the first of these.
        since_ns: time since which it is inside.
        first: True until it was outside or is inside: who appears in a zone comes from nowhere.
    """

    __slots__ = ("first", "inside", "since_ns", "streak", "streak_ns")

    def __init__(self) -> None:
        self.inside, self.first, self.streak, self.since_ns, self.streak_ns = False, True, 0, 0, 0

    def add(self, inside: bool, at_ns: int, needed: int) -> None:
        """Add a detection; after `needed` consecutive ones on the other side, the track is there.

        Where more than one is needed, they must last for `_LEAST_NS` as well, unless all of them were inside.
        """
        if inside is self.inside:
            self.streak, self.first = 0, False
            return
        self.streak += 1
        if self.streak == 1:
            self.streak_ns = at_ns
        lasts = needed == 1 or self.first or at_ns - self.streak_ns >= _LEAST_NS
        if self.streak >= needed and lasts:
            self.inside, self.since_ns, self.streak, self.first = inside, self.streak_ns, 0, False


class _Zone(Struct, frozen=True):
    """A zone prepared for tests: its sides and bounds, the labels that count, and its delays."""

    name: str
    polygon: tuple[Point, ...]
    sides: tuple[tuple[Point, Point], ...]
    bounds: Box
    labels: frozenset[str]
    inertia: int
    loitering_ns: int


Presences = dict[str, ZonePresence]
"""By name of the zone."""


class Zones:
    """The enabled zones of one stream.

    Attributes:
        empty: True if there are none.
        has_loitering: True if a track may enter one without a new detection, see `names_in`.
    """

    def __init__(self, zones: Sequence[ZoneConfig]) -> None:
        """Check and prepare the zones. Raises ConfigError as `check_zones`."""
        check_zones(zones)
        self._zones = tuple(_prepare(zone) for zone in zones if zone.enabled)
        self.empty = not self._zones
        self.has_loitering = any(zone.loitering_ns for zone in self._zones)

    def update(
        self, known: Mapping[str, ZonePresence], label: str, box: Box | None, at_ns: int, *, at_once: bool = False
    ) -> Presences:
        """Add a detection of a track.

        Args:
            known: what the call before returned for this track; empty: it is its first.
            label: its class; a zone with labels counts only those.
            box: its place; None is in no zone.
            at_ns: time of the detection.
            at_once: this detection alone decides, as after zones were drawn anew.
        """
        if not self._zones or box is None:
            return {}
        foot, unit = foot_of(box), _margin(box)
        found: Presences = {}
        for zone in self._counting(label):
            one = found[zone.name] = known.get(zone.name) or ZonePresence()
            one.add(_stands(zone, foot, unit, one.inside), at_ns, 1 if at_once else zone.inertia)
        return found

    def names_in(self, known: Mapping[str, ZonePresence], at_ns: int) -> tuple[str, ...]:
        """Return the names of the zones that a track is in at a time, in config order."""
        if not known:
            return ()
        return tuple(
            zone.name
            for zone in self._zones
            if (one := known.get(zone.name)) is not None
            and one.inside
            and at_ns - one.since_ns >= zone.loitering_ns
        )

    def _counting(self, label: str) -> Iterator[_Zone]:
        return (zone for zone in self._zones if not zone.labels or label in zone.labels)


def _stands(zone: _Zone, foot: Point, unit: Point, is_held: bool) -> bool:
    x, y = foot
    left, top, right, bottom = zone.bounds
    if not (left - _MARGIN_MAX <= x <= right + _MARGIN_MAX and top - _MARGIN_MAX <= y <= bottom + _MARGIN_MAX):
        return False
    return holds(zone.polygon, foot) or (is_held and distance(zone.sides, foot, unit) <= 1.0)


def _margin(box: Box) -> Point:
    """Return the distance at which a zone is left, along x and y."""
    width, height = _MARGIN * (box[2] - box[0]), _MARGIN * (box[3] - box[1])
    return min(_MARGIN_MAX, max(_MARGIN_MIN, width)), min(_MARGIN_MAX, max(_MARGIN_MIN, height))


def describe_zones(zones: Sequence[ZoneConfig], lines: Sequence[LineConfig] = ()) -> str:
    """Return names and corners as text that differs if zones or lines were drawn anew; empty: there are none."""
    drawn = [(zone.name, zone.polygon) for zone in zones] + [(line.name, line.points) for line in lines]
    return "; ".join(f"{name} {list(map(list, points))}" for name, points in drawn)


def check_zones(zones: Sequence[ZoneConfig]) -> None:
    """Check zones.

    Raises:
        ConfigError: two zones have one name, or a polygon has fewer than three corners, corners outside the
            frame, no area, or crosses itself. The error names the zone.
    """
    names: set[str] = set()
    for zone in zones:
        if zone.name in names:
            raise ConfigError(f"two zones are named {zone.name!r}: give each zone of a stream its own name")
        names.add(zone.name)
        if problem := polygon_problem(zone.polygon):
            raise ConfigError(f"zone {zone.name!r}: {problem}")


def _prepare(zone: ZoneConfig) -> _Zone:
    xs, ys = [x for x, _ in zone.polygon], [y for _, y in zone.polygon]
    return _Zone(
        zone.name,
        zone.polygon,
        tuple(sides_of(zone.polygon, closed=True)),
        (min(xs), min(ys), max(xs), max(ys)),
        frozenset(zone.labels),
        zone.inertia,
        round(zone.loitering_s * 1e9),
    )
