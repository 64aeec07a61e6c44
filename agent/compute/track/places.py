"""Zones, lines and filters: where tracks stand, what they cross, and which detections count.

A box stands where the middle of its lower edge is. Detected boxes jitter: a track enters and leaves a zone after
several detections on the other side of the border, and stays in it within a narrow margin outside. It has crossed
a line when it was clear of it on one side, and is clear of it on the other: within a band around the line its
foot may waver as it likes. The path between is that of the detections, smoothed, so that who walks around an end
has not crossed, and who is over the line between two inferences has, with the next one.

Coordinates are fractions of the picture, x to the right and y down.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from msgspec import Struct

from agent.config import ZoneConfig
from agent.config.places import MOST_CORNERS, FilterConfig, LineConfig, Polygon, polygon_problem, self_crossing
from agent.errors import ConfigError
from agent.types import Box, Crossing, Detection, Point

_EDGE = 1e-6


def foot_of(box: Box) -> Point:
    """Return where a box stands: the middle of its lower edge, clipped to the inside of the frame.

    So it is never on the end of a line, or on the side of a polygon, that is drawn along the frame's edge.
    """
    x, y = (min(1.0 - _EDGE, max(_EDGE, value)) for value in ((box[0] + box[2]) / 2, box[3]))
    return x, y


def turn(a: Point, b: Point, c: Point) -> float:
    """Return a positive number if c lies to the right of who goes from a to b, 0 on the line through both."""
    return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])


def sides_of(points: Sequence[Point], *, closed: bool = False) -> Iterator[tuple[Point, Point]]:
    """Yield the sides of a polyline; of a polygon with the one from its last corner to its first."""
    yield from itertools.pairwise(points)
    if closed:
        yield points[-1], points[0]


def holds(polygon: Sequence[Point], point: Point) -> bool:
    """Return True if a point lies inside a polygon, by the even-odd rule; some of the border counts as inside."""
    x, y = point
    inside = False
    for a, b in sides_of(polygon, closed=True):
        if (a[1] > y) != (b[1] > y) and x < a[0] + (y - a[1]) / (b[1] - a[1]) * (b[0] - a[0]):
            inside = not inside
    return inside


def distance(sides: Iterable[tuple[Point, Point]], point: Point, unit: Point) -> float:
    """Return the distance from a point to the nearest side, in units that may differ in x and y."""
    px, py = point
    ux, uy = unit
    best = math.inf
    for (ax, ay), (bx, by) in sides:
        dx, dy = (bx - ax) / ux, (by - ay) / uy
        ex, ey = (px - ax) / ux, (py - ay) / uy
        length = dx * dx + dy * dy
        along = min(1.0, max(0.0, (dx * ex + dy * ey) / length)) if length > 0.0 else 0.0
        best = min(best, math.hypot(ex - along * dx, ey - along * dy))
    return best


def net_crossings(points: Sequence[Point], start: Point, end: Point) -> int:
    """Return how often a straight step crosses a polyline to its right-hand side, less the crossings to its left.

    A point on the line counts as left of it, and a corner belongs to one of its two sides: over the steps of a
    path no crossing is counted twice or missed.
    """
    if start == end:
        return 0
    count, (low, high) = 0, sorted((start, end))  # the way back crosses the same corners
    for a, b in sides_of(points):
        left, right = turn(a, b, start) > 0.0, turn(a, b, end) > 0.0
        if left != right and (turn(low, high, a) > 0.0) != (turn(low, high, b) > 0.0):
            count += 1 if right else -1
    return count


_MARGIN = 0.1
"""Distance outside a zone at which a box leaves it, as a share of its side: detected edges jitter by half."""
_MARGIN_MIN, _MARGIN_MAX = 0.01, 0.04
"""Least and greatest of this distance, as a share of the frame."""
_LEAST_NS = 200_000_000
"""Least time that several detections on the other side must last: of a fast camera the errors of a detector last
for more than three pictures. Chosen by `scripts/bench/zones.py --tune`."""


class ZonePresence:
    """The state of one track in one zone, private to `Zones`.

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
    ) -> dict[str, ZonePresence]:
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
        foot, unit = foot_of(box), _share_of(box, _MARGIN, _MARGIN_MIN, _MARGIN_MAX)
        found: dict[str, ZonePresence] = {}
        for zone in self._zones:
            if zone.labels and label not in zone.labels:
                continue
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


def _stands(zone: _Zone, foot: Point, unit: Point, is_held: bool) -> bool:
    x, y = foot
    left, top, right, bottom = zone.bounds
    if not (left - _MARGIN_MAX <= x <= right + _MARGIN_MAX and top - _MARGIN_MAX <= y <= bottom + _MARGIN_MAX):
        return False
    return holds(zone.polygon, foot) or (is_held and distance(zone.sides, foot, unit) <= 1.0)


def _share_of(box: Box, share: float, least: float, most: float) -> Point:
    """Return a share of a box's sides, along x and y, within limits."""
    x, y = share * (box[2] - box[0]), share * (box[3] - box[1])
    return min(most, max(least, x)), min(most, max(least, y))


def describe_zones(zones: Sequence[ZoneConfig], lines: Sequence[LineConfig] = ()) -> str:
    """Return names and corners as text that differs if zones or lines were drawn anew; empty: there are none."""
    drawn = [(zone.name, zone.polygon) for zone in zones] + [(line.name, line.points) for line in lines]
    return "; ".join(f"{name} {list(map(list, points))}" for name, points in drawn)


def check_zones(zones: Sequence[ZoneConfig]) -> None:
    """Check zones. Raises ConfigError, which names the zone, if two have one name or a polygon cannot be used."""
    _check_names("zone", (zone.name for zone in zones))
    for number, zone in enumerate(zones):
        if problem := polygon_problem(zone.polygon):
            raise ConfigError(f"zone {zone.name!r}: {problem}", keys=("zones", number))


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


_BAND = 0.14
"""Half of the band's width, as a share of the box's side: detected edges jitter by a third of that."""
_SMOOTHING_S = 0.3
"""Time constant of the smoothing, s: errors of a detector last for several pictures of a camera."""
_NEWEST_MOST = 0.5
"""Most weight of the newest foot, however long ago the one before was. These three were chosen by
`scripts/bench/zones.py --tune`."""
_BAND_MIN, _BAND_MAX = 0.004, 0.04
"""Least and greatest half of the band, as a share of the frame."""
_LEAST_LENGTH = 0.01
"""Least length of a line, as a share of the frame: the narrowest band around it is almost as wide."""
RESERVED = "all"
"""Name that no line may have: the command that resets every line gives it."""


class LineProgress:
    """The state of one track at one line, private to `Lines`.

    Attributes:
        at: its foot, smoothed.
        at_ns: time of its newest detection.
        net: crossings to the right of the line since it was clear of the line, less those to the left.
        clear: True if it has been clear of the line.
    """

    __slots__ = ("at", "at_ns", "clear", "net")

    def __init__(self, at: Point, at_ns: int) -> None:
        self.at, self.at_ns, self.net, self.clear = at, at_ns, 0, False


class _Line(Struct, frozen=True):
    """A line prepared for tests."""

    name: str
    points: tuple[Point, ...]
    sides: tuple[tuple[Point, Point], ...]
    labels: frozenset[str]


class Lines:
    """Enabled lines of one stream.

    Attributes:
        empty: True if there are none.
    """

    def __init__(self, lines: Sequence[LineConfig] = ()) -> None:
        """Check and prepare the lines. Raises ConfigError as `check_lines`."""
        check_lines(lines)
        self._lines = tuple(
            _Line(one.name, one.points, tuple(sides_of(one.points)), frozenset(one.labels))
            for one in lines
            if one.enabled
        )
        self.empty = not self._lines

    def update(
        self, known: Mapping[str, LineProgress], label: str, box: Box | None, at_ns: int
    ) -> tuple[dict[str, LineProgress], tuple[Crossing, ...]]:
        """Add a detection of a track.

        Args:
            known: what the call before returned for this track; empty: it is its first.
            label: its class.
            box: its place; None: it is nowhere, and crosses nothing.
            at_ns: time of the detection.

        Returns:
            what to hand to the next call; and the lines that it has crossed.
        """
        if not self._lines or box is None:
            return {}, ()
        foot, unit = foot_of(box), _share_of(box, _BAND, _BAND_MIN, _BAND_MAX)
        progress: dict[str, LineProgress] = {}
        crossed: list[Crossing] = []
        for line in self._lines:
            if line.labels and label not in line.labels:
                continue
            one = progress[line.name] = known.get(line.name) or LineProgress(foot, at_ns)
            if net := _advance(one, line, foot, unit, at_ns):
                crossed.append(Crossing(line.name, "in" if net > 0 else "out"))
        return progress, tuple(crossed)


def _advance(one: LineProgress, line: _Line, foot: Point, unit: Point, at_ns: int) -> int:
    """Add the newest foot of a track; return a number other than 0 if it has crossed, positive inwards."""
    x, y = one.at
    weight = min(_NEWEST_MOST, -math.expm1(-max(0, at_ns - one.at_ns) / 1e9 / _SMOOTHING_S))
    at = x + weight * (foot[0] - x), y + weight * (foot[1] - y)
    one.net += net_crossings(line.points, one.at, at)
    one.at, one.at_ns = at, at_ns
    if distance(line.sides, at, unit) < 1.0:
        return 0
    net = one.net if one.clear else 0  # where it appeared in the band, nobody knows from which side it came
    one.net, one.clear = 0, True
    return net


def check_lines(lines: Sequence[LineConfig]) -> None:
    """Check lines.

    Raises:
        ConfigError: two lines have one name, one is called `all`, or its points make no line. The error names it.
    """
    _check_names("line", (line.name for line in lines))
    for line in lines:
        if line.name == RESERVED:
            raise ConfigError(f"no line can be called {RESERVED!r}: a reset of {RESERVED!r} is of every line")
        if problem := _problem(line.points):
            raise ConfigError(f"line {line.name!r}: {problem}")


def _problem(points: Sequence[Point]) -> str:
    if not 2 <= len(points) <= MOST_CORNERS:
        return f"`points` has {len(points)}: give 2 to {MOST_CORNERS}, such as [[0, 0.5], [1, 0.5]]"
    for x, y in points:
        if not (0.0 <= x <= 1.0 and 0.0 <= y <= 1.0):
            return f"point [{x:g}, {y:g}] lies outside the frame: points are fractions 0 to 1, not pixels"
    if max(math.dist(points[0], one) for one in points) < _LEAST_LENGTH:
        return f"`points` is too short to be crossed: give at least {_LEAST_LENGTH:g} of the frame"
    return self_crossing(points)


_CROSSED_MAX = 8
"""Most crossed lines that a track names, and that wait to be told."""


class TrackPlaces:
    """Zones and lines of one track.

    Attributes:
        zones: names of those that it is in, as of `enter`.
        crossed: lines that it has crossed and that were told, the newest last.
        settles: True if its next detection alone decides about zones.
    """

    __slots__ = ("_presences", "_progress", "_untold", "crossed", "settles", "zones")

    def __init__(self) -> None:
        self.zones: tuple[str, ...] = ()
        self.crossed: tuple[Crossing, ...] = ()
        self.settles = False
        self._untold: tuple[Crossing, ...] = ()
        self._presences: dict[str, ZonePresence] = {}
        self._progress: dict[str, LineProgress] = {}

    def add(self, zones: Zones, lines: Lines, label: str, box: Box | None, at_ns: int) -> None:
        """Add a detection, also one of a track that is not announced yet."""
        settles, self.settles = self.settles, False
        self._presences = zones.update(self._presences, label, box, at_ns, at_once=settles)
        self._progress, crossed = lines.update(self._progress, label, box, at_ns)
        if crossed:
            self._untold = (*self._untold, *crossed)[-_CROSSED_MAX:]

    def enter(self, zones: Zones, at_ns: int) -> bool:
        """Set the zones that it is in at a time; return True if they have changed."""
        before, self.zones = self.zones, zones.names_in(self._presences, at_ns)
        return self.zones != before

    def tell_crossing(self) -> bool:
        """Move the oldest crossing that was not told to those that were; return False if there is none."""
        if not self._untold:
            return False
        self.crossed = (*self.crossed, self._untold[0])[-_CROSSED_MAX:]
        self._untold = self._untold[1:]
        return True


class DetectionFilters:
    """The filters of one stream."""

    def __init__(self, filters: Sequence[FilterConfig], threshold: float) -> None:
        """Check and prepare the filters.

        Args:
            filters: of the stream.
            threshold: least score of labels that no filter gives another, 0..1.

        Raises:
            ConfigError: see `check_filters`.
        """
        check_filters(filters)
        self._filters, self._threshold = tuple(one for one in filters if one.enabled), threshold
        self._by_label: dict[str, tuple[FilterConfig, ...]] = {}

    @property
    def least_score(self) -> float:
        """Score from which on a detection of some label may count: what the decoder must give."""
        return min((self._threshold, *(one.min_score for one in self._filters if one.min_score is not None)))

    def keep(self, found: list[Detection], aspect: float) -> list[Detection]:
        """Return the detections that count, in their order. `aspect`: width of the frame by its height."""
        if not self._filters:
            return found
        return [one for one in found if self._passes(one, aspect)]

    def may_begin(self, label: str, best_score: float) -> bool:
        """Return True if a track with this best score may be announced."""
        return not self._filters or all(
            one.start_score is None or best_score >= one.start_score for one in self._for(label)
        )

    def _passes(self, found: Detection, aspect: float) -> bool:
        filters = self._for(found.label)
        least = max((one.min_score for one in filters if one.min_score is not None), default=self._threshold)
        return found.score >= least and all(_fits(one, found, aspect) for one in filters)

    def _for(self, label: str) -> tuple[FilterConfig, ...]:
        known = self._by_label.get(label)
        if known is None:
            known = tuple(one for one in self._filters if not one.labels or label in one.labels)
            self._by_label[label] = known
        return known


def _fits(one: FilterConfig, found: Detection, aspect: float) -> bool:
    """Return True if a detection has the wanted size and place; without a box it has none."""
    if found.box is None:
        return True
    x0, y0, x1, y1 = found.box
    width, height = max(0.0, x1 - x0), max(0.0, y1 - y0)
    if not one.min_area <= width * height <= one.max_area:
        return False
    ratio = width * aspect / height if height > 0.0 else math.inf
    if not (one.min_ratio or 0.0) <= ratio <= (one.max_ratio or math.inf):
        return False
    return not one.masks or not any(holds(mask, foot_of(found.box)) for mask in one.masks)


def check_filters(filters: Sequence[FilterConfig]) -> None:
    """Check filters.

    Raises:
        ConfigError: nothing could pass one, a mask cannot be used, or two have one name. The error names it.
    """
    _check_names("filter", (one.name for one in filters if one.name))
    for one in filters:
        name = f"filter {one.name!r}" if one.name else f"filter of {', '.join(one.labels) or 'all labels'}"
        for low, high in (("min_area", "max_area"), ("min_ratio", "max_ratio")):
            least, most = getattr(one, low), getattr(one, high)
            if least is not None and most is not None and least > most:
                raise ConfigError(f"{name}: {low}, {least:g}, is more than {high}, {most:g}")
        if one.min_score is not None and one.start_score is not None and one.start_score < one.min_score:
            raise ConfigError(
                f"{name}: start_score, {one.start_score:g}, is less than min_score, {one.min_score:g}"
            )
        check_polygons(one.masks, name)


def _check_names(kind: str, names: Iterable[str]) -> None:
    """Raise ConfigError if two zones, lines or filters of a stream have one name."""
    for name, count in Counter(names).items():
        if count > 1:
            raise ConfigError(f"two {kind}s are named {name!r}: give each {kind} of a stream its own name")


def check_polygons(masks: Iterable[Polygon], name: str) -> None:
    """Check masks. Raises ConfigError, with `name`, if one is not a polygon inside the frame."""
    for number, mask in enumerate(masks, 1):
        if problem := polygon_problem(mask):
            raise ConfigError(f"{name}: mask {number}: {problem}")
