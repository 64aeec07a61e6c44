"""Decides which events start a clip and when the clip ends.

A clip lasts while a track that it was made for is alive, and a little longer. Further tracks extend it, up to
its greatest length. A track that appears shortly before that starts the next clip, while the first runs to its
end, so that no track is cut off at once. No track starts two clips.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from agent.config.stream import ClipsConfig, ZoneConfig
from agent.errors import CommandError, ConfigError
from agent.types import ClipReason, Event, Track

ASKED = "asked"
"""Reason of a clip that a command requested."""


def check_clips(config: ClipsConfig, zones: Sequence[ZoneConfig], labels: Sequence[str]) -> None:
    """Refuse a configuration that would never give a clip.

    Args:
        config: of the clips.
        zones: of the stream.
        labels: that its model reports; empty: not known.

    Raises:
        ConfigError: a zone or a label is unknown, or `after_s` is more than `max_s`.
    """
    known = [zone.name for zone in zones]
    for name in config.zones:
        if name not in known:
            hint = f"known: {', '.join(known)}" if known else "the stream has no [[zones]]"
            raise ConfigError(f"clips.zones: no zone is called {name!r}; {hint}")
    for label in config.labels:
        if labels and label not in labels:
            raise ConfigError(f"clips.labels: the stream never reports {label!r}; known: {', '.join(labels)}")
    if config.after_s > config.max_s:
        raise ConfigError(f"clips.after_s: {config.after_s:g} is more than max_s, {config.max_s:g}")


class ClipTrigger:
    """Starts and ends the clips of one stream. For one thread at a time.

    Attributes:
        tracks: ids of the tracks of the newest clip.
    """

    def __init__(self, stream: str, config: ClipsConfig, *, only_zones: bool = False) -> None:
        """Start without clips.

        Args:
            stream: its name.
            config: of its clips.
            only_zones: whether tracks are published only after they have stood in a zone.
        """
        self._stream, self._config, self._only_zones = stream, config, only_zones
        self._after_ns, self._max_ns = round(config.after_s * 1e9), round(config.max_s * 1e9)
        self._known: set[str] = set()  # alive, and in a clip once
        self._awaited: set[str] = set()  # of these, those that the newest clip waits for
        self._limit_ns = self._after_end_ns = self._requested_ns = -(1 << 62)
        self.tracks: tuple[str, ...] = ()

    @property
    def until_ns(self) -> int:
        """End of the newest clip as far as is known now, ns."""
        if self._awaited:
            return self._limit_ns
        return max(self._requested_ns, min(self._limit_ns, self._after_end_ns))

    def on_events(self, events: Iterable[Event], now_ns: int) -> ClipReason | None:
        """Add events.

        Args:
            events: of the stream.
            now_ns: their time, ns.

        Returns:
            Reason of a new clip; None: none starts.
        """
        begins = None
        for event in events:
            track = event.track
            if event.kind == "end":
                self._remove(track.id, now_ns)
            elif track.id not in self._known and self._wanted(track):
                begins = self._add(event, now_ns) or begins
        return begins

    def request(self, seconds: float, now_ns: int) -> ClipReason | None:
        """Record from now on for `seconds`; return the reason of a new clip, None if the newest one continues.

        Raises:
            CommandError: the clip would be too long.
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
        self._requested_ns = until_ns
        return begins

    def _add(self, event: Event, now_ns: int) -> ClipReason | None:
        track, begins = event.track, None
        if not self._has_room(now_ns, now_ns + self._after_ns):
            begins = ClipReason(self._stream, event.reason, track.id, track.label)
            self._begin(now_ns)
        self._known.add(track.id)
        self._awaited.add(track.id)
        self.tracks = (*self.tracks, track.id)
        return begins

    def _remove(self, track: str, now_ns: int) -> None:
        self._known.discard(track)
        if track in self._awaited:
            self._awaited.discard(track)
            self._after_end_ns = now_ns + self._after_ns

    def _has_room(self, now_ns: int, until_ns: int) -> bool:
        """Return True if the newest clip is not over and can last until then."""
        return now_ns <= self.until_ns and until_ns <= self._limit_ns

    def _begin(self, now_ns: int) -> None:
        self._limit_ns = now_ns + self._max_ns
        self._after_end_ns = self._requested_ns = now_ns
        self._awaited.clear()  # tracks of the clip before do not extend this one
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
