"""Occasions: which events are worth a clip, where it begins, and when it is over. Pure policy.

A clip goes on while a thing that it was made for is there, and a little longer. Other things that come meanwhile
are in the same clip. It has a longest length; a thing that comes shortly before that begins the next one, while
the first runs to its end, so that none is cut off at once. No thing begins two clips, however long it stays.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from agent.config.stream import ClipsConfig, ZoneConfig
from agent.errors import CommandError, ConfigError
from agent.types import ClipReason, Event, Track

ASKED = "asked"
"""Reason of a clip that a command asked for."""


def check_clips(config: ClipsConfig, zones: Sequence[ZoneConfig], labels: Sequence[str]) -> None:
    """Refuse what would never make a clip.

    Args:
        config: of the clips.
        zones: of the stream.
        labels: that its model is asked for; empty: not known.

    Raises:
        ConfigError: a zone or a label is none of these, or a clip would be over before its time.
    """
    known = [zone.name for zone in zones]
    for name in config.zones:
        if name not in known:
            told = f"known: {', '.join(known)}" if known else "the stream has no [[zones]]"
            raise ConfigError(f"clips.zones: no zone is called {name!r}; {told}")
    for label in config.labels:
        if labels and label not in labels:
            raise ConfigError(f"clips.labels: the stream never tells of {label!r}; known: {', '.join(labels)}")
    if config.after_s > config.max_s:
        raise ConfigError(f"clips.after_s: {config.after_s:g} is more than max_s, {config.max_s:g}")


class ClipTrigger:
    """What one stream's clips are made for. For one thread at a time."""

    def __init__(self, stream: str, config: ClipsConfig, *, only_zones: bool = False) -> None:
        """Prepare.

        Args:
            stream: its name.
            config: of its clips.
            only_zones: whether things are published only if they have stood in a zone.
        """
        self._stream, self._config, self._only_zones = stream, config, only_zones
        self._after_ns, self._max_ns = round(config.after_s * 1e9), round(config.max_s * 1e9)
        self._known: set[str] = set()  # alive, and in a clip once
        self._there: set[str] = set()  # of these, those that the newest clip waits for
        self._limit_ns = self._lingers_ns = self._asked_ns = -(1 << 62)
        self.tracks: tuple[str, ...] = ()

    @property
    def until_ns(self) -> int:
        """When the newest clip is over, as far as is known now, ns."""
        if self._there:
            return self._limit_ns
        return max(self._asked_ns, min(self._limit_ns, self._lingers_ns))

    def on_events(self, events: Iterable[Event], now_ns: int) -> ClipReason | None:
        """Take note of events.

        Args:
            events: of the stream.
            now_ns: their time, ns.

        Returns:
            What a new clip begins for, if one does.
        """
        begins = None
        for event in events:
            track = event.track
            if event.kind == "end":
                self._ended(track.id, now_ns)
            elif track.id not in self._known and self._wanted(track):
                begins = self._appeared(event, now_ns) or begins
        return begins

    def request(self, seconds: float, now_ns: int) -> ClipReason | None:
        """A clip is asked for, from now on for so long; what it begins for, unless the newest one goes on.

        Raises:
            CommandError: it would be too long.
        """
        if not 0.0 < seconds <= self._config.max_s:
            raise CommandError(
                f"stream {self._stream}: a clip of {seconds:g} s cannot be recorded; expected more than 0 and at "
                f"most clips.max_s, {self._config.max_s:g}"
            )
        until_ns, begins = now_ns + round(seconds * 1e9), None
        if not self._has_room(now_ns, until_ns):
            begins = ClipReason(self._stream, ASKED)
            self._begin(now_ns)
        self._asked_ns = until_ns
        return begins

    def _appeared(self, event: Event, now_ns: int) -> ClipReason | None:
        track, begins = event.track, None
        if not self._has_room(now_ns, now_ns + self._after_ns):
            begins = ClipReason(self._stream, event.reason, track.id, track.label)
            self._begin(now_ns)
        self._known.add(track.id)
        self._there.add(track.id)
        self.tracks = (*self.tracks, track.id)
        return begins

    def _ended(self, track: str, now_ns: int) -> None:
        self._known.discard(track)
        if track in self._there:
            self._there.discard(track)
            self._lingers_ns = now_ns + self._after_ns

    def _has_room(self, now_ns: int, until_ns: int) -> bool:
        """Whether the newest clip still goes on, and can until then."""
        return now_ns <= self.until_ns and until_ns <= self._limit_ns

    def _begin(self, now_ns: int) -> None:
        self._limit_ns = now_ns + self._max_ns
        self._lingers_ns = self._asked_ns = now_ns
        self._there.clear()  # what the clip before was made for does not make this one longer
        self.tracks = ()

    def _wanted(self, track: Track) -> bool:
        config = self._config
        if not config.events or (config.labels and track.label not in config.labels):
            return False
        if config.zones or self._only_zones:
            stands = not config.zones or not set(config.zones).isdisjoint(track.zones)
            if not track.zones or not stands:
                return False
        return track.best_score >= config.min_score
