"""Decide when the clips of one stream begin and end, and which frames become pictures of them.

A clip lasts while a track that it was made for is alive, and a little longer. Further tracks extend it, up to its
greatest length. A track that appears shortly before that starts the next clip, while the first runs to its end,
so that no track is cut off at once. No track starts two clips.
"""

from __future__ import annotations

from collections.abc import Iterable

from agent.config import ClipsConfig
from agent.types import ClipReason, Event, Track


class ClipTrigger:
    """Starts and ends the clips of one stream. For one thread at a time.

    With `only_zones`, tracks are published only after they have stood in a zone. `tracks` are those of the newest
    clip.
    """

    def __init__(self, stream: str, config: ClipsConfig, *, only_zones: bool = False) -> None:
        self._stream, self._config, self._only_zones = stream, config, only_zones
        self._after_ns, self._max_ns = round(config.after_s * 1e9), round(config.max_s * 1e9)
        self._known: set[str] = set()  # alive, and in a clip once
        self._awaited: set[str] = set()  # of these, those that the newest clip waits for
        self._limit_ns = self._after_end_ns = -(1 << 62)
        self.tracks: tuple[str, ...] = ()

    @property
    def until_ns(self) -> int:
        """End of the newest clip as far as is known now, ns."""
        if self._awaited:
            return self._limit_ns
        return min(self._limit_ns, self._after_end_ns)

    def on_events(self, events: Iterable[Event], now_ns: int) -> ClipReason | None:
        """Add the stream's events of that time; return the reason of a new clip, None if none starts."""
        begins = None
        for event in events:
            track = event.track.id
            if event.kind == "end":
                self._known.discard(track)
                if track in self._awaited:
                    self._awaited.discard(track)
                    self._after_end_ns = now_ns + self._after_ns
            elif track not in self._known and self._wanted(event.track):
                begins = self._add(event, now_ns) or begins
        return begins

    def _add(self, event: Event, now_ns: int) -> ClipReason | None:
        track, begins = event.track, None
        if now_ns > self.until_ns or now_ns + self._after_ns > self._limit_ns:
            begins = ClipReason(self._stream, event.reason, track.id, track.label)
            self._limit_ns, self._after_end_ns = now_ns + self._max_ns, now_ns
            self._awaited.clear()  # tracks of the clip before do not extend this one
            self.tracks = ()
        self._known.add(track.id)
        self._awaited.add(track.id)
        self.tracks = (*self.tracks, track.id)
        return begins

    def _wanted(self, track: Track) -> bool:
        config = self._config
        if not config.events or (config.labels and track.label not in config.labels):
            return False
        if (config.zones or self._only_zones) and not track.zones:
            return False
        if config.zones and set(config.zones).isdisjoint(track.zones):
            return False
        return track.best_score >= config.min_score


_LEAST_SHARE = 0.05
"""Least part of `clips.fps` that is recorded: a clip of one picture shows nothing."""


class PicturePace:
    """Chooses which frames become pictures of a clip, at a rate. One thread asks; any thread may set the rate.

    Attributes:
        every_ns: between two pictures, ns.
    """

    def __init__(self, fps: float) -> None:
        self._fps, self.every_ns, self._due_ns = fps, round(1e9 / fps), 0

    def set_share(self, share: float) -> None:
        """Take this part of the rate, 0..1."""
        self.every_ns = round(1e9 / (self._fps * min(1.0, max(_LEAST_SHARE, share))))

    def takes(self, at_ns: int, *, must: bool) -> bool:
        """Return True if a frame captured then is to be a picture; it is if it `must`."""
        every_ns = self.every_ns
        # A frame may come a little early: cameras jitter, which must not halve the rate.
        if not must and at_ns < self._due_ns - every_ns // 4:
            return False
        self._due_ns = max(self._due_ns + every_ns, at_ns)
        return True
