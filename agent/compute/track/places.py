"""What one track has to do with the zones and lines of its stream: where it is, and what it has crossed."""

from __future__ import annotations

from agent.compute.track.lines import LineProgress, Lines
from agent.compute.track.zones import Presences, Zones
from agent.types import Box, Crossing

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
        self._presences: Presences = {}
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
