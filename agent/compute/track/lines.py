"""Lines: whose foot crosses one, and in which direction.

A track has crossed a line when it was clear of it on one side, and is clear of it on the other: within a band
around the line its foot may waver as it likes. The path between is that of the detections, smoothed, so that who
walks around an end has not crossed, and who is over the line between two inferences has, with the next one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from msgspec import Struct

from agent.compute.track.geometry import distance, foot_of, net_crossings, sides_of
from agent.config.places import MOST_CORNERS, LineConfig, self_crossing
from agent.errors import ConfigError
from agent.types import Box, Crossing, Point

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
    """What is known about one track at one line, private to `Lines`.

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
        foot, unit = foot_of(box), _band(box)
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


def _band(box: Box) -> Point:
    """Return the half of the band's width, for distances along x and y."""
    width, height = box[2] - box[0], box[3] - box[1]
    return min(_BAND_MAX, max(_BAND_MIN, _BAND * width)), min(_BAND_MAX, max(_BAND_MIN, _BAND * height))


def check_lines(lines: Sequence[LineConfig]) -> None:
    """Check lines.

    Raises:
        ConfigError: two lines have one name, one is called `all`, or a line has fewer than two points, too many,
            points outside the frame, is shorter than a hundredth of the frame, or crosses itself. The error names
            the line.
    """
    names: set[str] = set()
    for line in lines:
        if line.name in names:
            raise ConfigError(f"two lines are named {line.name!r}: give each line of a stream its own name")
        names.add(line.name)
        if line.name == RESERVED:
            raise ConfigError(f"no line can be called {RESERVED!r}: a reset of {RESERVED!r} is of every line")
        if problem := _problem(line.points):
            raise ConfigError(f"line {line.name!r}: {problem}")


def _problem(points: Sequence[Point]) -> str:
    if len(points) < 2:
        found = "1 point" if points else "0 points"
        return f"`points` has {found}: give at least two, such as [[0, 0.5], [1, 0.5]]"
    if len(points) > MOST_CORNERS:
        return f"`points` has {len(points)} points: give at most {MOST_CORNERS}"
    for x, y in points:
        if not (0.0 <= x <= 1.0 and 0.0 <= y <= 1.0):
            size = "; divide pixels by the picture's width and height" if max(x, y) > 1.0 else ""
            return f"point [{x:g}, {y:g}] lies outside the frame: points are fractions 0 to 1{size}"
    length = max(math.dist(points[0], one) for one in points)
    if length == 0.0:
        return "`points` has no length: all of them are at one place; move one"
    if length < _LEAST_LENGTH:
        return (
            f"`points` is too short to be crossed: give at least {_LEAST_LENGTH:g} of the frame, as from 0 to 1"
        )
    return self_crossing(points)
