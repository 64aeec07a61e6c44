"""Decides when a frame is a better snapshot of the newest event's track, at a bounded rate."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from agent.types import Box, Event, Track

_BETTER = 1.1
"""A frame replaces an earlier one of the same track if its quality is so many times higher."""

_CUT = 0.5
"""Factor on the quality of an object at the frame's edge."""

_CHECKS = 0.125
"""Interval between checks of frames without events, as a share of `every_s`."""

_EDGE = 0.005
"""A box touches the frame's edge within this distance, as a share of the side."""


class BestShot:
    """Follows the track of the newest `new` event and finds frames that show it better than all before.

    After that track has ended it follows the track of the next event.
    """

    def __init__(self, every_s: float) -> None:
        """Start without a track.

        Args:
            every_s: shortest time between two frames, s.
        """
        self._every_ns = round(every_s * 1e9)
        self._shot_ns: int | None = None
        self._checked_ns: int | None = None
        self._id = ""
        self._hits = 0
        self._best = 0.0

    def is_due(self, now_ns: int) -> bool:
        """Return True if a frame without events is worth checking, a few times within `every_s`.

        Args:
            now_ns: its capture, ns.
        """
        if self._checked_ns is not None and now_ns - self._checked_ns < self._every_ns * _CHECKS:
            return False
        self._checked_ns = now_ns
        return True

    def is_better(self, events: Iterable[Event], tracks: Sequence[Track], now_ns: int) -> bool:
        """Return True if this frame should be encoded now.

        Args:
            events: of this frame.
            tracks: alive after it.
            now_ns: its capture, ns.
        """
        alive = {track.id: track for track in tracks}
        self._choose(events, alive)
        track = alive.get(self._id)
        # Without a hit the track's box is that of an earlier frame.
        if track is None or track.hits <= self._hits:
            return False
        self._hits = track.hits
        now = quality(track)
        early = self._shot_ns is not None and now_ns - self._shot_ns < self._every_ns
        if early or now <= self._best * _BETTER:
            return False
        self._shot_ns, self._best = now_ns, now
        return True

    def _choose(self, events: Iterable[Event], alive: dict[str, Track]) -> None:
        current = [event for event in events if event.kind != "end" and event.track.id in alive]
        candidates = [event.track for event in current if event.kind == "new"]
        if not candidates and self._id not in alive:
            candidates = [event.track for event in current]
        if candidates:
            self._id = max(candidates, key=quality).id
            self._hits, self._best = 0, 0.0


def quality(track: Track) -> float:
    """Return how well a frame shows a track, 0..1: score × side of the visible box, halved at the frame's edge.

    A track without a box counts its score alone.
    """
    if track.box is None:
        return track.score
    x0, y0, x1, y1 = (min(1.0, max(0.0, value)) for value in track.box)
    side = math.sqrt(max(0.0, x1 - x0) * max(0.0, y1 - y0))
    return track.score * side * (_CUT if _cut_off((x0, y0, x1, y1)) else 1.0)


def _cut_off(box: Box) -> bool:
    return min(box[0], box[1]) < _EDGE or max(box[2], box[3]) > 1.0 - _EDGE
