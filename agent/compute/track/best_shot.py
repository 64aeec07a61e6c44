"""The best shot: is this frame the better picture of the newest event's track? Pure policy, at a bounded rate."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from agent.types import Box, Event, Track

_BETTER = 1.1
"""A picture replaces an earlier one of the same track when its quality is so many times that one's."""

_CUT = 0.5
"""Worth of a thing that the frame's edge cuts off."""

_LOOKS = 0.125
"""Between two looks at frames without events, as a share of `every_s`."""

_EDGE = 0.005
"""A box so near to the frame's edge, as a share of it, touches it."""


class BestShot:
    """Follows the track of the newest `new` event and tells when a frame shows it better than all before.

    When that track has ended, the track of the next event takes its place.
    """

    def __init__(self, every_s: float) -> None:
        """Prepare.

        Args:
            every_s: at most one frame in so long, s.
        """
        self._every_ns = round(every_s * 1e9)
        self._shot_ns: int | None = None
        self._looked_ns: int | None = None
        self._id = ""
        self._hits = 0
        self._best = 0.0

    def is_due(self, now_ns: int) -> bool:
        """Whether a frame without events is worth considering: a few times within `every_s` are enough.

        Args:
            now_ns: its capture, ns.
        """
        if self._looked_ns is not None and now_ns - self._looked_ns < self._every_ns * _LOOKS:
            return False
        self._looked_ns = now_ns
        return True

    def is_better(self, events: Iterable[Event], tracks: Sequence[Track], now_ns: int) -> bool:
        """Whether to encode this frame now.

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
        worth = quality(track)
        early = self._shot_ns is not None and now_ns - self._shot_ns < self._every_ns
        if early or worth <= self._best * _BETTER:
            return False
        self._shot_ns, self._best = now_ns, worth
        return True

    def _choose(self, events: Iterable[Event], alive: dict[str, Track]) -> None:
        told = [event for event in events if event.kind != "end" and event.track.id in alive]
        candidates = [event.track for event in told if event.kind == "new"]
        if not candidates and self._id not in alive:
            candidates = [event.track for event in told]
        if candidates:
            self._id = max(candidates, key=quality).id
            self._hits, self._best = 0, 0.0


def quality(track: Track) -> float:
    """How well a frame shows a track: score × side of the visible box, halved when the frame's edge cuts it.

    0..1; a verdict on the whole picture shows all of it.
    """
    if track.box is None:
        return track.score
    x0, y0, x1, y1 = (min(1.0, max(0.0, value)) for value in track.box)
    side = math.sqrt(max(0.0, x1 - x0) * max(0.0, y1 - y0))
    return track.score * side * (_CUT if _cut_off((x0, y0, x1, y1)) else 1.0)


def _cut_off(box: Box) -> bool:
    return min(box[0], box[1]) < _EDGE or max(box[2], box[3]) > 1.0 - _EDGE
